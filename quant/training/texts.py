"""Texts to train on, to validate with and to test on: Jane Austen's novels, cut so that no chapter serves two of the three."""

from __future__ import annotations

from dataclasses import dataclass

from quant.text.novels import TEST, TRAIN, chapters

HELD_OUT = slice(9, None, 20)  # of a novel's chapters
LINE = "{}\n"  # the form that a line takes, as evaluate.line in params.yaml


@dataclass(frozen=True)
class TrainingTexts:
    """Texts, each a list of lines. training, validation: a text per chapter; test: one text, as the pipeline measures on it."""

    training: list[list[str]]
    validation: list[list[str]]
    test: list[list[str]]


def novel_texts() -> TrainingTexts:
    """Five novels, of which every twentieth chapter validates; Persuasion is the test."""
    novels = [chapters(novel) for novel in TRAIN]
    held_out = [lines for found in novels for lines in found[HELD_OUT]]
    training = [lines for found in novels for lines in found if lines not in held_out]
    return TrainingTexts(training, held_out, [[line for lines in chapters(TEST) for line in lines]])
