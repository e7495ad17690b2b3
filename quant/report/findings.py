"""The findings of a run: statements chosen by the data, as names and numbers; findings.md.jinja has their sentences.

Quality is compared in pairs on the same tokens: two variants are ranked only where the 95 % interval of their difference
excludes zero. A variant is faster than base only where every round was; two variants are ranked by speed only where the middle
halves of their samples do not overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quant.quality.bootstrap import Difference, difference, tiers
from quant.report.comparable import curves_but_for_the_fit, equal_but_for_the_selection, same_format
from quant.report.metrics import METRICS
from quant.report.results import Result, Run
from quant.report.subsets import (
    NEAR_PCT,
    SIMILAR_SIZE,
    compared,
    equal_grids,
    faster_than_base,
    fastest_of,
    four_bits,
    grid_of,
    near_base,
    pairs_of_variants,
    slower_than_base,
    smallest_of,
    trusted,
)
from quant.report.templates import environment
from quant.tensor.codebooks import LINEAR

AGREE_PCT = 0.1  # per cent of perplexity within which two runtimes of one model agree
MEMORY_BOUND = 0.5  # below this share of the memory bandwidth, base's decoding is not limited by memory


@dataclass(frozen=True)
class Finding:
    """A statement about a run. kind: the macro of findings.md.jinja that words it; names: the variants it names first, in its
    order; numbers: all else that the sentence shows."""

    kind: str
    names: tuple[str, ...]
    numbers: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The sentence, in Markdown."""
        sentences = environment().get_template("findings.md.jinja").module
        return str(getattr(sentences, self.kind)(self.names, self.numbers)).strip()


def findings(run: Run) -> list[Finding]:
    """The findings for the top of the report, most useful first."""
    found = [rule(run) for rule in _RULES]
    return [finding for finding in found if finding]


def order_by(run: Run, kind: str) -> list[list[str]]:
    """Variants in tiers, best first; within a tier nothing is ranked. kind: "kld" or "ppl"."""
    return tiers(compared(run, kind), kind)


def curve_pairs(run: Run) -> list[dict]:
    """What another choice of the range does, at the narrowest width of two curves that differ only in it."""
    return [{"name": two.name, "other": one.name, "bits": one.recipe.scheme.bits, "from_mnats": one.metrics["kld_mnats"],
             "to_mnats": two.metrics["kld_mnats"], "verdict": _verdict(difference(two.blocks, one.blocks, "kld"), "kld_mnats")}
            for one, two in curves_but_for_the_fit(run)]


def _finding(kind: str, results: Sequence[Result], **numbers: Any) -> Finding:
    return Finding(kind, tuple(result.name for result in results), numbers)


def _by_name(results: Sequence[Result], key: str) -> dict[str, float]:
    return {result.name: result.metrics[key] for result in results}


def _names(results: Sequence[Result]) -> list[str]:
    return [result.name for result in results]


def _change_of_perplexity(results: Sequence[Result]) -> dict:
    return {"within_pct": NEAR_PCT, "ppl_change_pct": _by_name(results, "ppl_change_pct"),
            "intervals": {r.name: tuple(r.quality["intervals"]["ppl_change_pct"]) for r in results}}


def _smallest(run: Run) -> Finding:
    """The smallest variant that hardly loses perplexity."""
    near = near_base(run)
    if not near:
        nearest = [min(run.others, key=lambda r: r.quality["intervals"]["ppl_change_pct"][1])]
        return _finding("none_near", nearest, **_change_of_perplexity(nearest))
    smallest = smallest_of(near)
    size = min(r.metrics["weights_mib"] for r in smallest)
    return _finding("smallest", smallest, weights_mib=size, times_smaller=run.base.metrics["weights_mib"] / size,
                    times_smaller_than_file=run.base.metrics["disk_mib"] / size, near=len(near), variants=len(run.others),
                    **_change_of_perplexity(smallest))


def _fastest(run: Run) -> Finding:
    """The fastest variant of those that beat base in every round, and the variants that are not clearly slower than it."""
    scattered = [r.name for r in run.others if r.is_timed and not r.is_trusted]
    if not trusted(run):
        return _finding("none_trusted", [], scattered=scattered)
    sure = faster_than_base(run)
    first, *overlapping = fastest_of(sure or trusted(run))
    if not sure:
        raw = first.decode["speedup"]["raw"]
        return _finding("none_faster", [first], decode_speedup=_by_name([first], "decode_speedup"), rounds=(min(raw), max(raw)),
                        scattered=scattered)
    return _finding("fastest", [first, *overlapping], decode_speedup=_by_name([first, *overlapping], "decode_speedup"),
                    decode_ms_per_token=first.metrics["decode_ms_per_token"], scattered=scattered)


def _best_at_four_bits(run: Run) -> Finding | None:
    """The closest to base among 4-bit variants of similar size."""
    four, larger = four_bits(run)
    if not four:
        return None
    first, *later = tiers({r.name: r.blocks for r in four}, "kld")
    best = sorted(run.named(first), key=lambda r: r.metrics["weights_mib"])
    return _finding("best_at_four_bits", best, kld_mnats=_by_name(best, "kld_mnats"), smallest=_names(smallest_of(best)),
                    weights_mib=best[0].metrics["weights_mib"], bits_per_weight=best[0].metrics["bits_per_weight"],
                    further=[name for tier in later for name in tier], larger=_names(larger), similar_size=SIMILAR_SIZE)


def _grids(run: Run) -> Finding | None:
    """Nonlinear grids against the linear one at equal size."""
    chosen = equal_grids(run)
    if not chosen:
        return None
    linear = next((r for r in chosen if grid_of(r) == LINEAR), None)
    against = {}
    for result in chosen:
        if linear and result is not linear:
            kld, ppl = (difference(result.blocks, linear.blocks, kind) for kind in ("kld", "ppl"))
            against[result.name] = {"kld": _verdict(kld, "kld_mnats"), "ppl": _verdict(ppl, "ppl"), "ppl_change_pct": ppl.value,
                                    "interval": (ppl.low, ppl.high)}
    return _finding("grids", chosen, weights_mib=chosen[0].metrics["weights_mib"], kld_mnats=_by_name(chosen, "kld_mnats"),
                    linear=linear and linear.name, against=against)


def _verdict(change: Difference, key: str) -> str:
    """Whether a significant difference in a metric is "better" or "worse", else "alike"."""
    if not change.is_significant:
        return "alike"
    return "better" if (change.value < 0) == (METRICS[key].better == "lower") else "worse"


def _size_and_speed(run: Run) -> Finding | None:
    """Whether smaller variants are faster."""
    smaller = [r for r in trusted(run) if r.metrics["weights_mib"] < run.base.metrics["weights_mib"]]
    slower, faster = ([r for r in found if r in smaller] for found in (slower_than_base(run), faster_than_base(run)))
    if not smaller:
        return None
    if not slower:
        return _finding("smaller_not_slower", [], smaller=len(smaller))
    share = run.base.decode["gb_per_s"] / run.base.speed["environment"]["memory_read_gb_per_s"]
    return _finding("smaller_not_faster", slower, smaller=len(smaller), slower=_names(slower), faster=_names(faster),
                    undecided=len(smaller) - len(slower) - len(faster),
                    memory_share_pct=100 * share if share < MEMORY_BOUND else None)


def _selections(run: Run) -> Finding | None:
    """The cost of quantizing more of the weights, under one scheme."""
    sets = equal_but_for_the_selection(run)
    if not sets:
        return None
    chosen = sorted(max(sets, key=len), key=lambda r: r.metrics["weights_mib"])
    changed = [r for r in chosen if r.quality["intervals"]["is_significant"]]
    return _finding("selections", chosen, weights_mib=_by_name(chosen, "weights_mib"), kld_mnats=_by_name(chosen, "kld_mnats"),
                    ppl_change_pct=_by_name(changed, "ppl_change_pct"))


def _same_format(run: Run) -> Finding | None:
    """Whether two implementations of one format agree, judged by divergence, the finer measure."""
    pairs = [{"names": (one.name, other.name), "kld_mnats": (one.metrics["kld_mnats"], other.metrics["kld_mnats"]),
              "is_significant": difference(one.blocks, other.blocks, "kld").is_significant,
              "only_second": sorted(set(other.quality["held_bytes"]) - set(one.quality["held_bytes"]))}
             for one, other in same_format(run)]
    return Finding("same_format", tuple(name for pair in pairs for name in pair["names"]), {"pairs": pairs}) if pairs else None


def _runtimes(run: Run) -> Finding | None:
    """Whether an unquantized variant of another runtime agrees with base."""
    kept = [r for r in run.others if r.method.runtime != run.base.method.runtime and r.variant.nominal_bits is None]
    return _finding("runtimes", kept, ppl_change_pct={r.name: abs(r.metrics["ppl_change_pct"]) for r in kept},
                    agree_pct=AGREE_PCT) if kept else None


def _unchanged(run: Run) -> Finding:
    """Variants whose perplexity is not significantly different from base's."""
    alike = [r for r in run.others if not r.quality["intervals"]["is_significant"]]
    pairs, counts = pairs_of_variants(run)
    return _finding("unchanged" if alike else "all_changed", alike, pairs=pairs, **counts)


_RULES: tuple[Callable[[Run], Finding | None], ...] = (
    _smallest, _fastest, _best_at_four_bits, _grids, _size_and_speed, _selections, _same_format, _runtimes, _unchanged,
)  # fmt: skip
