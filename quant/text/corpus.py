"""A corpus: lines of text and where they came from; one line is one sentence.

Text that may not be passed on, which is the Penn Treebank's however it came here, is no output of DVC, so that `dvc push` can't
send it: the corpus folder holds its counts and its hash, and the lines lie in a private folder, which git and DVC ignore.
`load_corpus` fetches them again where they are missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from quant.errors import InputError
from quant.files import atomic_folder, read_json, write_json, write_manifest, write_text
from quant.text.source import TextSource

FEW_LINES = 3000  # below that, differences between variants drown in the noise of the text


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


def write_corpus(corpus: Corpus, out: Path, private: Path) -> None:
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
    with atomic_folder(out) as folder:
        if not corpus.private:
            write_text(folder / "lines.txt", corpus.text)
        write_json(folder / "corpus.json", about)
        write_manifest(folder, counts)
    print(f"text {corpus.source}: {counts['sentences']:,} lines, {counts['words']:,} words, {counts['bytes']:,} bytes, licence "
          f"{corpus.license or 'not stated'}", flush=True)
    if len(corpus.lines) < FEW_LINES:
        print(f"text {corpus.source}: fewer than {FEW_LINES:,} lines; small differences between variants may be chance",
              flush=True)


def load_corpus(folder: Path, private: Path) -> Corpus:
    """What `write_corpus` wrote. Text that is not passed on, and so is missing in a clone, is fetched again where it can be."""
    if not (Path(folder) / "corpus.json").is_file():
        raise InputError(f"{folder} holds no text; run dvc repro download, which brings it")
    about = read_json(Path(folder) / "corpus.json")
    path = private / f"{about['sha256']}.txt" if about["private"] else Path(folder) / "lines.txt"
    if about["private"] and not path.is_file():
        if about["source"] != "ptb":
            raise InputError(f"the text of {about['source']} is not here, as it may not be passed on; bring that file and run "
                             "dvc repro -f download")
        from quant.text.read import read_corpus  # here, because the measurements that load a corpus fetch nothing otherwise

        write_text(path, read_corpus(TextSource("ptb", sentences=about["sentences"])).text)
    text = path.read_text(encoding="utf-8")
    found = sha256(text.encode()).hexdigest()
    if found != about["sha256"]:
        raise InputError(f"{path} has sha256 {found}, expected {about['sha256']}; delete it and run dvc repro -f download")
    return Corpus(about["source"], tuple(text.splitlines()), about["floor_nats"], about["revision"], about["license"],
                  about["private"], about["split"])
