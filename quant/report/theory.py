"""The numbers of the chapter on grids: tables of values, a worked example, group sizes, and QLoRA's results beside this run's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quant.quality.bootstrap import difference
from quant.report.metrics import METRICS
from quant.report.results import Result, Run
from quant.report.subsets import equal_grids, grid_of
from quant.report.tables import grid
from quant.report.wording import joined, number
from quant.tensor.codebooks import CODEBOOKS, LINEAR, label_of

BITS = 4
MIDDLE = 2 ** (BITS - 1)  # the code of zero on the symmetric linear grid
STEPS = MIDDLE - 1  # its steps on either side
BOOKS = {name: book for name, book in CODEBOOKS.items() if book.bits == BITS}
DIGITS = 4  # decimals of a table's values, and significant digits of the largest weight of the example
CLEAR = 0.01  # the walked weight is this far, in units of its quotient, from where it would get another code

# QLoRA (Dettmers et al. 2023), table 2: mean perplexity on Pile Common Crawl of OPT, BLOOM, LLaMA and Pythia models of 125 M to
# 13 B weights; and the grid of this project that is the same, or all but the same.
QLORA = (("Int4", 34.34, LINEAR), ("Float4 (E2M1)", 31.07, "fp4"), ("Float4 (E3M0)", 29.48, None),
         ("NFloat4 + DQ", 27.41, "nf4"))  # fmt: skip
QLORA_BEST = "nf4"


def values_table() -> str:
    """The value of each 4-bit code on each grid, in units of the largest magnitude of the group."""
    rows = []
    for code in range(2**BITS):
        values = [_decimal(book.values[code], DIGITS) if code < len(book.values) else "unused" for book in BOOKS.values()]
        steps = [str(code - MIDDLE), _decimal((code - MIDDLE) / STEPS, DIGITS)] if code else ["unused", ""]
        rows.append([str(code), *values, *steps])
    linear = label_of(LINEAR, BITS)
    return grid(["code", *(book.label for book in BOOKS.values()), f"{linear}, steps", f"{linear}, steps / {STEPS}"], rows)


@dataclass(frozen=True)
class Example:
    """The worked example, for the template: tables, and the arithmetic of one weight.

    where: module, row, first, last, size, lowest and highest of the group; grids: a row per grid; weights: a row per weight;
    walked: the weight of `lines`, of which there is one a grid.
    """

    where: Mapping[str, object]
    grids: str
    weights: str
    walked: str
    lines: Sequence[str]


def example(data: Mapping | None) -> Example | None:
    """The example of quant.quality.weight_error, computed again from the numbers as printed; None where there is none."""
    if data is None:
        return None
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(max(-data["lowest"], data["highest"]))))
    steps = [_kind(each)(each, decimals) for each in data["grids"]]
    weights = [round(weight, decimals) for weight in data["weights"]]
    clear = [all(step.is_clear(weight, i) for step in steps) for i, weight in enumerate(weights)]
    chosen = clear.index(True) if True in clear else 0
    return Example(
        where={"module": data["module"], "row": data["row"], "first": data["start"], "size": data["group_size"],
               "last": data["start"] + data["group_size"] - 1, "lowest": _decimal(data["lowest"], decimals),
               "highest": _decimal(data["highest"], decimals)},
        grids=grid(["grid", "scale", "zero", "lowest", "error of the group, %"],
                   [[step.label, step.scale_text, step.zero, step.lowest_text, f"{step.error_pct:.1f}"] for step in steps]),
        weights=grid(["weight", *(step.label for step in steps)],
                     [[_decimal(weight, decimals), *(f"{step.restored(i)} (code {step.codes[i]})" for step in steps)]
                      for i, weight in enumerate(weights)]),
        walked=_decimal(weights[chosen], decimals),
        lines=[f"{step.label}: {step.line(weights[chosen], chosen)}" for step in steps],
    )


class _Symmetric:
    """A symmetric linear grid of the example, with its numbers as they are printed."""

    lowest_text = ""

    def __init__(self, data: Mapping, decimals: int):
        self.codes, self.error_pct, self.decimals = data["codes"], data["error_pct"], decimals
        self.scale = round(data["scale"], decimals + 2)
        self.scale_text = _decimal(self.scale, decimals + 2)
        self.label = label_of(data["codebook"], BITS)
        self.zero = f"code {MIDDLE}"

    def quotient(self, weight: float) -> float:
        return weight / self.scale

    def code_at(self, quotient: float) -> int:
        return round(quotient) + MIDDLE

    def restore(self, code: int) -> float:
        return (code - MIDDLE) * self.scale

    def restored(self, i: int) -> str:
        """Weight i of the example, restored."""
        return _decimal(self.restore(self.codes[i]), self.decimals)

    def is_clear(self, weight: float, i: int) -> bool:
        """Whether the printed numbers lead to the stored code of weight i, far from any other code, and not to zero."""
        near = {self.code_at(self.quotient(weight) + gap) for gap in (-CLEAR, CLEAR)}
        return near == {self.codes[i]} and self.restore(self.codes[i]) != 0

    def line(self, weight: float, i: int) -> str:
        code, quotient = self.codes[i], self.quotient(weight)
        return (f"`{_decimal(weight, self.decimals)} / {self.scale_text} = {quotient:.2f}`, rounded {code - MIDDLE}; plus "
                f"{MIDDLE} is code {code}. Restored: `({code} - {MIDDLE}) × {self.scale_text} = {self.restored(i)}`.")


class _Asymmetric(_Symmetric):
    """A linear grid that begins at the lowest weight."""

    def __init__(self, data: Mapping, decimals: int):
        super().__init__(data, decimals)
        self.lowest = round(data["zero"], decimals + 2)
        self.label += ", asymmetric"
        self.lowest_text = _decimal(self.lowest, decimals + 2)
        self.zero = f"{-self.lowest / self.scale:.2f}"

    def quotient(self, weight: float) -> float:
        return (weight - self.lowest) / self.scale

    def code_at(self, quotient: float) -> int:
        return min(max(round(quotient), 0), 2**BITS - 1)

    def restore(self, code: int) -> float:
        return code * self.scale + self.lowest

    def line(self, weight: float, i: int) -> str:
        low = f"({self.lowest_text})" if self.lowest < 0 else self.lowest_text
        return (f"`({_decimal(weight, self.decimals)} - {low}) / {self.scale_text} = {self.quotient(weight):.2f}`, rounded: code "
                f"{self.codes[i]}. Restored: `{self.codes[i]} × {self.scale_text} + {low} = {self.restored(i)}`.")


class _Table(_Symmetric):
    """A nonlinear grid, with its values as `values_table` prints them."""

    def __init__(self, data: Mapping, decimals: int):
        super().__init__(data, decimals)
        self.values = [round(value, DIGITS) for value in BOOKS[data["codebook"]].values]
        zeros = [str(code) for code, value in enumerate(self.values) if value == 0]
        self.zero = f"code{'s' * (len(zeros) > 1)} {joined(zeros)}" if zeros else "none"

    def code_at(self, quotient: float) -> int:
        return min(range(len(self.values)), key=lambda code: abs(self.values[code] - quotient))

    def restore(self, code: int) -> float:
        return self.values[code] * self.scale

    def line(self, weight: float, i: int) -> str:
        value = _decimal(self.values[self.codes[i]], DIGITS)
        quotient = _decimal(self.quotient(weight), DIGITS)
        return (f"`{_decimal(weight, self.decimals)} / {self.scale_text} = {quotient}`; the nearest value in the table is "
                f"{value}, code {self.codes[i]}. Restored: `{value} × {self.scale_text} = {self.restored(i)}`.")


def _kind(data: Mapping) -> type[_Symmetric]:
    if data["codebook"] in BOOKS:
        return _Table
    return _Symmetric if data["symmetric"] else _Asymmetric


def group_sizes(weights: Mapping) -> str:
    """Bits per weight and error at 4 bits: a row per group size, and where the scales are quantized or the range is clipped."""
    kinds = {"plain": "", "double": ", scales in 8 bits", "clipped": ", clipped for least error"}
    found: dict[tuple, dict[str, Mapping]] = {}
    for point in weights["schemes"]["points"]:
        if point["bits"] == BITS and point["kind"] in kinds and point["codebook"] in (LINEAR, *BOOKS):
            found.setdefault((point["kind"], point["group_size"]), {})[point["codebook"]] = point
    order = sorted(found, key=lambda key: list(kinds).index(key[0]))
    rows = []
    for kind, size in order:
        points = found[kind, size]
        errors = [f"{points[name]['error_pct']:.2f}" if name in points else "" for name in (LINEAR, *BOOKS)]
        bits = next(iter(points.values()))["bits_per_weight"]
        rows.append([f"{'a row' if size == 'row' else f'{size} weights'}{kinds[kind]}", f"{bits:.3f}", *errors])
    return grid(["one scale for", "bits / weight", *(f"{label_of(name, BITS)}, error %" for name in (LINEAR, *BOOKS))], rows)


@dataclass(frozen=True)
class Published:
    """QLoRA's results beside this run's. grids: those in both; table: Markdown; verdicts: how this run orders each pair."""

    grids: Sequence[str]
    table: str
    verdicts: str


def published(run: Run) -> Published | None:
    """QLoRA's perplexities beside those of the run's equal grids; None unless its best grid and another are among these."""
    ours = {grid_of(result): result for result in equal_grids(run)}
    theirs = {name: ppl for _, ppl, name in QLORA if name in ours}
    if QLORA_BEST not in theirs or len(theirs) < 2:
        return None
    least = theirs[QLORA_BEST]
    rows = []
    for label, ppl, name in QLORA:
        mine = ["", "", "", ""]
        if name in ours:
            metrics = ours[name].metrics
            mine = [ours[name].name, METRICS["ppl"].format(metrics["ppl"]),
                    f"{metrics['ppl'] / ours[QLORA_BEST].metrics['ppl']:.4f}",
                    METRICS["ppl_change_pct"].format(metrics["ppl_change_pct"])]
        rows.append([label, f"{ppl:.2f}", f"{ppl / least:.4f}", *mine])
    best = label_of(QLORA_BEST, BITS)
    table = grid(["QLoRA's grid", "perplexity", f"× {best}'s", "here", "perplexity", f"× {best}'s", "change from base, %"], rows)
    ranked = sorted(theirs, key=theirs.__getitem__)
    pairs = [(ours[one], ours[other]) for i, one in enumerate(ranked) for other in ranked[i + 1 :]]
    return Published(ranked, table, "; ".join(_verdict(*pair) for pair in pairs))


def _verdict(better: Result, worse: Result) -> str:
    """How this run orders two variants, the first of which has the better grid in QLoRA's table."""
    change = difference(better.blocks, worse.blocks, "ppl")
    if not change.is_significant:
        return f"`{better.name}` and `{worse.name}` do not differ significantly"
    if change.value < 0:
        return f"`{better.name}` is better than `{worse.name}`, as in QLoRA"
    return f"`{worse.name}` is better than `{better.name}`, unlike in QLoRA"


def _decimal(value: float, decimals: int) -> str:
    return number(value, f"{{:.{decimals}f}}")
