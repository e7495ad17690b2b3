"""Subsets of results used in several places, and the run's three headline numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from quant.quality.bootstrap import Blocks, difference, significant_pairs
from quant.report.comparable import equal_but_for_the_grid
from quant.report.metrics import METRICS
from quant.report.results import Result, Run
from quant.tensor.codebooks import NAMES

OWN_TABLE = "table"  # the grid of a recipe that spells out its values
NEAR_PCT = 1.0  # per cent of perplexity that counts as "hardly worse"
SIMILAR_SIZE = 1.5  # 4-bit variants compete up to this many times the bits per weight of the smallest of them
FRONT = ("weights_mib", "kld_mnats")  # the two metrics of the Pareto front
EQUAL_SIZE = 1.001  # up to this ratio, sizes count as equal


def near_base(run: Run) -> list[Result]:
    """Variants whose 95 % interval of the change of perplexity ends at NEAR_PCT or below."""
    return [r for r in run.others if r.quality["intervals"]["ppl_change_pct"][1] <= NEAR_PCT]


def trusted(run: Run) -> list[Result]:
    """Variants whose timings are good enough to rank."""
    return [r for r in run.others if r.is_trusted]


def faster_than_base(run: Run) -> list[Result]:
    """Variants that decoded faster than base in every round, of trusted timings."""
    return [r for r in trusted(run) if min(r.decode["speedup"]["raw"]) > 1]


def slower_than_base(run: Run) -> list[Result]:
    """Variants that decoded slower than base in every round, of trusted timings."""
    return [r for r in trusted(run) if max(r.decode["speedup"]["raw"]) < 1]


def fastest_of(results: Sequence[Result]) -> list[Result]:
    """The result that decodes fastest, then those that are not clearly slower: the middle halves of their samples overlap."""
    first = max(results, key=lambda r: r.metrics["decode_speedup"])
    overlapping = [r for r in results if r is not first and not is_clearly_faster(first, r)]
    return [first, *sorted(overlapping, key=lambda r: -r.metrics["decode_speedup"])]


def is_clearly_faster(one: Result, other: Result) -> bool:
    """Whether the middle half of one's decoding speeds lies above that of the other's; single outliers don't count."""
    return numpy.percentile(one.decode["speedup"]["raw"], 25) > numpy.percentile(other.decode["speedup"]["raw"], 75)


def closest_of(results: Sequence[Result]) -> list[Result]:
    """The result with the least divergence from base, then those that do not differ from it significantly."""
    first, *others = sorted(results, key=lambda r: r.metrics["kld_mnats"])
    return [first, *(r for r in others if not difference(r.blocks, first.blocks, "kld").is_significant)]


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
    """Variants that no other beats in both metrics of FRONT, the smallest first; each is significantly closer to base than the
    one before."""
    points = [tuple(r.metrics[key] for key in FRONT) for r in run.others]
    front: list[Result] = []
    for result in (run.others[i] for i in pareto_front(points)):
        if not front or difference(result.blocks, front[-1].blocks, "kld").is_significant:  # it is lower by construction
            front.append(result)
    return [result.name for result in front]


def grid_of(result: Result) -> str:
    """Name of the grid of a variant with a recipe; OWN_TABLE where the recipe spells one out."""
    codebook = result.recipe.scheme.codebook
    return codebook if isinstance(codebook, str) else OWN_TABLE


def summary(run: Run) -> dict[str, float]:
    """The run in three numbers, to compare experiments by; a number that no variant gives reliably is left out."""
    def best(key: str, results: list[Result]) -> float:
        return METRICS[key].best(r.metrics[key] for r in results)

    numbers = {}
    if faster_than_base(run):
        numbers["fastest_decode_speedup"] = best("decode_speedup", faster_than_base(run))
    if near_base(run):
        numbers["smallest_1pct_mib"] = best("weights_mib", near_base(run))
    if four_bits(run)[0]:
        numbers["best_4bit_kld_mnats"] = best("kld_mnats", four_bits(run)[0])
    return {key: round(value, 3) for key, value in numbers.items()}
