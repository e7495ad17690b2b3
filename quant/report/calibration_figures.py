"""Figures of calibrated variants and their captions: what feedback does to a row, where the bits of a budget went, and predicted
against measured divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from quant.methods import FROM_SCRATCH, load
from quant.report.calibration import Cell, budgets, cells, clearest_example, of_prediction, predicted, prediction
from quant.report.charts import log_axis, scatter
from quant.report.metrics import METRICS
from quant.report.results import Run
from quant.report.style import INK, LINE, QUIET, look_of, new_axes
from quant.report.wording import joined, number, span

MOST_BLOCKS = 40  # of the map; deeper models show every n-th block
MOST_NUMBERS = 16  # columns up to which the cells of the map hold numbers
NEAREST, FEEDBACK = "nearest", "feedback"


def draw_feedback(run: Run):
    """Draw one row's weights, as they are, rounded to nearest and by feedback; below, what both are off by; beside, the errors of
    the whole matrix and of its outputs."""
    result = clearest_example(run)
    example = result.noted["example"]
    looks = {NEAREST: look_of(load(FROM_SCRATCH)), FEEDBACK: look_of(result.method)}
    figure, ((row, weights), (errors, outputs)) = new_axes(9.5, 5, nrows=2, ncols=2, width_ratios=(4, 1), sharex="col")
    places = range(len(example["weights"]))
    row.hlines(example["weights"], [x - 0.45 for x in places], [x + 0.45 for x in places], color=INK, linewidth=1.6, zorder=1,
               label="as it is")
    for (how, look), shift in zip(looks.items(), (-0.18, 0.18), strict=True):
        beside = [x + shift for x in places]
        off = [value - weight for value, weight in zip(example[how], example["weights"], strict=True)]
        row.plot(beside, example[how], linestyle="", marker=look.marker, color=look.colour, markersize=5, zorder=2,
                 label="to nearest" if how == NEAREST else "by feedback")
        errors.bar(beside, off, width=0.34, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0)
        for axes, key in ((weights, "weight_error_pct"), (outputs, "output_error_pct")):
            place, value = list(looks).index(how), example[key][how]
            axes.bar(place, value, width=0.7, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0)
            axes.annotate(f"{value:.1f}", (place, value), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
    errors.axhline(0, color=QUIET, linewidth=1)
    row.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    row.set_ylabel("weight")
    errors.set(ylabel="error of the weight", xlabel=f"column of row {example['row']}")
    for axes in (row, errors):
        axes.margins(x=0.01)
        axes.grid(axis="x", visible=False)
    for axes, title in ((weights, "error of the\nweights (%)"), (outputs, "error of the\noutputs (%)")):
        axes.set_title(title, fontsize=9)
        axes.set_xticks([0, 1], list(looks))
        axes.set_yticks([])
        axes.margins(x=0.15, y=0.15)
        axes.grid(visible=False)
    return figure


def feedback(run: Run) -> str:
    """Caption of `draw_feedback`."""
    result = clearest_example(run)
    example = result.noted["example"]
    triples = list(zip(example["weights"], example[NEAREST], example[FEEDBACK], strict=True))
    moved = sum(abs(solved - weight) > 1.001 * abs(nearest - weight) for weight, nearest, solved in triples)
    errors = [f"{number(example[key][NEAREST], '{:.1f}')} % rounded to nearest and "
              f"{number(example[key][FEEDBACK], '{:.1f}')} % by feedback" for key in ("weight_error_pct", "output_error_pct")]
    further = example["weight_error_pct"][FEEDBACK] > example["weight_error_pct"][NEAREST]
    nearer = example["output_error_pct"][FEEDBACK] < example["output_error_pct"][NEAREST]
    return (f"The first {len(triples)} weights of row {example['row']} of `{example['module']}` in `{result.name}` "
            f"(`{example['scheme']}`). Feedback leaves {moved} of them further from their value than rounding to nearest does. "
            f"In the whole matrix the weights are {'further from' if further else 'nearer to'} base's, with a relative error of "
            f"{errors[0]}, {'yet' if further == nearer else 'and'} the layer's outputs on the calibration text are "
            f"{'nearer' if nearer else 'further'}: {errors[1]}.")


def draw_allocation(run: Run):
    """Draw a map of the widths for each budget: roles by decoder block, and beside it the weights outside by class of rows."""
    found = [(result, cells(result.noted["allocation"])) for result in budgets(run)]
    heights = [max(_count(some, True), _count(some, False), 2) for _, some in found]
    sides = [len(_columns([cell for _, some in found for cell in some], is_inside)) for is_inside in (True, False)]
    figure, panels = new_axes(9.5, 0.3 * sum(heights) + 0.75 * len(found) + 0.4, nrows=len(found), ncols=2, squeeze=False,
                              height_ratios=[height + 1.5 for height in heights], width_ratios=[max(side, 4) for side in sides])
    bits = [cell.bits for _, some in found for cell in some]
    for (result, some), (inside, outside) in zip(found, panels, strict=True):
        for axes, is_inside in ((inside, True), (outside, False)):
            chosen = [cell for cell in some if cell.is_inside == is_inside]
            image = _draw_map(axes, chosen, (min(bits), max(bits)))
        size = METRICS["bits_per_weight"].format(result.metrics["bits_per_weight"])
        inside.set_title(f"{result.name}: {size} bits per weight, scales included", loc="left")
    panels[-1][0].set_xlabel("decoder block")
    panels[-1][1].set_xlabel("class of rows, 0 the most important")
    ticks = range(math.floor(min(bits)), math.ceil(max(bits)) + 1)
    figure.colorbar(image, ax=panels, label="bits of a code", pad=0.01, ticks=ticks)
    return figure


def allocation(run: Run) -> str:
    """Caption of `draw_allocation`."""
    said = []
    for result in budgets(run):
        parts = result.noted["allocation"]["parts"]
        inside, outside = ([part for part in parts if (part["block"] is None) == is_outside] for is_outside in (False, True))
        both = (inside, "in the blocks"), (outside, "outside")
        said.append(f"`{result.name}` has {joined([f'{_bits(some)} {where}' for some, where in both if some])}")
    return ("Each cell is a part of the model with a width of its own. Left: matrices of the decoder blocks, by role; right: "
            "weights outside the blocks, whose rows can be divided into classes of equal size by how much they matter. On "
            f"average over the weights {'; '.join(said)}.")


def draw_prediction(run: Run):
    """Draw predicted against measured divergence, both logarithmic, and the diagonal."""
    found = predicted(run)
    points = [(prediction(r), r.metrics["kld_mnats"]) for r in found]
    figure, axes = new_axes(8, 4.6)
    for result, (x, _) in zip(found, points, strict=True):
        axes.plot([x, x], result.quality["intervals"]["kld_mnats"], color=look_of(result.method).colour, linewidth=1.2)
    log_axis(axes.xaxis, axes, "x")
    log_axis(axes.yaxis, axes, "y")
    ends = [min(map(min, points)), max(map(max, points))]
    axes.axline((ends[0], ends[0]), (ends[1], ends[1]), color=LINE, linewidth=1.2, zorder=0)
    scatter(axes, found, points, line=[(end, end) for end in ends])
    axes.get_legend().remove()
    axes.set(xlabel="predicted divergence (mnat per token)", ylabel="measured divergence (mnat per token)")
    return figure


def predictions(run: Run) -> str:
    """Caption of `draw_prediction`."""
    factors = [of_prediction(r) for r in predicted(run)]
    order = sorted(predicted(run), key=prediction)
    agrees = all(one.metrics["kld_mnats"] <= other.metrics["kld_mnats"] for one, other in pairwise(order))
    side = "below" if max(factors) < 1 else "above" if min(factors) > 1 else "on both sides of"
    return ("The sum of what the parts cost, each measured alone on the calibration text, against the divergence of the finished "
            f"variant on the evaluated text; both axes are logarithmic. The points lie {side} the diagonal: measured is "
            f"{span(factors, '{:.2f}')} times predicted. The order of the variants is {'' if agrees else 'not '}as predicted.")


def _draw_map(axes, some: Sequence[Cell], extent: tuple[float, float]):
    """One map; a weight without classes spans its row."""
    rows, columns = list(dict.fromkeys(cell.row for cell in sorted(some, key=lambda c: c.column is None))), _columns(some, None)
    shown = columns[:: math.ceil(len(columns) / MOST_BLOCKS)] if columns else [0]
    of_place = {(cell.row, cell.column): cell.bits for cell in some}
    values = [[of_place.get((row, column), of_place.get((row, None), math.nan)) for column in shown] for row in rows]
    image = axes.imshow(values or [[math.nan]], cmap="cividis", aspect="auto", vmin=extent[0], vmax=extent[1])
    for y, row in enumerate(rows):
        spans = (row, None) in of_place
        for x, value in [((len(shown) - 1) / 2, values[y][0])] if spans else enumerate(values[y]):
            if not math.isnan(value) and (spans or len(shown) <= MOST_NUMBERS):
                axes.annotate(f"{value:.3g}", (x, y), ha="center", va="center", fontsize=8,
                              color="black" if image.norm(value) > 0.55 else "white")
    axes.set_yticks(range(len(rows)), rows)
    every = math.ceil(len(shown) / MOST_NUMBERS)
    axes.set_xticks(range(0, len(shown), every), [str(column) for column in shown[::every]] if columns else [""])
    axes.grid(visible=False)
    for y, row in enumerate(rows):
        axes.axhline(y - 0.5, color="white", linewidth=1.5)
        if (row, None) not in of_place:
            axes.vlines([x - 0.5 for x in range(1, len(shown))], y - 0.5, y + 0.5, color="white", linewidth=1.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _columns(some: Sequence[Cell], is_inside: bool | None) -> list[int]:
    return sorted({cell.column for cell in some if cell.column is not None and is_inside in (None, cell.is_inside)})


def _count(some: Sequence[Cell], is_inside: bool) -> int:
    return len({cell.row for cell in some if cell.is_inside == is_inside})


def _bits(parts: Sequence[dict]) -> str:
    """The mean width of some parts, and their extent."""
    mean = sum(part["bits"] * part["weights"] for part in parts) / sum(part["weights"] for part in parts)
    return f"{mean:.2f} bits ({span([part['bits'] for part in parts], '{:g}')})"

