"""The embedded prose: Jane Austen's six novels, public domain, a sentence per line.

The files in data/embedded/austen are Project Gutenberg's texts, wrapped at some 70 characters; an empty line ends a paragraph.
A sentence ends at a full stop, a question mark or an exclamation mark, including closing quotation marks and brackets, if a
capital letter follows, perhaps after an opening quotation mark or bracket; but not after an abbreviation or an initial.
"""

from __future__ import annotations

import lzma
import re
from pathlib import Path

from quant.errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / "data" / "embedded" / "austen"
TEST = "persuasion"
TRAIN = ("emma", "mansfieldpark", "northangerabbey", "prideprejudice", "sensesensibility")
NOVELS = (*TRAIN, TEST)
CALIBRATION, CALIBRATION_CHAPTERS = "emma", 14

_ABBREVIATIONS = ("Mr", "Mrs", "Messrs", "Dr", "St", "Esq", "Col", "Capt", "Adm", "Hon", "Rev", "Bart", "Jan", "Feb", "Sept",
                  "Oct", "Nov", "Dec", "vol", "Vol", "viz", "etc", "&c", "i.e", "e.g")  # fmt: skip
_END = re.compile(r"""(?<=[.!?])(["')\]]*)\s+(?=["'(\[_]*[A-Z])""")
_HEADING = re.compile(r"(chapter|volume)\s+[\divxlc]+\.?|the end|finis", re.IGNORECASE)


def chapters(novel: str) -> list[list[str]]:
    """The sentences of each chapter of a novel; text before the first chapter is left out.

    Raises InputError for a novel that is not embedded.
    """
    path = FOLDER / f"{novel}.txt.xz"
    if novel not in NOVELS or not path.is_file():
        raise InputError(f"novel {novel!r} is not embedded; expected one of {', '.join(NOVELS)}")
    text = lzma.decompress(path.read_bytes()).decode("utf-8")
    found: list[list[str]] = []
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.replace("_", "").split())  # underscores mark italics
        if re.fullmatch(r"chapter\s+[\divxlc]+\.?", line, re.IGNORECASE):
            found.append([])
        elif found and line and not _HEADING.fullmatch(line):
            found[-1] += sentences(line)
    return found


def calibration_lines() -> list[str]:
    """The text to calibrate on, 39,670 words, the same every time: the first chapters of Emma. Nothing of the test text."""
    return [line for lines in chapters(CALIBRATION)[:CALIBRATION_CHAPTERS] for line in lines]


def sentences(paragraph: str) -> list[str]:
    """Split a paragraph, given as one line, into sentences."""
    found, start = [], 0
    for end in _END.finditer(paragraph):
        before = paragraph[start : end.end(1)]
        last = before.rstrip("\"')]").rsplit(None, 1)[-1].lstrip("\"'([_")
        if last.endswith(".") and (last[:-1] in _ABBREVIATIONS or re.fullmatch(r"[A-Z]\.", last)):
            continue
        found.append(before)
        start = end.end()
    return [*found, paragraph[start:]] if paragraph[start:] else found
