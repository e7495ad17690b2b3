"""Publishes a variant on the Hub: its files, and a card made from this run's metrics, in one commit.

`publication` only reads; `push` sends. Files on the Hub are not overwritten unless a branch is named or the user confirms.
Repeating an interrupted push completes it: the Hub keeps large files that it has received, and a repository that already holds
the same files is left unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2

from quant.errors import InputError
from quant.export import FORMATS, SUFFIXES
from quant.files import sha256_of
from quant.hub.download import git_hash
from quant.hub.errors import redacted, translating_errors
from quant.hub.license import License
from quant.hub.repository import RemoteFile, files_of, is_repo_id
from quant.hub.retry import TIMEOUT, retrying
from quant.methods import UNQUANTIZED, Method, load
from quant.methods import names as names_of_methods
from quant.outside import file_within, read_json
from quant.progress import size
from quant.report.metrics import CARD, shown_in
from quant.report.results import read_metrics
from quant.report.wording import literal, unmarked
from quant.variants import Variant

HERE = Path(__file__).parent
LEFT_OUT = {"manifest.json", "README.md"}  # not sent: this pipeline's own, and replaced by the card
KEPT_ON_HUB = {".gitattributes"}  # the content of an empty repository
MOVED_ON = 412  # HTTP status of a commit whose parent is not the branch's newest any more


@dataclass(frozen=True)
class Publication:
    """A variant ready to push. files: name on the Hub -> local file; card: text of README.md; warning: about the licence."""

    variant: str
    repo: str
    files: Mapping[str, Path]
    card: str
    warning: str | None

    def listing(self) -> str:
        """The files and their sizes, one per line, and the warning."""
        sizes = {**{name: path.stat().st_size for name, path in self.files.items()}, "README.md": len(self.card.encode())}
        lines = [f"{self.variant} -> {self.repo}: {len(sizes)} files, {size(sum(sizes.values()))}"]
        lines += [f"  {name:40} {count:>14,} bytes" for name, count in sorted(sizes.items())]
        return "\n".join([*lines, *([f"warning: {self.warning}"] if self.warning else [])])


def publication(variant: Variant, folder: Path, base: Path, text: Path, repo: str, reports: Path,
                code: str | None = None, exported: Path | None = None) -> Publication:
    """The files of the variant in `folder`, or of its export, and its card.

    base, text: folders of the base and of the text that it was measured on; reports: folder of the measurements; code: address
    of this pipeline's code, for the card; exported: what quant.export made of the variant, sent in place of its own files.
    Raises InputError for a variant that is not quantized, built or measured, and for an export of another one.
    """
    if not is_repo_id(repo):
        raise InputError(f"--repo is {repo!r}; expected owner/name, such as me/gpt2-{variant.name}")
    if not is_shareable(variant):
        raise InputError(f"{variant.name} is the base model as it was given; push a quantized variant")
    if not (folder / "manifest.json").is_file():
        raise InputError(f"{folder} does not exist or is incomplete; run dvc repro to build it")
    about = read_json(base / "manifest.json")
    files = _files_of(folder)
    form = exported and _format_of(exported, folder)
    if exported:
        files = _files_of(exported) or {exported.name: exported}
    elif variant.method.published_name:
        (path,) = files.values()
        files = {variant.method.published_name(variant.values, Path(about["source"]).name): path}
    card = render_card(variant, folder, repo, about, list(files), text, reports, code, form)
    return Publication(variant.name, repo, files, card, License(**about["license"]).warning)


def _files_of(folder: Path) -> dict[str, Path]:
    """What of a folder is sent, by name. Raises InputError for a link that leads out of it."""
    return {path.relative_to(folder).as_posix(): file_within(path, folder) for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in LEFT_OUT}


def is_shareable(variant: Variant) -> bool:
    """Whether a variant has weights of its own, unlike the base and variants that open the base's files."""
    return variant.method.name != UNQUANTIZED


def render_card(variant: Variant, folder: Path, repo: str, base: Mapping, names: list[str], text: Path, reports: Path,
                code: str | None, form: str | None = None) -> str:
    """The text of README.md: front matter for the Hub, description, table of metrics, how to load it, licence.

    form: the format of an export, see quant.export.FORMATS; None: the variant's own files.
    """
    manifest = read_json(folder / "manifest.json")
    quality = _measured(reports / "quality" / f"{variant.name}.json")
    measured = read_metrics(reports / "variants.csv")
    if variant.name not in measured:
        raise InputError(f"{reports / 'variants.csv'} has no variant {variant.name}; run dvc repro to measure it")
    metrics, base_metrics = measured[variant.name], measured["base"]
    rows = [(metric.sentence, metric.format(base_metrics[metric.key]), metric.format(metrics[metric.key]))
            for metric in shown_in(CARD) if metric.key in metrics]
    license = License(**base["license"])
    if base["revision"] is None:  # a local path is useless to a reader, and reveals something about this machine
        base = {**base, "source": Path(base["source"]).name}
    elif license.link and "://" not in license.link:  # a file beside the base model's card
        license = replace(license, link=f"https://huggingface.co/{base['source']}/blob/{base['revision']}/{license.link}")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"literal": literal, "unmarked": unmarked}
    told_by = next((one for one in map(load, names_of_methods()) if one.hub_library == form), None) if form else variant.method
    loading = environment.from_string(told_by.text("card.md.jinja") or "") if told_by else environment.get_template(
        "formats.md.jinja")
    return environment.get_template("card.md.jinja").render(
        front=_front_matter(base, license, variant.method, form),
        name=repo.split("/")[1],
        repo=repo,
        base=base,
        method=variant.method.label,
        scheme=_scheme(manifest),
        form=form,
        loading=loading.render(repo=repo, names=names, code=code, form=form),
        metrics=metrics,
        rows=rows,
        protocol=quality["protocol"],
        corpus=read_json(text / "corpus.json"),
        names=names,
        license=license,
    )


def push(what: Publication, revision: str | None, public: bool, confirm: Callable[[str], bool]) -> str:
    """Send a publication in one commit, unless the repository already holds it. Returns a line with its address on the Hub.

    revision: the branch, created if missing; None: main. Files on main are replaced only if confirm(question) is true.
    public: the visibility of a new repository. Raises InputError where the Hub refuses or the user does not confirm.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if constants.is_offline_mode():
        raise InputError("HF_HUB_OFFLINE is set, and a push needs the Hub; unset it")

    if not sys.stderr.isatty():  # no progress bars in a log file
        disable_progress_bars()
    api = HfApi()
    with translating_errors(what.repo, revision):
        def listed(branch: str | None):
            return retrying(lambda: api.model_info(what.repo, revision=branch, files_metadata=True, timeout=TIMEOUT))

        try:
            info = listed(None)
        except RepositoryNotFoundError:
            retrying(lambda: api.create_repo(what.repo, private=not public, exist_ok=True))
            info = listed(None)
        if revision is not None:
            retrying(lambda: api.create_branch(what.repo, branch=revision, exist_ok=True))
            info = listed(revision)
        files = files_of(info)
        if _holds(files, what):
            return f"already there: {_address(what, info.sha)}"
        held = set(files) - KEPT_ON_HUB
        if revision is None and held and not confirm(_question(what, held)):
            raise InputError(f"{what.repo} exists and holds {len(held)} files; nothing was sent. Push beside them with "
                             "--revision BRANCH, confirm when asked, or choose another name")
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in what.files.items()]
        operations.append(CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=what.card.encode()))
        try:
            done = retrying(lambda: api.create_commit(
                what.repo, operations, commit_message=f"{what.variant}: quantized weights and card", revision=revision,
                parent_commit=info.sha))
        except HfHubHTTPError as error:
            if error.response.status_code != MOVED_ON:
                raise
            info = listed(revision)
            if not _holds(files_of(info), what):
                raise InputError(f"{what.repo} was changed by another push since this one began; nothing of this one was added; "
                                 "look at what it holds now, and run the same command again") from None
            return f"already there: {_address(what, info.sha)}"
    return f"pushed: {_address(what, done.oid)}"


def _holds(files: Mapping[str, RemoteFile], what: Publication) -> bool:
    """Whether a repository with these files already holds the publication, byte for byte."""
    def same(name: str, path: Path) -> bool:
        remote = files[name]
        return remote.size == path.stat().st_size and (
            sha256_of(path) == remote.sha256 if remote.sha256 else git_hash(path.read_bytes()) == remote.git_sha1)

    if not {*what.files, "README.md"} <= set(files):
        return False
    return git_hash(what.card.encode()) == files["README.md"].git_sha1 and all(map(same, what.files, what.files.values()))


def _address(what: Publication, commit: str) -> str:
    from huggingface_hub import constants

    return redacted(f"{constants.ENDPOINT}/{what.repo}/tree/{commit}")


def _question(what: Publication, held: set[str]) -> str:
    over = sorted(held & {*what.files, "README.md"})
    return (f"{what.repo} exists and holds {len(held)} files; {', '.join(over[:4]) or 'none'}{', ...' if len(over) > 4 else ''} "
            f"would be replaced. Type {what.repo} to confirm: ")


def _format_of(exported: Path, folder: Path) -> str:
    """The format of an export. Raises InputError if it is none, or not one of the variant in `folder`, where it says of which."""
    if exported.is_file() and exported.suffix == SUFFIXES["gguf"]:
        return "gguf"
    if not (exported / "manifest.json").is_file():
        raise InputError(f"{exported} is not an export; make one with python -m quant.export {folder} {exported} --format FORMAT")
    manifest = read_json(exported / "manifest.json")
    if manifest.get("artifact_sha256") != sha256_of(folder / "manifest.json") or manifest.get("method") not in FORMATS:
        raise InputError(f"{exported} is not an export of {folder} as it is now; export it again")
    return manifest["method"]


def _front_matter(base: Mapping, license: License, method: Method, form: str | None) -> str:
    from huggingface_hub import ModelCardData

    library = method.hub_library if form is None else "gguf" if form == "gguf" else "transformers"
    tag = form or (library if library != "transformers" else method.name)
    values: dict = {"pipeline_tag": "text-generation", "library_name": library, "tags": ["quantized", tag]}
    if base["revision"]:  # a local folder has no page to link to
        values |= {"base_model": base["source"], "base_model_relation": "quantized"}
    if license.id and "," not in license.id:  # the Hub takes one licence
        values |= {"license": license.id, "license_name": license.name, "license_link": license.link}
    return ModelCardData(**values).to_yaml()  # leaves out None


def _scheme(manifest: Mapping) -> str:
    """The scheme or type that the artifact's manifest names, and the options that are on."""
    options = [key.replace("_", " ") for key, value in manifest.items() if value is True]
    return ", ".join([manifest.get("scheme") or manifest["type"], *options])


def _measured(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path} is missing, and the card shows its numbers; run dvc repro to measure the variant")
    return read_json(path)
