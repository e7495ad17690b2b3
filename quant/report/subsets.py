"""Subsets of results used in several places, and the run's three headline numbers."""

from __future__ import annotations

from quant.quality.bootstrap import Blocks
from quant.report.comparable import equal_but_for_the_grid
from quant.report.results import Result, Run
from quant.tensor.codebooks import NAMES

OWN_TABLE = "table"  # the grid of a recipe that spells out its values
NEAR = 1.0  # per cent of perplexity that counts as "hardly worse"


def near_base(run: Run) -> list[Result]:
    """Variants whose perplexity is within NEAR of base's for certain: the whole of their interval is."""
    return [r for r in run.others if r.quality["intervals"]["ppl_change_pct"][1] <= NEAR]


def at_four_bits(run: Run) -> list[Result]:
    """Variants that store most of their codes in 4 bits."""
    return [r for r in run.others if r.variant.nominal_bits == 4]


def compared(run: Run, kind: str) -> dict[str, Blocks]:
    """What is ranked: by perplexity ("ppl") all variants, by divergence from base ("kld") all but base."""
    return {r.name: r.blocks for r in (run.others if kind == "kld" else run.results)}


def quantized(run: Run) -> list[Result]:
    """Variants that store codes: neither base, bf16 nor a GGUF file of floats."""
    return [r for r in run.others if r.variant.nominal_bits is not None]


def summary(run: Run) -> dict[str, float]:
    """The run in three numbers, for comparing experiments; one that no variant gives is left out."""
    numbers = {"fastest_decode_speedup": max(r.metrics["decode_speedup"] for r in run.others)}
    if near_base(run):
        numbers["smallest_1pct_mib"] = min(r.metrics["weights_mib"] for r in near_base(run))
    if at_four_bits(run):
        numbers["best_4bit_kld_mnats"] = min(r.metrics["kld_mnats"] for r in at_four_bits(run))
    return {key: round(value, 3) for key, value in numbers.items()}


def equal_grids(run: Run) -> list[Result]:
    """The largest set of variants that differ in their grid alone and are of equal size, the linear one first."""
    sets = equal_but_for_the_grid(run)
    equal = [s for s in sets if max(r.metrics["weights_mib"] for r in s) <= 1.001 * min(r.metrics["weights_mib"] for r in s)]
    return sorted(max(equal, key=len, default=[]), key=lambda r: [*NAMES, OWN_TABLE].index(grid_of(r)))


def grid_of(result: Result) -> str:
    """Name of the grid of a variant with a recipe; OWN_TABLE where the recipe spells one out."""
    codebook = result.recipe.scheme.codebook
    return codebook if isinstance(codebook, str) else OWN_TABLE
