"""Paired block bootstrap over the text: 95 % intervals, and which differences are significant. Needs no model.

Neighbouring tokens are not independent, so blocks of text are drawn, not tokens (Künsch 1989). Both variants are scored on the
same blocks, so the difficulty of a block cancels. Blocks are counted in bytes, so that models with different tokenizers have the
same ones: these compare in bits per byte. Every pair is drawn with the same seed. Intervals are not corrected for many pairs: of
a hundred pairs that do not differ, about five come out as significant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy

from quant.errors import InputError

if TYPE_CHECKING:
    from quant.quality.windows import Places

LEVEL = 0.95
RESAMPLES = 4000
SEED = 0
BLOCK_BYTES = 512
MIN_BLOCKS = 50  # a short text is cut into smaller blocks
MEASURES = ("ppl", "kld")


@dataclass(frozen=True)
class Blocks:
    """Sums over blocks of text, float64 [blocks]: tokens, bytes and top1 are counts, nll and kld are in nats.

    A token belongs to the block in which its bytes begin. bytes: of the scored tokens. bytes_per_block: of the text.
    text_sha256: of the text that was scored.
    """

    bytes_per_block: int
    text_sha256: str
    tokens: numpy.ndarray
    bytes: numpy.ndarray
    nll: numpy.ndarray
    kld: numpy.ndarray
    top1: numpy.ndarray
    _sums: dict[str, numpy.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def cut(cls, places: Places, nll: numpy.ndarray, kld: numpy.ndarray, top1: numpy.ndarray) -> Blocks:
        """Sum values per scored token over blocks of the text; the last block may be shorter.

        Of a text that is scored whole every block is kept, also one inside a long token, so that two tokenizers have the same
        blocks. Where parts of the text are left out, blocks without a scored token are too.
        """
        size = max(1, min(BLOCK_BYTES, places.text_bytes // MIN_BLOCKS))
        count = -(-places.text_bytes // size)
        sums = numpy.stack([numpy.bincount(places.begins // size, values, count)
                            for values in (numpy.ones(len(nll)), places.bytes, nll, kld, top1)])
        return cls(size, places.text_sha256, *(sums if places.is_whole else sums[:, sums[0] > 0]))

    @classmethod
    def from_dict(cls, values: Mapping) -> Blocks:
        """Read the form of `to_dict`. Raises InputError where a key is missing."""
        columns = ("tokens", "bytes", "nll", "kld", "top1")
        missing = {"bytes_per_block", "text_sha256", *columns} - set(values)
        if missing:
            raise InputError(f"blocks lack {', '.join(sorted(missing))}; run dvc repro to measure again")
        return cls(values["bytes_per_block"], values["text_sha256"],
                   *(numpy.asarray(values[key], dtype=numpy.float64) for key in columns))

    def sums(self, column: str) -> numpy.ndarray:
        """Sum of a column over all blocks, then over each resample: float64 [1 + RESAMPLES]; computed once."""
        if column not in self._sums:
            values = getattr(self, column)
            self._sums[column] = numpy.append(values.sum(), _draws(len(values)) @ values)
        return self._sums[column]

    def to_dict(self) -> dict:
        """Plain values for JSON, rounded far below the spread of the resamples."""
        return {
            "bytes_per_block": self.bytes_per_block,
            "text_sha256": self.text_sha256,
            "tokens": self.tokens.astype(int).tolist(),
            "bytes": self.bytes.astype(int).tolist(),
            "nll": self.nll.round(6).tolist(),
            "kld": self.kld.round(9).tolist(),
            "top1": self.top1.astype(int).tolist(),
        }


@dataclass(frozen=True)
class Difference:
    """A value, often a difference, and its interval [low, high]: in per cent for ppl, in thousandths of a nat (mnat) for kld,
    or in bits per byte."""

    value: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def difference(a: Blocks, b: Blocks, measure: str = "ppl") -> Difference:
    """Difference of a from b: of perplexity in per cent of b's ("ppl"), or of mean KLD in mnat ("kld").

    Raises InputError where the two were measured on different blocks.
    """
    if measure not in MEASURES:
        raise InputError(f"measure is {measure!r}; expected {' or '.join(MEASURES)}")
    if not numpy.array_equal(a.tokens, b.tokens):
        raise InputError(f"the two were measured on different texts: {len(a.tokens)} and {len(b.tokens)} blocks of "
                         f"{a.tokens.sum():g} and {b.tokens.sum():g} tokens; run dvc repro to measure both alike")
    if measure == "kld":
        return _interval(1000 * _ratio(a.sums("kld") - b.sums("kld"), a.sums("tokens")))
    return _interval(100 * numpy.expm1(_ratio(a.sums("nll") - b.sums("nll"), a.sums("tokens"))))


def difference_in_bits_per_byte(a: Blocks, b: Blocks) -> Difference:
    """Bits per byte of a minus those of b, two models with any tokenizers.

    Raises InputError where the two were not scored on the same text.
    """
    if (a.text_sha256, a.bytes_per_block, len(a.tokens)) != (b.text_sha256, b.bytes_per_block, len(b.tokens)):
        raise InputError(f"the two were not scored on the same text: {a.bytes.sum():g} and {b.bytes.sum():g} bytes in "
                         f"{len(a.tokens)} and {len(b.tokens)} blocks; expected one text, scored whole: joined/1 and sentence/1 "
                         "do so, while llama.cpp/1 leaves out parts that depend on the tokenizer")
    return _interval(_bits_per_byte(a) - _bits_per_byte(b))


def bits_per_byte(blocks: Blocks) -> Difference:
    """Bits per byte of scored text, with their interval."""
    return _interval(_bits_per_byte(blocks))


def mean_kld(blocks: Blocks) -> Difference:
    """Mean KLD in mnat, with its interval."""
    return _interval(1000 * _ratio(blocks.sums("kld"), blocks.sums("tokens")))


def in_order(measured: Mapping[str, Blocks], measure: str = "ppl") -> list[str]:
    """Names of the variants, lowest value first, whether or not their differences are significant."""
    totals = {name: float((blocks.nll if measure == "ppl" else blocks.kld).sum()) for name, blocks in measured.items()}
    return sorted(measured, key=lambda name: (totals[name], name))


def significant_pairs(measured: Mapping[str, Blocks], measure: str = "ppl") -> list[tuple[str, str]]:
    """(better, worse) for every pair of variants with a significant difference."""
    return [(better, worse) for better, worse in combinations(in_order(measured, measure), 2)
            if difference(measured[worse], measured[better], measure).is_significant]


def tiers(measured: Mapping[str, Blocks], measure: str = "ppl") -> list[list[str]]:
    """Names of the variants in tiers, from best to worst; within a tier nothing is ranked.

    Every variant of a tier differs significantly from every variant of the tiers after it.
    """
    order, separated = in_order(measured, measure), set(significant_pairs(measured, measure))
    found: list[list[str]] = []
    last_tie = -1  # position of the last variant that ties with one of those seen so far
    for i, name in enumerate(order):
        if i > last_tie:
            found.append([])
        found[-1].append(name)
        last_tie = max([i, last_tie, *(j for j in range(i + 1, len(order)) if (name, order[j]) not in separated)])
    return found


def _bits_per_byte(blocks: Blocks) -> numpy.ndarray:
    return _ratio(blocks.sums("nll"), blocks.sums("bytes")) / numpy.log(2)


def _ratio(sums: numpy.ndarray, weights: numpy.ndarray) -> numpy.ndarray:
    """Sum over sum; NaN for a resample of empty blocks."""
    with numpy.errstate(invalid="ignore"):
        return sums / weights


def _interval(values: numpy.ndarray) -> Difference:
    """The first value, and the interval of the others."""
    tail = 50 * (1 - LEVEL)
    low, high = numpy.nanpercentile(values[1:], [tail, 100 - tail])
    return Difference(float(values[0]), float(low), float(high))


@cache
def _draws(count: int) -> numpy.ndarray:
    """Number of times that each resample draws each block, float64 [RESAMPLES, count]."""
    return numpy.random.default_rng(SEED).multinomial(count, numpy.full(count, 1 / count), size=RESAMPLES).astype(numpy.float64)
