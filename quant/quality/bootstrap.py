"""Paired block bootstrap over the text: 95 % intervals, and which differences are significant. Needs no model.

Neighbouring tokens are not independent, so blocks of consecutive tokens are drawn, not tokens (Künsch 1989). Both variants
are scored on the same blocks, so the difficulty of a block cancels. Every pair is drawn with the same seed. Intervals are not
corrected for many pairs: of a hundred pairs that do not differ, about five come out as significant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy

from quant.errors import InputError

LEVEL = 0.95
RESAMPLES = 4000
SEED = 0
BLOCK_TOKENS = 128
MIN_BLOCKS = 50  # a short text is cut into smaller blocks
MEASURES = ("ppl", "kld")


@dataclass(frozen=True)
class Blocks:
    """Sums over blocks of consecutive scored tokens, float64 [blocks]: tokens and top1 are counts, nll and kld are in nats."""

    tokens_per_block: int
    tokens: numpy.ndarray
    nll: numpy.ndarray
    kld: numpy.ndarray
    top1: numpy.ndarray

    @classmethod
    def cut(cls, nll: numpy.ndarray, kld: numpy.ndarray, top1: numpy.ndarray) -> Blocks:
        """Sum values per token, in text order, over blocks; the last block may be shorter."""
        size = max(1, min(BLOCK_TOKENS, len(nll) // MIN_BLOCKS))
        starts = numpy.arange(0, len(nll), size)
        sums = (numpy.add.reduceat(values.astype(numpy.float64), starts) for values in (numpy.ones(len(nll)), nll, kld, top1))
        return cls(size, *sums)

    @classmethod
    def from_dict(cls, values: Mapping) -> Blocks:
        """Read the form of `to_dict`. Raises InputError where a key is missing."""
        missing = {"tokens_per_block", "tokens", "nll", "kld", "top1"} - set(values)
        if missing:
            raise InputError(f"blocks lack {', '.join(sorted(missing))}; run dvc repro to measure again")
        columns = (numpy.asarray(values[key], dtype=numpy.float64) for key in ("tokens", "nll", "kld", "top1"))
        return cls(values["tokens_per_block"], *columns)

    def to_dict(self) -> dict:
        """Plain values for JSON, rounded far below the spread of the resamples."""
        return {
            "tokens_per_block": self.tokens_per_block,
            "tokens": self.tokens.astype(int).tolist(),
            "nll": self.nll.round(6).tolist(),
            "kld": self.kld.round(9).tolist(),
            "top1": self.top1.astype(int).tolist(),
        }


@dataclass(frozen=True)
class Difference:
    """A difference and its interval [low, high]: in per cent for ppl, in thousandths of a nat (mnat) for kld."""

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
    return _interval(a.nll - b.nll if measure == "ppl" else a.kld - b.kld, a.tokens, measure)


def mean_kld(blocks: Blocks) -> Difference:
    """Mean KLD in mnat, with its interval."""
    return _interval(blocks.kld, blocks.tokens, "kld")


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


def _interval(sums: numpy.ndarray, tokens: numpy.ndarray, measure: str) -> Difference:
    def unit(mean):
        return 100 * numpy.expm1(mean) if measure == "ppl" else 1000 * mean

    drawn = _draws(len(sums))
    tail = 50 * (1 - LEVEL)
    low, high = numpy.percentile((drawn @ sums) / (drawn @ tokens), [tail, 100 - tail])
    return Difference(float(unit(sums.sum() / tokens.sum())), float(unit(low)), float(unit(high)))


@cache
def _draws(count: int) -> numpy.ndarray:
    """Number of times that each resample draws each block, float64 [RESAMPLES, count]."""
    return numpy.random.default_rng(SEED).multinomial(count, numpy.full(count, 1 / count), size=RESAMPLES).astype(numpy.float64)
