"""A variant out to the Hub: its files and a card made from this run's metrics, in one commit.

Nothing is sent before `push`; `publication` only reads. What exists on the Hub is not overwritten unless a branch is named or the
user confirms. An upload that was cut is repeated by the same call: the Hub keeps the large files it has received, and a
repository that holds the very same already is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import yaml

from quant.errors import InputError
from quant.files import read_json, sha256_of
from quant.hub import client
from quant.hub.license import License
from quant.methods import UNQUANTIZED, Method
from quant.progress import size
from quant.report.metrics import CARD_METRICS
from quant.variants import Variant

HERE = Path(__file__).parent
LEFT_OUT = {"manifest.json", "README.md"}  # of this pipeline, and made anew
KEPT_ON_HUB = {".gitattributes"}  # what an empty repository holds

@dataclass(frozen=True)
class Publication:
    """What would be pushed. files: name on the Hub -> local file; card: the text of README.md; warning: of the licence."""

    variant: str
    repo: str
    files: Mapping[str, Path]
    card: str
    warning: str | None

    def listing(self) -> str:
        """Files and sizes, a line each."""
        sizes = {**{name: path.stat().st_size for name, path in self.files.items()}, "README.md": len(self.card.encode())}
        lines = [f"{self.variant} -> {self.repo}: {len(sizes)} files, {size(sum(sizes.values()))}"]
        lines += [f"  {name:40} {count:>14,} bytes" for name, count in sorted(sizes.items())]
        return "\n".join([*lines, *([f"warning: {self.warning}"] if self.warning else [])])


def publication(variant: Variant, folder: Path, base: Path, text: Path, repo: str, reports: Path,
                code: str | None = None) -> Publication:
    """The files of a variant in `folder`, and its card. base, text: folders of the base and of the text it was measured on;
    code: where a reader of the card finds this pipeline.

    Raises InputError if the variant is no quantized one, has not been made, or has not been measured.
    """
    if not client.is_repo_id(repo):
        raise InputError(f"--repo is {repo!r}; expected owner/name, such as me/gpt2-{variant.name}")
    if not is_shareable(variant):
        raise InputError(f"{variant.name} is the base model as it was given; push a quantized variant")
    if not (folder / "manifest.json").is_file():
        raise InputError(f"{folder} is not there, or not whole; run dvc repro, which makes it")
    about = read_json(base / "manifest.json")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))
             if path.is_file() and path.name not in LEFT_OUT}
    if variant.method.published_name:
        (path,) = files.values()
        files = {variant.method.published_name(variant.values, Path(about["source"]).name): path}
    card = render_card(variant, folder, repo, about, list(files), text, reports, code)
    return Publication(variant.name, repo, files, card, License(**about["license"]).warning)


def is_shareable(variant: Variant) -> bool:
    """Whether it has weights of its own: the base and what points to it have none."""
    return variant.method.name != UNQUANTIZED


def render_card(variant: Variant, folder: Path, repo: str, base: Mapping, names: list[str], text: Path, reports: Path,
                code: str | None) -> str:
    """README.md: front matter that the Hub reads, what this is, the table, how to load it, and the licence."""
    manifest = read_json(folder / "manifest.json")
    quality = _measured(reports / "quality" / f"{variant.name}.json")
    metrics, base_metrics = (_measured(reports / "metrics" / f"{name}.json") for name in (variant.name, "base"))
    rows = [(metric.sentence, metric.format(base_metrics[metric.key]), metric.format(metrics[metric.key]))
            for metric in CARD_METRICS if metric.key in metrics]
    license = License(**base["license"])
    if base["revision"] is None:  # a folder's path tells about this machine, and nothing to a reader
        base = {**base, "source": Path(base["source"]).name}
    elif license.link and "://" not in license.link:  # a file beside the base model's card
        license = replace(license, link=f"https://huggingface.co/{base['source']}/blob/{base['revision']}/{license.link}")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)
    loading = environment.from_string(variant.method.text("card.md.jinja") or "").render(repo=repo, names=names, code=code)
    return environment.get_template("card.md.jinja").render(
        front=_front_matter(base, license, variant.method),
        name=repo.split("/")[1],
        repo=repo,
        base=base,
        method=variant.method.label,
        scheme=_scheme(manifest),
        loading=loading,
        metrics=metrics,
        rows=rows,
        protocol=quality["protocol"],
        corpus=read_json(text / "corpus.json"),
        names=names,
        license=license,
    )


def push(what: Publication, revision: str | None, public: bool, confirm: Callable[[str], bool]) -> str:
    """Send a publication in one commit, unless it is there already; what was done, and the address on the Hub.

    revision: a branch to push to, made where it is missing; None: main, and only where the repository is new or empty, or where
    confirm(question) says yes. public: whether a new repository can be seen by all.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if constants.is_offline_mode():
        raise InputError("HF_HUB_OFFLINE is set, and a push needs the Hub; unset it")

    if not sys.stderr.isatty():  # in a file a bar is noise
        disable_progress_bars()
    api = HfApi()
    with client.in_one_line(what.repo, revision):
        def listed(branch: str | None):
            return client.patiently(
                lambda: api.model_info(what.repo, revision=branch, files_metadata=True, timeout=client.TIMEOUT))

        try:
            info = listed(None)
        except RepositoryNotFoundError:
            client.patiently(lambda: api.create_repo(what.repo, private=not public, exist_ok=True))
            info = listed(None)
        if revision is not None:
            client.patiently(lambda: api.create_branch(what.repo, branch=revision, exist_ok=True))
            info = listed(revision)
        files = client.files_of(info)
        if _is_there(what, files):
            return f"already there: {_address(what, info.sha)}"
        held = set(files) - KEPT_ON_HUB
        if revision is None and held and not confirm(_question(what, held)):
            raise InputError(f"{what.repo} exists and holds {len(held)} files; nothing was sent. Push beside them with "
                             "--revision BRANCH, confirm when asked, or choose another name")
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in what.files.items()]
        operations.append(CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=what.card.encode()))
        done = client.patiently(lambda: api.create_commit(
            what.repo, operations, commit_message=f"{what.variant}: quantized weights and card", revision=revision,
            parent_commit=info.sha))
    return f"pushed: {_address(what, done.oid)}"


def _is_there(what: Publication, files: Mapping[str, client.RemoteFile]) -> bool:
    """Whether a repository with these files holds what would be sent, byte for byte."""
    def same(name: str, path: Path) -> bool:
        there = files[name]
        return there.size == path.stat().st_size and (
            sha256_of(path) == there.sha256 if there.sha256 else client.git_hash(path.read_bytes()) == there.git_sha1)

    if not {*what.files, "README.md"} <= set(files):
        return False
    return client.git_hash(what.card.encode()) == files["README.md"].git_sha1 and all(map(same, what.files, what.files.values()))


def _address(what: Publication, commit: str) -> str:
    from huggingface_hub import constants

    return client.without_secrets(f"{constants.ENDPOINT}/{what.repo}/tree/{commit}")


def _question(what: Publication, held: set[str]) -> str:
    over = sorted(held & {*what.files, "README.md"})
    return (f"{what.repo} exists and holds {len(held)} files; {', '.join(over[:4]) or 'none'}{', ...' if len(over) > 4 else ''} "
            f"would be replaced. Type {what.repo} to go on: ")


def _front_matter(base: Mapping, license: License, method: Method) -> str:
    values: dict = {}
    if base["revision"]:  # a folder on this machine has no page to link to
        values |= {"base_model": base["source"], "base_model_relation": "quantized"}
    if license.id and "," not in license.id:
        values |= {"license": license.id}
        values |= {key: value for key, value in (("license_name", license.name), ("license_link", license.link)) if value}
    tag = method.hub_library if method.hub_library != "transformers" else method.name
    values |= {"pipeline_tag": "text-generation", "library_name": method.hub_library, "tags": ["quantized", tag]}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()


def _scheme(manifest: Mapping) -> str:
    """As the artifact's manifest has it: its scheme or type, and the options that are on."""
    options = [key.replace("_", " ") for key, value in manifest.items() if value is True]
    return ", ".join([manifest.get("scheme") or manifest["type"], *options])


def _measured(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path} is missing, and a card is made from measurements; run dvc repro, which makes it")
    return read_json(path)
