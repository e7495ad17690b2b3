"""Subsets of results used in several places, and the run's three headline numbers."""

from __future__ import annotations

from collections.abc import Sequence

from quant.quality.bootstrap import Blocks, significant_pairs
from quant.report.comparable import equal_but_for_the_grid
from quant.report.metrics import METRICS
from quant.report.results import Result, Run
from quant.tensor.codebooks import NAMES

OWN_TABLE = "table"  # the grid of a recipe that spells out its values
NEAR_PCT = 1.0  # per cent of perplexity that counts as "hardly worse"
SIMILAR_SIZE = 1.5  # 4-bit variants compete up to this many times the bits per weight of the smallest of them
FRONT = ("weights_mib", "ppl")  # the two metrics of the Pareto front
EQUAL_SIZE = 1.001  # up to this ratio, sizes count as equal


def near_base(run: Run) -> list[Result]:
    """Variants whose 95 % interval of the change of perplexity ends at NEAR_PCT or below."""
    return [r for r in run.others if r.quality["intervals"]["ppl_change_pct"][1] <= NEAR_PCT]


def faster_than_base(run: Run) -> list[Result]:
    """Variants that decoded faster than base in every round."""
    return [r for r in run.others if min(r.decode["speedup"]["raw"]) > 1]


def slower_than_base(run: Run) -> list[Result]:
    """Variants that decoded slower than base in every round."""
    return [r for r in run.others if max(r.decode["speedup"]["raw"]) < 1]


def four_bits(run: Run) -> tuple[list[Result], list[Result]]:
    """Variants that store most of their codes in 4 bits: those of similar size, which compete, and the larger ones.

    A variant that keeps most of its weights in floating point is close to base for that reason, so it does not compete.
    """
    found = [r for r in run.others if r.variant.nominal_bits == 4]
    most = SIMILAR_SIZE * min((r.metrics["bits_per_weight"] for r in found), default=0.0)
    return [r for r in found if r.metrics["bits_per_weight"] <= most], [r for r in found if r.metrics["bits_per_weight"] > most]


def smallest_of(results: list[Result]) -> list[Result]:
    """The smallest results by weights in memory, all of them where several are equally small."""
    least = min(r.metrics["weights_mib"] for r in results)
    return [r for r in results if r.metrics["weights_mib"] <= EQUAL_SIZE * least]


def compared(run: Run, kind: str) -> dict[str, Blocks]:
    """The results to rank: all of them by perplexity ("ppl"), all but base by divergence from base ("kld")."""
    return {r.name: r.blocks for r in (run.others if kind == "kld" else run.results)}


def pairs_of_variants(run: Run) -> tuple[int, dict[str, int]]:
    """The number of pairs of variants without base, and how many of them differ significantly: by "kld" and by "ppl"."""
    measured = {r.name: r.blocks for r in run.others}
    return len(measured) * (len(measured) - 1) // 2, {kind: len(significant_pairs(measured, kind)) for kind in ("kld", "ppl")}


def quantized(run: Run) -> list[Result]:
    """Variants that store codes, not floating-point numbers alone."""
    return [r for r in run.others if r.variant.nominal_bits is not None]


def equal_grids(run: Run) -> list[Result]:
    """The largest set of variants of equal size that differ only in their grid, the linear one first; empty if there is none."""
    sets = [found for found in equal_but_for_the_grid(run) if len(smallest_of(found)) == len(found)]
    return sorted(max(sets, key=len, default=[]), key=lambda r: [*NAMES, OWN_TABLE].index(grid_of(r)))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates, by the first coordinate. Less is better."""
    front: list[int] = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < best:
            front.append(index)
            best = points[index][1]
    return front


def front_names(run: Run) -> list[str]:
    """Variants that no other beats in both metrics of FRONT, the smallest first."""
    signs = [1 if METRICS[key].better == "lower" else -1 for key in FRONT]
    points = [tuple(sign * r.metrics[key] for sign, key in zip(signs, FRONT, strict=True)) for r in run.results]
    return [run.results[i].name for i in pareto_front(points)]


def grid_of(result: Result) -> str:
    """Name of the grid of a variant with a recipe; OWN_TABLE where the recipe spells one out."""
    codebook = result.recipe.scheme.codebook
    return codebook if isinstance(codebook, str) else OWN_TABLE


def summary(run: Run) -> dict[str, float]:
    """The run in three numbers, to compare experiments by; a number that no variant gives is left out."""
    def best(key: str, results: list[Result]) -> float:
        return METRICS[key].best(r.metrics[key] for r in results)

    numbers = {"fastest_decode_speedup": best("decode_speedup", run.others)}
    if near_base(run):
        numbers["smallest_1pct_mib"] = best("weights_mib", near_base(run))
    if four_bits(run)[0]:
        numbers["best_4bit_kld_mnats"] = best("kld_mnats", four_bits(run)[0])
    return {key: round(value, 3) for key, value in numbers.items()}
