"""What a run says of variants calibrated on a text: beside others, step by step, and predicted against measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from quant.quality.bootstrap import Difference, difference
from quant.report.comparable import selection_of
from quant.report.metrics import METRICS
from quant.report.results import Result, Run
from quant.report.subsets import EQUAL_SIZE, quantized
from quant.report.tables import grid
from quant.report.wording import code, number

_CLASS = re.compile(r"(.+)\.class(\d+)")  # the name of a class of rows, after its weight's
STEPS = ("rounding", "importance", "targets", "refits", "sweeps", "equalize")  # parameters of a row that choose its codes

CLEAR_BITS = 3  # with fewer, a row has too few levels to show what feedback does


@dataclass(frozen=True)
class Match:
    """A calibrated variant beside one that is not. is_alike: whether both quantize the same weights at the same width; else
    `other` is the next larger. change: divergence of `result` minus that of `other`."""

    result: Result
    other: Result
    is_alike: bool
    change: Difference


@dataclass(frozen=True)
class Step:
    """Two calibrated variants that differ in one parameter only. change: divergence of `one` minus that of `other`."""

    key: str
    one: Result
    other: Result
    change: Difference

    @property
    def values(self) -> tuple[str, str]:
        """The parameter in both rows, as YAML has it."""
        return tuple(str(r.variant.values[self.key]).lower() for r in (self.one, self.other))

    @property
    def verdict(self) -> str:
        """What the first value does, compared with the second: "better", "worse" or "alike"."""
        return _verdict(self.change)


@dataclass(frozen=True)
class Cell:
    """Parts of an allocation that one cell of a figure shows. row: their roles in a decoder block, or the weight outside; column:
    the block, or the class of rows; None for a weight outside that has no classes. bits: of their codes, on average."""

    row: str
    column: int | None
    is_inside: bool
    bits: float


def calibrated(run: Run) -> list[Result]:
    """The variants that a calibration text had a part in."""
    return [r for r in run.others if "calibration" in r.noted]


def budgets(run: Run) -> list[Result]:
    """The variants whose parts have widths of their own."""
    return [r for r in run.others if "allocation" in r.noted]


def predicted(run: Run) -> list[Result]:
    """The variants whose divergence was predicted when their widths were chosen."""
    return [r for r in budgets(run) if prediction(r)]


def prediction(result: Result) -> float | None:
    """The divergence in mnat that the choice of widths predicted; None where widths were given, not chosen."""
    return result.noted["allocation"]["predicted_kld_mnats"]


def of_prediction(result: Result) -> float:
    """The measured divergence as a multiple of the predicted one."""
    return result.metrics["kld_mnats"] / prediction(result)


def examples(run: Run) -> list[Result]:
    """The variants that noted what feedback does to a row."""
    found = [r for r in run.others if r.noted.get("example")]
    return [r for r in found if r.noted["example"]["nearest"] != r.noted["example"]["feedback"]]


def clearest_example(run: Run) -> Result | None:
    """The one with the fewest bits from CLEAR_BITS up, if there is one; variants with one width before those of a budget."""
    def order(result: Result) -> tuple:
        bits = result.variant.nominal_bits
        return result.recipe is None, bits < CLEAR_BITS, bits

    return min(examples(run), key=order, default=None)


def match(run: Run, result: Result) -> Match | None:
    """The uncalibrated variant in this project's format to compare with: of the same weights at the same width and group size,
    with the same grid if there is one, the closest to base; else the next larger. None where no variant is as large."""
    others = [r for r in quantized(run) if "calibration" not in r.noted and r.recipe and r.method.needs_code]
    alike = [r for r in others if result.recipe and _layout(r) == _layout(result)]
    same_grid = [r for r in alike if r.recipe.scheme.codebook == result.recipe.scheme.codebook]
    found = same_grid or alike
    if not found:
        larger = [r for r in others if EQUAL_SIZE * r.metrics["bits_per_weight"] >= result.metrics["bits_per_weight"]]
        least = min((r.metrics["bits_per_weight"] for r in larger), default=0.0)
        found = [r for r in larger if r.metrics["bits_per_weight"] <= EQUAL_SIZE * least]
    if not found:
        return None
    other = min(found, key=lambda r: r.metrics["kld_mnats"])
    return Match(result, other, bool(alike), difference(result.blocks, other.blocks, "kld"))


def matches(run: Run) -> list[Match]:
    """Each calibrated variant that has a variant to compare with."""
    return [found for found in (match(run, result) for result in calibrated(run)) if found]


def closer(found: Sequence[Match], is_alike: bool) -> str:
    """How many are significantly closer to base than what they are compared with, as a sentence; "" for no matches."""
    chosen = [m for m in found if m.is_alike == is_alike]
    if not chosen:
        return ""
    verdicts = {word: [m.result.name for m in chosen if _verdict(m.change) == word] for word in ("better", "worse", "alike")}
    against = "the uncalibrated variant of the same weights and width" if is_alike else "the next larger uncalibrated variant"
    parts = [f"{code(names)} {'is' if len(names) == 1 else 'are'} {words}" for names, words in (
        (verdicts["better"], "significantly closer to base than"), (verdicts["worse"], "significantly further from base than"),
        (verdicts["alike"], "not significantly different from")) if names]
    return f"{'; '.join(f'{part} {against}' for part in parts)}."


def steps(run: Run) -> list[Step]:
    """Pairs of calibrated variants that differ in one parameter of STEPS and in nothing else."""
    found = []
    for one, other in combinations(calibrated(run), 2):
        mine, its = one.variant.values, other.variant.values
        changed = [key for key in mine if mine[key] != its.get(key)] if set(mine) == set(its) else []
        if len(changed) == 1 and changed[0] in STEPS:
            found.append(Step(changed[0], one, other, difference(one.blocks, other.blocks, "kld")))
    return found


def table(run: Run) -> str:
    """A row per calibrated variant: size and divergence, and those of the variant it is compared with."""
    rows = []
    for result in calibrated(run):
        found = match(run, result)
        beside = ["", "", "", ""] if found is None else [
            f"{found.other.name}{'' if found.is_alike else ', the next larger'}", *_size_and_divergence(found.other),
            f"{METRICS['kld_mnats'].format(found.change.value)} ({_span(found.change.low, found.change.high)})"]
        rows.append([result.name, *_size_and_divergence(result), _interval(result), *beside])
    headings = ["variant", "bits / weight", "KLD mnat", "95 % interval", "compared with", "bits / weight", "KLD mnat",
                "difference (95 % interval)"]
    return grid(headings, rows)


def predictions_table(run: Run) -> str:
    """A row per budget: what was allowed, what was predicted on the calibration text, and what was measured."""
    rows = [[r.name, METRICS["bits_per_weight"].format(r.metrics["bits_per_weight"]),
             "given, not chosen" if prediction(r) is None else METRICS["kld_mnats"].format(prediction(r)),
             METRICS["kld_mnats"].format(r.metrics["kld_mnats"]), _interval(r),
             "" if not prediction(r) else number(of_prediction(r), "{:.2f}")] for r in budgets(run)]
    return grid(["variant", "bits / weight", "predicted mnat", "measured mnat", "95 % interval", "measured / predicted"], rows)


def examples_table(run: Run) -> str:
    """A row per variant: the error of one matrix and of its outputs, rounded to nearest and by feedback."""
    rows = []
    for result in examples(run):
        example = result.noted["example"]
        errors = [number(example[key][how], "{:.1f}") for key in ("weight_error_pct", "output_error_pct")
                  for how in ("nearest", "feedback")]
        rows.append([result.name, example["scheme"], *errors])
    return grid(["variant", "scheme", "weights, nearest %", "weights, feedback %", "outputs, nearest %", "outputs, feedback %"],
                rows, left=2)


def cells(allocation: Mapping) -> list[Cell]:
    """The parts of an allocation as cells. Parts that share one are averaged."""
    together: dict[tuple, list[Mapping]] = {}
    for part in allocation["parts"]:
        if part["block"] is not None:
            place = "+".join(part["roles"]), part["block"], True
        else:
            of_class = _CLASS.fullmatch(part["name"])
            module, number_of_class = (of_class[1], int(of_class[2])) if of_class else (part["name"], None)
            place = module.rpartition(".")[2], number_of_class, False
        together.setdefault(place, []).append(part)
    return [Cell(*key, sum(part["bits"] * part["weights"] for part in parts) / sum(part["weights"] for part in parts))
            for key, parts in together.items()]


def _layout(result: Result) -> tuple:
    recipe = result.recipe
    return selection_of(recipe), recipe.scheme.bits, recipe.scheme.group_size


def _verdict(change: Difference) -> str:
    if not change.is_significant:
        return "alike"
    return "better" if change.value < 0 else "worse"


def _size_and_divergence(result: Result) -> list[str]:
    return [METRICS[key].format(result.metrics[key]) for key in ("bits_per_weight", "kld_mnats")]


def _interval(result: Result) -> str:
    return _span(*result.quality["intervals"]["kld_mnats"])


def _span(low: float, high: float) -> str:
    return f"{METRICS['kld_mnats'].format(low)} to {METRICS['kld_mnats'].format(high)}"
