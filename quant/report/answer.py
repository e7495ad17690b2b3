"""The first screen of the report: the variant to take for a budget of memory and for a use, with its reason and its doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quant.report.comparable import equal_layout
from quant.report.metrics import METRICS
from quant.report.results import Result, Run
from quant.report.subsets import NEAR_PCT, closest_of, faster_than_base, fastest_of, is_clearly_faster, near_base, smallest_of
from quant.report.tables import OF_16_BIT, grid, mib_in_16_bits
from quant.report.wording import number, signed, some

BUDGETS = {"half": 2, "a quarter": 4, "a sixth": 6}  # of the 16-bit weights, and the divisor
# Words for a divergence up to so many mnat. The limits lie between the types of llama.cpp on Llama 3 8B: Q8_0 1.4 mnat, Q6_K 5.5,
# Q5_K_M 11, Q4_K_M 31, Q4_0 72 (llama.cpp, tools/quantize/README.md)
SCALE = {3.0: "hardly any", 8.0: "very small", 20.0: "small", 50.0: "moderate", 200.0: "large"}
BEYOND = "very large"


@dataclass(frozen=True)
class Choice:
    """A variant for a purpose; result None: nothing fits. certainty: how sure the choice is, a phrase in Markdown."""

    purpose: str
    result: Result | None
    certainty: str


def in_words(kld_mnats: float) -> str:
    """A divergence in words."""
    return next((word for limit, word in SCALE.items() if kld_mnats <= limit), BEYOND)


def choices(run: Run) -> list[Choice]:
    """One choice for each budget of BUDGETS, then one for each use."""
    full = mib_in_16_bits(run.base)
    budgets = [_for_budget(run, f"{share} of 16 bits ({full / divisor:.2f} MiB)", full / divisor)
               for share, divisor in BUDGETS.items()]
    return [*budgets, _accuracy(run, full), _speed(run), _size(run)]


def answer_table(run: Run) -> str:
    """The choices as a Markdown table."""
    rows = [[choice.purpose, *_cells(run, choice.result), choice.certainty] for choice in choices(run)]
    headings = ["for", "take", "MiB", "of 16-bit", "divergence", "perplexity", "tokens/s", "how sure"]
    return grid(headings, rows, left=2, text_last=True)


def answer_lines(run: Run) -> list[str]:
    """The choices as lines of plain text, for a terminal."""
    rows = [["for", "take", "MiB", "of 16-bit", "divergence", "perplexity", "tokens/s"]]
    rows += [[cell.replace("`", "") for cell in (choice.purpose, *_cells(run, choice.result))] for choice in choices(run)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def left_out_lines(run: Run) -> list[str]:
    """How many rows were left out, and why, in a line each; none where all were made. For a terminal."""
    if not run.left_out:
        return []
    total = len(run.left_out) + len(run.results)
    return [f"left out: {len(run.left_out)} of {total} rows, which could not be made or run here",
            *(f"  {one.line}" for one in run.left_out)]


def _cells(run: Run, result: Result | None) -> list[str]:
    if result is None:
        return ["nothing fits", "", "", "", "", ""]
    kld = result.metrics["kld_mnats"]
    return [f"`{result.name}`", METRICS["weights_mib"].format(result.metrics["weights_mib"]), OF_16_BIT.cell(result),
            f"{number(kld, '{:.3g}')} mnat, {in_words(kld)}",
            f"{signed(result.metrics['ppl_change_pct'])} %", _speed_of(run, result)]


def _speed_of(run: Run, result: Result) -> str:
    """Tokens a second; those of a variant with the same layout where `result` itself was not timed."""
    timed = result if result.is_timed else equal_layout(run, result)
    if timed is None:
        return ""
    speed = number(timed.decode["tokens_per_s"], "{:.0f}") if timed.is_trusted else "not reliable"
    return speed if timed is result else f"{speed} (as `{timed.name}`)"


def _for_budget(run: Run, purpose: str, budget_mib: float) -> Choice:
    """The variant closest to base that fits; of several that do not differ significantly, the fastest, else the smallest."""
    fitting = [r for r in run.others if r.metrics["weights_mib"] <= budget_mib]
    if not fitting:
        return Choice(purpose, None, "no variant is this small")
    chosen, alike = _preferred(closest_of(fitting))
    if len(fitting) == 1:
        return Choice(purpose, chosen, "the only variant that fits")
    if not alike:
        others = "the other one that fits" if len(fitting) == 2 else f"the other {len(fitting) - 1} that fit"
        return Choice(purpose, chosen, f"significantly closer to base than {others}")
    return Choice(purpose, chosen, f"as close to base as {some(alike)}; {_why(chosen, alike)}")


def _accuracy(run: Run, full_mib: float) -> Choice:
    purpose = "accuracy first, below 16 bits"
    smaller = [r for r in run.others if r.metrics["weights_mib"] < full_mib]
    if not smaller:
        return Choice(purpose, None, "no variant is smaller than the 16-bit weights")
    first, *alike = closest_of(smaller)
    doubt = f"not significantly closer to base than {some(alike)}" if alike else "significantly closer to base than all others"
    return Choice(purpose, first, doubt)


def _speed(run: Run) -> Choice:
    near, purpose = near_base(run), f"fastest within {NEAR_PCT:g} % of perplexity"
    sure = [r for r in faster_than_base(run) if r in near]
    if not sure:
        return Choice(purpose, None, "no variant within it is reliably faster than base")
    first, *overlapping = fastest_of(sure)
    doubt = f"not clearly faster than {some(overlapping)}" if overlapping else "clearly faster than all others"
    speed = METRICS["decode_speedup"].format(first.metrics["decode_speedup"])
    return Choice(purpose, first, f"{speed} times base's speed; {doubt}")


def _size(run: Run) -> Choice:
    near = near_base(run)
    purpose = f"smallest within {NEAR_PCT:g} % of perplexity"
    if not near:
        return Choice(purpose, None, "no variant is reliably within it")
    chosen, alike = _preferred(smallest_of(near))
    low, high = chosen.quality["intervals"]["ppl_change_pct"]
    beside = f"; as small as {some(alike)}" if alike else ""
    return Choice(purpose, chosen, f"the change of perplexity is between {signed(low)} and {signed(high)} % (95 %){beside}")


def _preferred(alike: Sequence[Result]) -> tuple[Result, list[Result]]:
    """Of results that are equally good: the one to take, and the others."""
    quick = [r for r in alike if r.is_trusted]
    chosen = fastest_of(quick)[0] if quick else min(alike, key=lambda r: r.metrics["weights_mib"])
    return chosen, [r for r in alike if r is not chosen]


def _why(chosen: Result, alike: Sequence[Result]) -> str:
    """Why `chosen` was taken rather than those that are as close."""
    if not chosen.is_trusted:
        return "the smallest of them"
    sure = all(is_clearly_faster(chosen, r) for r in alike if r.is_trusted)
    return "the fastest of them" if sure else "the fastest of them by its median"


def scale_in_words() -> str:
    """SCALE as a phrase."""
    return ", ".join([*(f"{word} up to {limit:g}" for limit, word in SCALE.items()), f"{BEYOND} beyond"])
