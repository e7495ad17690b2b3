"""Small numbers about samples of time."""

from __future__ import annotations

from statistics import median


def spread(samples: list[float]) -> dict:
    """Median, median absolute deviation and 90th percentile of raw samples, which are kept too.

    p90 is the smallest sample that nine in ten do not exceed.
    """
    middle = median(samples)
    ordered = sorted(samples)
    return {
        "median": middle,
        "mad": median(abs(sample - middle) for sample in samples),
        "p90": ordered[(9 * len(ordered) + 9) // 10 - 1],
        "raw": samples,
    }


def ratios_of_pairs(numerators: list[float], denominators: list[float]) -> list[float]:
    """Pair by pair: what drifts between the pairs cancels."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]
