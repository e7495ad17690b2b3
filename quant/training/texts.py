"""Texts to train on: lists of lines, each list a text of its own, and lines held out to validate with."""

from __future__ import annotations

from dataclasses import dataclass

from quant.text.grammar import treebank_like
from quant.text.novels import TRAIN, chapters

GRAMMAR_LINES, VALIDATION_LINES = 320_000, 2_000
HELD_OUT = slice(9, None, 20)  # of a novel's chapters


@dataclass(frozen=True)
class TrainingTexts:
    """training, validation: texts, each a list of lines; line: the form that a line takes, as evaluate.line in params.yaml."""

    training: list[list[str]]
    validation: list[list[str]]
    line: str


def grammar_texts() -> TrainingTexts:
    """Lines of the embedded grammar's split "train", in texts of 1 to 32 lines."""
    lines = [" ".join(line.words) for line in treebank_like().lines(GRAMMAR_LINES, "train")]
    texts, at, length = [], 0, 1
    while at < len(lines):
        texts.append(lines[at : at + length])
        at, length = at + length, length % 32 + 1
    held_out = [texts.pop() for _ in range(VALIDATION_LINES // 16)]
    return TrainingTexts(texts, held_out, " {} \n")


def novel_texts() -> TrainingTexts:
    """Jane Austen's novels without Persuasion, which is the test; every twentieth chapter validates."""
    novels = [chapters(novel) for novel in TRAIN]
    held_out = [lines for found in novels for lines in found[HELD_OUT]]
    return TrainingTexts([lines for found in novels for lines in found if lines not in held_out], held_out, "{}\n")
