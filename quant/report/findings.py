"""What the numbers say, as sentences: each is chosen by the data it states, never assumed.

Quality is compared in pairs on the same tokens, and two variants are ranked only where the 95 % interval of their
difference leaves out zero. Speed is ranked only where every round of one was faster than every round of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from quant.quality.bootstrap import difference, real_pairs, tiers
from quant.report.comparable import equal_but_for_the_selection, same_format
from quant.report.results import Result, Run
from quant.report.subsets import NEAR, at_four_bits, compared, equal_grids, grid_of, near_base
from quant.report.wording import joined, named, signed, span

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
    costs = joined([f"{signed(r.metrics['ppl_change_pct'])} % ({_name_where_several(r, smallest)}{_interval(r)})"
                    for r in smallest])
    return (f"**Smallest within {NEAR:g} % of base's perplexity: {named(smallest)}**, {size:.2f} MiB of weights, "
            f"{ratio:.1f} times smaller than base in 32 bits; perplexity {costs}.")


def _name_where_several(result: Result, several: Sequence[Result]) -> str:
    return f"`{result.name}` " if len(several) > 1 else ""


def _interval(result: Result) -> str:
    low, high = result.quality["intervals"]["ppl_change_pct"]
    return f"95 % interval {signed(low)} to {signed(high)}"


def _fastest(run: Run) -> str:
    fastest = max(run.others, key=_decode_speedup)
    speedup = _decode_speedup(fastest)
    raw = fastest.decode["speedup"]["raw"]
    rivals = sorted((r for r in run.others if r is not fastest and max(r.decode["speedup"]["raw"]) >= min(raw)),
                    key=_decode_speedup, reverse=True)
    noisy = [r for r in (fastest, *rivals) if r.decode["is_noisy"]]
    doubt = f" The timings of {named(noisy)} scattered widely, even when measured again." if noisy else ""
    if min(raw) <= 1:
        return (f"**No variant decodes faster than base for certain.** The highest median is that of `{fastest.name}`, "
                f"{speedup:.2f} times base's speed, with rounds from {min(raw):.2f} to {max(raw):.2f}.{doubt}")
    if rivals:
        speeds = joined([f"{_decode_speedup(r):.2f}" for r in (fastest, *rivals)])
        return (f"**Fastest: {named([fastest, *rivals])}**, which decode at {speeds} times base's speed; rounds of the first "
                f"overlap with those of the {'other' if len(rivals) == 1 else 'others'}, so it is not ranked before "
                f"{'it' if len(rivals) == 1 else 'them'}.{doubt}")
    return (f"**Fastest: `{fastest.name}`**, which decodes at {speedup:.2f} times base's speed "
            f"({fastest.metrics['decode_ms_per_token']:.2f} ms per token).{doubt}")


def _best_at_four_bits(run: Run) -> str:
    four = {r.name: r.blocks for r in at_four_bits(run)}
    if not four:
        return ""
    first, *later = tiers(four, "kld")
    rest = [name for tier in later for name in tier]
    best = sorted(run.named(first), key=lambda r: r.metrics["weights_mib"])
    smallest = [r for r in best if r.metrics["weights_mib"] <= 1.0005 * best[0].metrics["weights_mib"]]
    size = (f"{best[0].metrics['weights_mib']:.2f} MiB or {best[0].metrics['bits_per_weight']:.2f} bits per weight, all tensors "
            "counted")
    if len(best) == 1:
        after = f" It is closer to base than {_code(rest)}." if rest else ""
        return f"**Best at 4 bits: `{best[0].name}`**, divergence {_divergence(best[0])}, {size}.{after}"
    after = f" All of them are closer to base than {_code(rest)}." if rest else ""
    divergence = span((r.metrics["kld_mnats"] for r in best), "{:.3f}")
    return (f"**Best at 4 bits: {named(best)}**, which this text does not put in order (divergence {divergence} mnat); the "
            f"smallest of them: {named(smallest)}, {size}.{after}")


def _grids(run: Run) -> str:
    chosen = equal_grids(run)
    if not chosen:
        return ""
    listed = joined([f"`{r.name}` {_divergence(r)}" for r in chosen])
    linear = [r for r in chosen if grid_of(r) == "linear"]
    verdicts = []
    for result in chosen:
        if linear and result is not linear[0]:
            by = {kind: difference(result.blocks, linear[0].blocks, kind) for kind in ("kld", "ppl")}
            verdicts.append(f"`{result.name}` is {_better_or_worse(by['kld'])} by divergence and "
                            f"{_better_or_worse(by['ppl'])} by perplexity ({_by_how_much(by['ppl'])})")
    said = f" Compared with `{linear[0].name}`, {'; '.join(verdicts)}." if verdicts else ""
    size = chosen[0].metrics["weights_mib"]
    return f"**Nonlinear against linear at equal size** ({size:.2f} MiB each): divergence {listed}.{said}"


def _better_or_worse(change) -> str:
    if not change.is_real:
        return "not different for certain"
    return "better" if change.value < 0 else "worse"


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
    rest = len(smaller) - len(slower) - len(faster)
    return (f"**Smaller is not faster by itself**: of {len(smaller)} variants smaller than base, {len(slower)} decode slower "
            f"({named(slower)}) and {len(faster)} faster{f' ({named(faster)})' if faster else ''}"
            f"{f'; {rest} cannot be told from it' if rest else ''}.{_unbound(run)}")


def _unbound(run: Run) -> str:
    """That size can't matter much, where base itself reads its weights at less than half of memory's speed."""
    share = run.base.decode["gb_per_s"] / run.base.speed["environment"]["memory_read_gb_per_s"]
    if share >= 0.5:
        return ""
    return (f" Reading base's weights at the speed of memory would take {100 * share:.0f} % of the time that it needs for a "
            "token: most of that time is for something else, and with a larger model the order may be another.")


def _selections(run: Run) -> str:
    sets = equal_but_for_the_selection(run)
    if not sets:
        return ""
    chosen = sorted(max(sets, key=len), key=lambda r: r.metrics["weights_mib"])
    parts = [f"`{r.name}` {r.metrics['weights_mib']:.2f} MiB, divergence {_divergence(r)}, perplexity {_change(r)}"
             for r in chosen]
    return f"**How much to quantize**, with one scheme, smallest first: {'; '.join(parts)}."


def _change(result: Result) -> str:
    if not result.quality["intervals"]["is_real"]:
        return "not changed for certain"
    return f"{signed(result.metrics['ppl_change_pct'])} %"


def _same_formats(run: Run) -> str:
    parts = []
    for ours, theirs in same_format(run):
        change = difference(ours.blocks, theirs.blocks, "ppl")
        real = "a real difference" if change.is_real else "no real difference"
        parts.append(f"`{ours.name}` {ours.metrics['ppl']:.4f} and `{theirs.name}` {theirs.metrics['ppl']:.4f} ({real})")
    return f"**One format, two implementations**: perplexity of {joined(parts)}." if parts else ""


def _runtimes(run: Run) -> str:
    kept = [r for r in run.others if r.method.runtime != run.base.method.runtime and r.variant.nominal_bits is None]
    if not kept:
        return ""
    parts = []
    for result in kept:
        change = abs(result.metrics["ppl_change_pct"])
        agrees = "agrees" if change <= AGREE else "**does not agree**"
        parts.append(f"`{result.name}` {agrees} with base, {change:.4f} % apart in perplexity")
    return f"**One scorer, two runtimes**: {joined(parts)}."


def _not_told_apart(run: Run) -> str:
    alike = [r for r in run.others if not r.quality["intervals"]["is_real"]]
    if not alike:
        return "**Every change of perplexity is real**: no variant's interval contains zero."
    return (f"**What perplexity can't tell**: whether {named(alike)} {'raises' if len(alike) == 1 else 'raise'} it or "
            f"{'lowers' if len(alike) == 1 else 'lower'} it, for the interval contains zero. {_finer(run)}")


def _finer(run: Run) -> str:
    measured = {r.name: r.blocks for r in run.others}
    pairs = len(measured) * (len(measured) - 1) // 2
    if not pairs:
        return ""
    kld, ppl = (len(real_pairs(measured, kind)) for kind in ("kld", "ppl"))
    if kld > ppl:
        return (f"Divergence, which compares whole distributions, is the finer measure: of {pairs} pairs of variants it tells "
                f"{kld} apart, perplexity {ppl}.")
    return f"Of {pairs} pairs of variants perplexity tells {ppl} apart, divergence {kld}."


def order_by(run: Run, kind: str) -> list[list[str]]:
    """Variants in tiers, best first; within a tier nothing is ranked. kind: "kld" or "ppl"."""
    return tiers(compared(run, kind), kind)


def _decode_speedup(result: Result) -> float:
    return result.decode["speedup"]["median"]


def _divergence(result: Result) -> str:
    return f"{result.metrics['kld_mnats']:.3f} mnat"


def _code(names: Sequence[str]) -> str:
    return joined([f"`{name}`" for name in names])
