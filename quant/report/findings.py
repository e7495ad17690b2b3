"""What the numbers say, as sentences: each is chosen by the data it states, never assumed.

Quality is compared in pairs on the same tokens, and two variants are ranked only where the 95 % interval of their
difference leaves out zero. Speed is ranked only where every round of one was faster than every round of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from quant.measure.bootstrap import difference, tiers
from quant.report.kinship import equal_but_for_the_selection, nominal_bits, same_format
from quant.report.results import Result, Run
from quant.report.selection import NEAR, at_four_bits, equal_grids, grid_of, near_base
from quant.report.words import joined, named, signed

AGREE = 0.1  # per cent of perplexity within which two runtimes of one model agree


def findings(run: Run) -> list[str]:
    """Sentences for the top of the report, most useful first."""
    found = [_smallest_near(run), _fastest(run), _best_at_four_bits(run), _grids(run), _size_and_speed(run), _selections(run),
             _same_formats(run), _runtimes(run), _not_told_apart(run)]
    return [sentence for sentence in found if sentence]


def _smallest_near(run: Run) -> str:
    def highest(result: Result) -> float:
        return result.quality["intervals"]["ppl_change_pct"][1]

    near = near_base(run)
    if not near:
        least = min(run.others, key=highest)
        return (f"**No variant is within {NEAR:g} % of base's perplexity for certain.** The interval that reaches least high is "
                f"that of `{least.name}`, {_interval(least)}.")
    size = min(r.metrics["weights_mib"] for r in near)
    smallest = [r for r in near if r.metrics["weights_mib"] <= 1.0005 * size]
    ratio = run.base.metrics["weights_mib"] / size
    costs = joined([f"{signed(r.metrics['ppl_change_pct'])} % of perplexity ({_name_where_several(r, smallest)}{_interval(r)})"
                    for r in smallest])
    return (f"**Smallest within {NEAR:g} % of base's perplexity: {named(smallest)}**, {size:.2f} MiB of weights, "
            f"{ratio:.1f} times smaller than base, at {costs}.")


def _name_where_several(result: Result, several: Sequence[Result]) -> str:
    return f"`{result.name}` " if len(several) > 1 else ""


def _interval(result: Result) -> str:
    low, high = result.quality["intervals"]["ppl_change_pct"]
    return f"95 % interval {signed(low)} to {signed(high)}"


def _fastest(run: Run) -> str:
    fastest = max(run.others, key=_decode_speedup)
    speedup = _decode_speedup(fastest)
    raw = fastest.decode["speedup"]["raw"]
    rivals = [r for r in run.others if r is not fastest and max(r.decode["speedup"]["raw"]) >= min(raw)]
    noisy = [r for r in (fastest, *rivals) if r.decode["is_noisy"]]
    doubt = f" The timings of {named(noisy)} scattered widely, even when measured again." if noisy else ""
    if min(raw) <= 1:
        return (f"**No variant decodes faster than base for certain.** The highest median is that of `{fastest.name}`, "
                f"{speedup:.2f} times base's speed, with rounds from {min(raw):.2f} to {max(raw):.2f}.{doubt}")
    rivalry = ""
    if rivals:
        rivalry = f" Rounds of {named(rivals)} overlap with its own, so it is not ranked before {_them(rivals)}."
    return (f"**Fastest: `{fastest.name}`**, which decodes at {speedup:.2f} times base's speed "
            f"({fastest.metrics['decode_ms_per_token']:.2f} ms per token).{rivalry}{doubt}")


def _best_at_four_bits(run: Run) -> str:
    four = {r.name: r.blocks for r in at_four_bits(run)}
    if not four:
        return ""
    first, *later = tiers(four, "kld")
    rest = [name for tier in later for name in tier]
    best = run.named(first)
    best.sort(key=lambda r: r.metrics["bits_per_weight"])
    numbers = joined([f"{_name_where_several(r, best)}{_divergence(r)} at {r.metrics['bits_per_weight']:.2f} bits per weight"
                      for r in best])
    after = f" Closer to base than {_code(rest)}." if rest else ""
    if len(best) == 1:
        return f"**Best at 4 bits: `{best[0].name}`**, divergence {numbers}, all tensors counted.{after}"
    return (f"**Best at 4 bits: {named(best)}, which this text does not put in order**: divergence, all tensors counted, "
            f"the smallest first: {numbers}.{after}")


def _grids(run: Run) -> str:
    chosen = equal_grids(run)
    if not chosen:
        return ""
    listed = joined([f"`{r.name}` {_divergence(r)}" for r in chosen])
    linear = [r for r in chosen if grid_of(r, run) == "linear"]
    verdicts = []
    for result in chosen:
        if linear and result is not linear[0]:
            by = {kind: difference(result.blocks, linear[0].blocks, kind) for kind in ("kld", "ppl")}
            verdicts.append(f"`{result.name}` {_better_or_worse(by['kld'])} `{linear[0].name}` by divergence, and by perplexity "
                            f"{_better_or_worse(by['ppl'])} it ({_by_how_much(by['ppl'])})")
    said = f" {joined(verdicts)}." if verdicts else ""
    size = chosen[0].metrics["weights_mib"]
    return f"**Nonlinear against linear at equal size** ({size:.2f} MiB each): divergence {listed}.{said}"


def _better_or_worse(change) -> str:
    if not change.is_real:
        return "can't be told from"
    return "is better than" if change.value < 0 else "is worse than"


def _by_how_much(change) -> str:
    return f"{signed(change.value)} %, interval {signed(change.low)} to {signed(change.high)}"


def _size_and_speed(run: Run) -> str:
    smaller = [r for r in run.others if r.metrics["weights_mib"] < run.base.metrics["weights_mib"]]
    slower = [r for r in smaller if max(r.decode["speedup"]["raw"]) < 1]
    faster = [r for r in smaller if min(r.decode["speedup"]["raw"]) > 1]
    if not smaller:
        return ""
    if not slower:
        return f"**Smaller is not slower here**: of {len(smaller)} smaller variants none decodes slower than base for certain."
    return (f"**Smaller is not faster by itself**: of {len(smaller)} variants smaller than base, {len(slower)} decode slower "
            f"({named(slower)}) and {len(faster)} faster{f' ({named(faster)})' if faster else ''}.")


def _selections(run: Run) -> str:
    sets = [run.named(names) for names in equal_but_for_the_selection(run.params)]
    if not sets:
        return ""
    chosen = sorted(max(sets, key=len), key=lambda r: r.metrics["weights_mib"])
    parts = [f"`{r.name}` {r.metrics['weights_mib']:.2f} MiB at {signed(r.metrics['ppl_change_pct'])} % of perplexity{_unreal(r)}"
             for r in chosen]
    return f"**How much to quantize**, with one scheme, smallest first: {joined(parts)}."


def _unreal(result: Result) -> str:
    return "" if result.quality["intervals"]["is_real"] else " (not a real change)"


def _same_formats(run: Run) -> str:
    parts = []
    for ours, theirs in (run.named(pair) for pair in same_format(run.params)):
        change = difference(ours.blocks, theirs.blocks, "ppl")
        real = "a real difference" if change.is_real else "no real difference"
        parts.append(f"`{ours.name}` {ours.metrics['ppl']:.4f} and `{theirs.name}` {theirs.metrics['ppl']:.4f} ({real})")
    return f"**One format, two implementations**: perplexity of {joined(parts)}." if parts else ""


def _runtimes(run: Run) -> str:
    kept = [r for r in run.others if r.family == "gguf" and nominal_bits(r.name, run.params) is None]
    if not kept:
        return ""
    parts = []
    for result in kept:
        change = abs(result.metrics["ppl_change_pct"])
        agrees = "agrees" if change <= AGREE else "**does not agree**"
        parts.append(f"`{result.name}` {agrees} with base, {change:.4f} % apart in perplexity")
    return f"**One scorer, two runtimes**: llama.cpp's {joined(parts)}."


def _not_told_apart(run: Run) -> str:
    alike = [r for r in run.others if not r.quality["intervals"]["is_real"]]
    if not alike:
        return "**Every change of perplexity is real**: no variant's interval contains zero."
    return (f"**What perplexity can't tell**: the interval of {named(alike)} contains zero; whether perplexity rises or falls, "
            "this text does not show. Divergence, which looks at the whole distribution, is the finer measure.")


def order_by(run: Run, kind: str) -> list[list[str]]:
    """All variants in tiers, best first; within a tier nothing is ranked. kind: "kld" or "ppl"."""
    return tiers({r.name: r.blocks for r in run.results}, kind)


def _decode_speedup(result: Result) -> float:
    return result.decode["speedup"]["median"]


def _divergence(result: Result) -> str:
    return f"{result.metrics['kld_mnats']:.3f} mnat"


def _code(names: Sequence[str]) -> str:
    return joined([f"`{name}`" for name in names])


def _them(several: Sequence) -> str:
    return "it" if len(several) == 1 else "them"
