"""Which differences are real: paired block bootstrap over the text, 95 % intervals, without any model.

Neighbouring tokens are not independent, so blocks of consecutive tokens are drawn, not tokens (Künsch 1989); both
variants are scored on the same blocks, so what makes a block hard cancels. Every pair is drawn with the same seed.
An interval holds for its pair; of a hundred pairs that do not differ, about five are called real.
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
FEWEST_BLOCKS = 50  # shorter texts are cut finer
MEASURES = ("ppl", "kld")


@dataclass(frozen=True)
class Blocks:
    """Sums over consecutive scored tokens, [blocks]: tokens, nll and kld in nats, top1 a count."""

    tokens_per_block: int
    tokens: numpy.ndarray
    nll: numpy.ndarray
    kld: numpy.ndarray
    top1: numpy.ndarray

    @classmethod
    def cut(cls, nll: numpy.ndarray, kld: numpy.ndarray, top1: numpy.ndarray) -> Blocks:
        """From values per token in text order; the last block may be shorter."""
        size = max(1, min(BLOCK_TOKENS, len(nll) // FEWEST_BLOCKS))
        starts = numpy.arange(0, len(nll), size)
        sums = (numpy.add.reduceat(values.astype(numpy.float64), starts) for values in (numpy.ones(len(nll)), nll, kld, top1))
        return cls(size, *sums)

    @classmethod
    def from_dict(cls, values: Mapping) -> Blocks:
        """What `to_dict` gave, as it stands in reports/quality."""
        missing = {"tokens_per_block", "tokens", "nll", "kld", "top1"} - set(values)
        if missing:
            raise InputError(f"blocks lack {', '.join(sorted(missing))}; run dvc repro to measure again")
        columns = (numpy.asarray(values[key], dtype=numpy.float64) for key in ("tokens", "nll", "kld", "top1"))
        return cls(values["tokens_per_block"], *columns)

    def to_dict(self) -> dict:
        """For JSON; a millionth of a nat of a block's sum is far below what a resample moves."""
        return {
            "tokens_per_block": self.tokens_per_block,
            "tokens": self.tokens.astype(int).tolist(),
            "nll": self.nll.round(6).tolist(),
            "kld": self.kld.round(9).tolist(),
            "top1": self.top1.astype(int).tolist(),
        }


@dataclass(frozen=True)
class Difference:
    """value, and its interval from low to high: in per cent for ppl, in thousandths of a nat for kld."""

    value: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def difference(a: Blocks, b: Blocks, measure: str = "ppl") -> Difference:
    """How a differs from b: the change of perplexity in per cent of b's ("ppl"), or of mean KLD in mnat ("kld").

    Raises InputError where the two were not measured on the same blocks.
    """
    if measure not in MEASURES:
        raise InputError(f"measure is {measure!r}; expected {' or '.join(MEASURES)}")
    if not numpy.array_equal(a.tokens, b.tokens):
        raise InputError(f"the two were measured on different texts: {len(a.tokens)} and {len(b.tokens)} blocks of "
                         f"{a.tokens.sum():g} and {b.tokens.sum():g} tokens; run dvc repro to measure both alike")
    return _interval(a.nll - b.nll if measure == "ppl" else a.kld - b.kld, a.tokens, measure)


def mean_kld(blocks: Blocks) -> Difference:
    """The mean KLD itself, in mnat, with its interval."""
    return _interval(blocks.kld, blocks.tokens, "kld")


def in_order(measured: Mapping[str, Blocks], measure: str = "ppl") -> list[str]:
    """The variants' names by what was measured, the lowest first, whether or not their differences are real."""
    totals = {name: float((blocks.nll if measure == "ppl" else blocks.kld).sum()) for name, blocks in measured.items()}
    return sorted(measured, key=lambda name: (totals[name], name))


def real_pairs(measured: Mapping[str, Blocks], measure: str = "ppl") -> list[tuple[str, str]]:
    """(better, worse) for every two variants whose difference is real."""
    return [(better, worse) for better, worse in combinations(in_order(measured, measure), 2)
            if difference(measured[worse], measured[better], measure).is_real]


def tiers(measured: Mapping[str, Blocks], measure: str = "ppl") -> list[list[str]]:
    """The variants' names from best to worst in groups, within which nothing is ranked.

    A group ends only where each of its members and of those before differs for real from all that follow, so no variant
    stands above another that it can't be told from.
    """
    order, real = in_order(measured, measure), set(real_pairs(measured, measure))
    reach, found = 0, [order[:1]] if order else []  # reach: the last that one of those so far can't be told from
    for i, name in enumerate(order):
        if i > reach:
            found.append([name])
            reach = i
        elif i:
            found[-1].append(name)
        ties = [j for j in range(i + 1, len(order)) if (name, order[j]) not in real]
        reach = max([reach, *ties])
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
    """How often each resample draws each block, [RESAMPLES, count]."""
    return numpy.random.default_rng(SEED).multinomial(count, numpy.full(count, 1 / count), size=RESAMPLES).astype(numpy.float64)
