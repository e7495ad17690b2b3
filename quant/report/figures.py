"""The figures of the report: how each is drawn. quant.report.captions has their captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quant.progress import MIB
from quant.report import calibration, calibration_figures, captions
from quant.report.captions import LEAST_KLD
from quant.report.charts import axes_by_variant, bars, by_variant, log_axis, scatter, stacks, wide_range
from quant.report.choice_figures import draw_bits, draw_family, draw_sensitivity, draw_size_divergence
from quant.report.metrics import METRICS
from quant.report.results import Run
from quant.report.style import GRIDS, INK, OWN_TABLE, QUIET, in_style, legend_of, look_of, looks_of, new_axes, save
from quant.report.subsets import equal_grids, grid_of, quantized
from quant.report.weight_figures import draw_error_against_bits, draw_error_map, draw_histogram

# Parts of the size breakdown, in the order of the bars.
STORAGE = ("codes", "scales", "zeros", "codebook", "classes", "blocks", "floats")
GROUPS = ("attention", "mlp", "embedding", "head", "norm", "other")


@dataclass(frozen=True)
class Figure:
    """name: of its files; title: begins its caption, which is made from the data; exists: whether a run has anything to draw,
    None for a figure of every run."""

    name: str
    title: str
    caption: Callable[[Run], str]
    draw: Callable[[Run], object]
    exists: Callable[[Run], bool] | None = None


def figures_of(run: Run) -> list[Figure]:
    """The figures of a run, in the order of the report."""
    return [figure for figure in FIGURES if figure.exists is None or figure.exists(run)]


def draw_all(run: Run, folder: Path) -> int:
    """Draw every figure of a run in `folder`, as SVG and PNG, and return their number; equal runs give equal bytes."""
    with in_style():
        for figure in figures_of(run):
            save(figure.draw(run), folder, figure.name)
    return len(figures_of(run))


def _draw_size_speed(run: Run):
    points = [(r.metrics["weights_mib"], r.metrics["decode_speedup"]) for r in run.timed]
    figure, axes = new_axes(8, 5)
    axes.axhline(1, color=QUIET, linewidth=1)
    log_axis(axes.xaxis, axes, "x")
    if wide_range([y for _, y in points]):
        log_axis(axes.yaxis, axes, "y")
    scatter(axes, run.timed, points)
    axes.set(xlabel=METRICS["weights_mib"].label, ylabel=METRICS["decode_speedup"].label)
    return figure


def _draw_change(run: Run):
    figure, axes = axes_by_variant(run.others)
    for i, result in enumerate(run.others):
        look = look_of(result.method)
        low, high = result.quality["intervals"]["ppl_change_pct"]
        is_significant = result.quality["intervals"]["is_significant"]
        axes.plot([low, high], [i, i], color=look.colour, linewidth=1.6)
        axes.plot([low, high], [i, i], linestyle="", marker="|", color=look.colour, markersize=7)
        axes.plot(result.metrics["ppl_change_pct"], i, marker=look.marker, color=look.colour, markersize=6,
                  markerfacecolor=look.colour if is_significant else "white")
    axes.axvline(0, color=QUIET, linewidth=1)
    by_variant(axes, run.others, f"{METRICS['ppl_change_pct'].label}, with its 95 % interval")
    axes.margins(x=0.05)
    legend_of(axes, looks_of([r.method for r in run.others]), loc="best")
    return figure


def _draw_divergence(run: Run):
    figure, axes = axes_by_variant(run.others)
    for i, result in enumerate(run.others):
        look = look_of(result.method)
        data = result.quality["divergence"]["kld_mnats"]
        median, mean, p99, p999 = (max(LEAST_KLD, data[key]) for key in ("median", "mean", "p99", "p999"))
        axes.plot([median, p99], [i, i], color=look.colour, linewidth=4, solid_capstyle="butt", alpha=0.45)
        axes.plot([p99, p999], [i, i], color=look.colour, linewidth=1.2)
        axes.plot([median, p999], [i, i], linestyle="", marker="|", color=look.colour, markersize=9, markeredgewidth=1.5)
        axes.plot(mean, i, marker=look.marker, color=look.colour, markersize=6, markeredgecolor="white", markeredgewidth=0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    by_variant(axes, run.others, METRICS["kld_mnats"].label)
    legend_of(axes, looks_of([r.method for r in run.others]), loc="best")
    return figure


def _draw_latency(run: Run):
    prefill, decode = METRICS["prefill_ms"], METRICS["decode_ms_per_token"]
    phases = {"prefill": prefill, "prefill_long": prefill, "decode": decode}
    if not all(r.speed["timing"]["prefill_long"] for r in run.timed):
        del phases["prefill_long"]
    figure, panels = axes_by_variant(run.timed, 9.5, ncols=len(phases), sharey=True)
    for axes, (phase, metric) in zip(panels, phases.items(), strict=True):
        data = [r.speed["timing"][phase] for r in run.timed]
        flagged = [r.name for r, timing in zip(run.timed, data, strict=True) if timing["is_noisy"]]
        bars(axes, run.timed, [d["ms"]["median"] for d in data], [d["ms"]["mad"] for d in data], metric.form, flagged)
        by_variant(axes, run.timed, metric.label if metric is decode else f"{metric.label}, {data[0]['prompt_tokens']} tokens")
    return figure


def _draw_bytes(run: Run):
    by_part = [{k: v / MIB for k, v in r.bytes_by("part").items()} for r in run.results]
    by_group = [{k: v / MIB for k, v in r.bytes_by("group").items()} for r in run.results]
    figure, (left, right) = axes_by_variant(run.results, 9.5, ncols=2, sharey=True)
    stacks(left, run.results, by_part, [p for p in STORAGE if any(p in sizes for sizes in by_part)], "stored as")
    stacks(right, run.results, by_group, [g for g in GROUPS if any(g in sizes for sizes in by_group)], "belongs to")
    for axes in (left, right):
        by_variant(axes, run.results, METRICS["weights_mib"].label)
    return figure


def _draw_grids(run: Run):
    chosen = equal_grids(run)
    figure, panels = new_axes(8.5, 3.6, ncols=3)
    for axes, key in zip(panels[:2], ("kld_mnats", "ppl_change_pct"), strict=True):
        for i, result in enumerate(chosen):
            value, (low, high) = result.metrics[key], result.quality["intervals"][key]
            _grid_bar(axes, i, value, grid_of(result), (low, high))
        axes.set_ylabel(METRICS[key].label)
    size, width = chosen[0].recipe.scheme.group_size, chosen[0].recipe.scheme.bits
    errors = {p["codebook"]: p["error_pct"] for p in run.weights["schemes"]["points"]
              if (p["group_size"], p["bits"], p["kind"]) == (size, width, "plain")}
    for i, result in enumerate(chosen):
        if grid_of(result) in errors:
            _grid_bar(panels[2], i, errors[grid_of(result)], grid_of(result))
    panels[2].set_ylabel("error of the weights (%)")
    for axes in panels:
        axes.set_xticks(range(len(chosen)), [r.name for r in chosen])
        axes.axhline(0, color=QUIET, linewidth=1)
        axes.grid(axis="x", visible=False)
    return figure


def _grid_bar(axes, place: int, value: float, grid: str, interval: tuple[float, float] | None = None) -> None:
    look = GRIDS.get(grid, OWN_TABLE)
    axes.bar(place, value, width=0.6, color=look.colour, hatch=look.hatch, edgecolor="white",
             linewidth=0)
    top = value
    if interval:
        axes.plot([place, place], interval, color=INK, linewidth=1.2, marker="_", markersize=8)
        top = max(value, interval[1])
    axes.annotate(f"{value:#.3g}", (place, max(0, top)), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(y=0.12)


FIGURES = (
    Figure("size-divergence", "Size against divergence", captions.size_divergence, draw_size_divergence),
    Figure("family", "Models of several sizes", captions.family, draw_family, lambda run: bool(run.family)),
    Figure("bits", "Divergence against bits", captions.bits, draw_bits, lambda run: bool(quantized(run))),
    Figure("sensitivity", "Divergence of one part alone", captions.sensitivity, draw_sensitivity,
           lambda run: bool(run.sensitivity["parts"])),
    Figure("ppl-change", "Change of perplexity", captions.ppl_change, _draw_change),
    Figure("divergence", "Divergence of the predictions", captions.divergence, _draw_divergence),
    Figure("size-speed", "Size against speed", captions.size_speed, _draw_size_speed),
    Figure("latency", "Latency", captions.latency, _draw_latency),
    Figure("bytes", "Bytes of the weights", captions.size, _draw_bytes),
    Figure("error-feedback", "What feedback does to one row", calibration_figures.feedback, calibration_figures.draw_feedback,
           lambda run: bool(calibration.examples(run))),
    Figure("bits-by-part", "Where the bits of a budget went", calibration_figures.allocation, calibration_figures.draw_allocation,
           lambda run: bool(calibration.budgets(run))),
    Figure("predicted", "Predicted against measured divergence", calibration_figures.predictions,
           calibration_figures.draw_prediction, lambda run: len(calibration.predicted(run)) > 1),
    Figure("grids", "Linear against nonlinear at equal size", captions.grids, _draw_grids, lambda run: bool(equal_grids(run))),
    Figure("histogram", "One weight matrix and the 4-bit grids", captions.histogram, lambda run: draw_histogram(run.weights)),
    Figure("error-bits", "Error of the weights against bits", captions.error_bits,
           lambda run: draw_error_against_bits(run.weights)),
    Figure("error-map", "Error by block and role", captions.error_map, lambda run: draw_error_map(run.weights)),
)  # fmt: skip
