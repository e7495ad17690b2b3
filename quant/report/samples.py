"""The sample texts: each variant's continuation of one prompt, laid beside base's word by word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quant.report.results import Result, Run

MOST_WORDS = 20  # shown of a text that has left base's


@dataclass(frozen=True)
class Sample:
    """One text, and the variants that wrote it.

    shared: words that are base's, up to the first other one; is_same: whether all are; missing: base's next word, "" where its
    text ends; rest: the words from there, MOST_WORDS at most; is_cut: whether there are more; words, different: how many words
    the text has, and how many different ones.
    """

    variants: Sequence[Result]
    shared: int
    is_same: bool
    missing: str
    rest: str
    is_cut: bool
    words: int
    different: int


@dataclass(frozen=True)
class Samples:
    """base: its text; words, different: of that text; texts: the others', from the closest to the furthest; untimed: variants
    without a text; narrowest: texts of the variants with the fewest bits, bits: how many."""

    base: str
    words: int
    different: int
    texts: Sequence[Sample]
    untimed: Sequence[Result]
    narrowest: Sequence[Sample]
    bits: int | None

    @property
    def alike(self) -> list[Result]:
        """The variants whose text is base's."""
        return [result for text in self.texts if text.is_same for result in text.variants]

    @property
    def first(self) -> list[Result]:
        """The variants that leave base's text after the fewest words; none where no text leaves it."""
        return [result for text in self.texts if not text.is_same and text.shared == self.texts[-1].shared
                for result in text.variants]

    @property
    def count(self) -> int:
        """Variants with a text."""
        return sum(len(text.variants) for text in self.texts)


def samples(run: Run) -> Samples:
    """The sample texts of a run. A variant that was not timed has none."""
    said = [(result, _text(result)) for result in run.others]
    base = run.base.speed["generation"]["base_text"]
    by_text: dict[str, list[Result]] = {}
    for result, text in said:
        if text is not None:
            by_text.setdefault(" ".join(text.split()), []).append(result)
    texts = sorted((_aligned(base.split(), text.split(), results) for text, results in by_text.items()),
                   key=lambda sample: (not sample.is_same, -sample.shared))
    bits = min((r.variant.nominal_bits for text in texts for r in text.variants if r.variant.nominal_bits), default=None)
    narrow = [(text, [result for result in text.variants if bits and result.variant.nominal_bits == bits]) for text in texts]
    return Samples(base, len(base.split()), len(set(base.split())), texts, [result for result, text in said if text is None],
                   [replace(text, variants=results) for text, results in narrow if results], bits)


def _text(result: Result) -> str | None:
    said: Mapping | None = result.speed.get("generation")
    return None if said is None else said["text"]


def _aligned(base: Sequence[str], words: Sequence[str], variants: Sequence[Result]) -> Sample:
    shared = next((i for i, (a, b) in enumerate(zip(base, words, strict=False)) if a != b), min(len(base), len(words)))
    rest = words[shared:]
    return Sample(variants, shared, words == base, base[shared] if shared < len(base) else "", " ".join(rest[:MOST_WORDS]),
                  len(rest) > MOST_WORDS, len(words), len(set(words)))
