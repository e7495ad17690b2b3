"""A corpus: lines of text, one sentence each, and their origin.

Text that may not be shared (the Penn Treebank, from any source) is not an output of DVC, so that `dvc push` can't send it: the
corpus folder holds its counts and its hash, and a private folder, which git and DVC ignore, holds the lines. `load_corpus`
downloads them again if they are missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from quant.files import atomic_folder, write_json, write_manifest, write_text

FEW_LINES = 3000  # with fewer, small differences between variants are lost in the noise of the text


@dataclass(frozen=True)
class Corpus:
    """lines: stripped, none empty. floor_nats: exact negative log-probability of a grammar's text, which no model can be expected
    to beat; None for other texts. revision: commit of a dataset. license: as its source states it. private: may not be shared.
    split: of a known corpus or a dataset; "all" for a user's own text."""

    source: str
    lines: tuple[str, ...]
    floor_nats: float | None = None
    revision: str | None = None
    license: str | None = None
    private: bool = False
    split: str = "all"

    @property
    def words(self) -> int:
        """Number of words; the end of each line counts as one."""
        return sum(len(line.split()) + 1 for line in self.lines)

    @property
    def text(self) -> str:
        """The lines, each ended by a newline."""
        return "".join(f"{line}\n" for line in self.lines)


def as_text(lines: Iterable[str], template: str = " {} \n") -> str:
    """Lines as running text. template: the form of a line, {} its words; by default that of the Penn Treebank's files."""
    return "".join(template.replace("{}", line) for line in lines)


def write_corpus(corpus: Corpus, out: Path, private: Path) -> None:
    """Write a corpus to the folder `out`: corpus.json (counts and hash), lines.txt, and manifest.json.

    The lines of a private corpus go to the folder `private` instead.
    """
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
    with atomic_folder(out) as folder:
        if not corpus.private:
            write_text(folder / "lines.txt", corpus.text)
        write_json(folder / "corpus.json", about)
        write_manifest(folder, counts)
    print(f"text {corpus.source}: {counts['sentences']:,} lines, {counts['words']:,} words, {counts['bytes']:,} bytes, licence "
          f"{corpus.license or 'not stated'}", flush=True)
    if len(corpus.lines) < FEW_LINES:
        print(f"text {corpus.source}: fewer than {FEW_LINES:,} lines; small differences between variants may be noise",
              flush=True)
