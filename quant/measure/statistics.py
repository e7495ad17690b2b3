"""Small numbers about samples of time."""

from __future__ import annotations

from statistics import median


def spread(samples: list[float]) -> dict:
    """Median, median absolute deviation and 90th percentile of raw samples, which are kept too."""
    middle = median(samples)
    ordered = sorted(samples)
    return {
        "median": middle,
        "mad": median(abs(sample - middle) for sample in samples),
        "p90": ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
        "raw": samples,
    }


def ratio_of_pairs(numerators: list[float], denominators: list[float]) -> float:
    """Median of the ratios pair by pair: what drifts between the pairs cancels."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def significant(value: float, digits: int = 6) -> float:
    """Rounded to significant digits, so that stored numbers read well and compare."""
    return float(f"{value:.{digits}g}")
