"""Statistics of timing samples."""

from __future__ import annotations

from statistics import median


def spread(samples: list[float]) -> dict:
    """Median, median absolute deviation (mad), 90th percentile (p90) and the samples themselves (raw).

    p90 is the smallest sample that at least nine in ten samples do not exceed.
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
    """Ratio of each pair; a drift of the machine between the pairs cancels."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]
