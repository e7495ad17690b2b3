"""The example of quantization-aware training beside rounding to nearest: its table, and what training gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quant.report.tables import grid
from quant.report.wording import joined, number

TRAINED = "trained"


def table(trained: Mapping) -> str:
    """Two rows for each scheme that was trained: rounded to nearest, and trained."""
    names = [row["scheme"] for row in trained["rows"] if row["way"] == TRAINED]
    return grid(["weights", "made by", "bits / weight", "at least", "ppl", "ppl %", "95 % interval", "KLD mnat", "95 % interval",
                 "top-1 %"], [_cells(row) for row in trained["rows"] if row["scheme"] in names], left=2)


def _cells(row: Mapping) -> list[str]:
    intervals = row["intervals"]
    return [
        levels(row), {TRAINED: "training"}.get(row["way"], "rounding to nearest"), f"{row['bits_per_weight']:.2f}",
        f"{row['least_bits_per_weight']:.2f}", f"{row['ppl']:.2f}", number(row["ppl_change_pct"], "{:+.3f}"),
        _span(intervals["ppl_change_pct"], "{:+.3f}"), f"{row['kld_mnats']:.2f}", _span(intervals["kld_mnats"], "{:.2f}"),
        f"{row['top1_agree_pct']:.1f}",
    ]  # fmt: skip


def levels(row: Mapping) -> str:
    """The name of a row: "4 levels", or of the ternary ones "3 levels"."""
    return f"{row['levels']} levels"


def gains(trained: Mapping) -> list[str]:
    """For each trained scheme: how much closer to the unquantized model training is than rounding at the same bits, and where it
    stands among schemes of more levels that are only rounded."""
    rounded = {row["scheme"]: row for row in trained["rows"] if row["way"] != TRAINED}
    return [_gain(row, rounded) for row in trained["rows"] if row["way"] == TRAINED]


def _gain(row: Mapping, rounded: Mapping[str, Mapping]) -> str:
    before, pairs = rounded[row["scheme"]], row["kld_mnats_minus_nearest"]
    verdict = {"closer": f"{before['kld_mnats'] / row['kld_mnats']:.1f} times less", "further": "training made it worse",
               "alike": "no significant gain"}[_verdict(pairs[row["scheme"]])]
    said = f"**{levels(row)}**: rounded {before['kld_mnats']:.1f} mnat, trained {row['kld_mnats']:.1f}, {verdict}."
    others = sorted((r for r in rounded.values() if r["levels"] > row["levels"]), key=lambda r: r["levels"])
    compared = [_against(other, pairs[other["scheme"]]) for other in others]
    return f"{said} Trained, it is {joined(compared)}." if compared else said


def _against(other: Mapping, pair: Sequence[float]) -> str:
    words = {"closer": "closer than", "further": "further than", "alike": "not significantly different from"}[_verdict(pair)]
    return (f"{words} rounding to {levels(other)} ({other['bits_per_weight']:.2f} bits, {other['kld_mnats']:.1f} mnat; "
            f"difference {pair[0]:+.1f}, 95 % interval {_span(pair[1:], '{:+.1f}')})")


def _verdict(pair: Sequence[float]) -> str:
    """Whether the first of a pair diverges significantly less, by its difference and the ends of the interval."""
    return "closer" if pair[2] < 0 else "further" if pair[1] > 0 else "alike"


def _span(ends: Sequence[float], form: str) -> str:
    return " to ".join(number(end, form) for end in ends)
