"""Figures for a choice: size against divergence, the curve over bits, models of several sizes, and what is sensitive."""

from __future__ import annotations

from itertools import cycle, pairwise

from quant.hub.family import UNQUANTIZED
from quant.report.captions import LEAST_KLD, MOST_BITS
from quant.report.charts import log_axis, scatter
from quant.report.comparable import equal_but_for_the_bits
from quant.report.family import models, title
from quant.report.metrics import METRICS
from quant.report.results import Run
from quant.report.style import INK, LINE, PARTS, QUIET, legend_of, look_of, looks_of, new_axes
from quant.report.subsets import FRONT, front_names, quantized
from quant.report.tables import mib_in_16_bits

_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_size_divergence(run: Run):
    """Draw every variant at its size and divergence, and the Pareto front of significant steps."""
    points = {r.name: (r.metrics[FRONT[0]], max(LEAST_KLD, r.metrics[FRONT[1]])) for r in run.others}
    figure, axes = new_axes(8, 5.4)
    front = front_names(run)
    steps = [points[name] for name in front]
    corners = [steps[0]]
    for (_, before), (x, y) in pairwise(steps):
        corners += [(x, before), (x, y)]
    axes.plot(*zip(*corners, strict=True), color=QUIET, linewidth=1.2, linestyle="--", zorder=1)
    full = mib_in_16_bits(run.base)
    axes.axvline(full, color=LINE, linewidth=1, zorder=0)
    axes.annotate("16 bits", (full, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points", va="top",
                  fontsize=8, color=QUIET)
    log_axis(axes.xaxis, axes, "x")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    scatter(axes, run.others, list(points.values()), front, corners)
    axes.set(xlabel=METRICS[FRONT[0]].label, ylabel=METRICS[FRONT[1]].label)
    return figure


def draw_bits(run: Run):
    """Draw the variants that differ only in their width as lines, and the other quantized variants as points."""
    figure, axes = new_axes(8, 5)
    curves = equal_but_for_the_bits(run)
    drawn = {result.name for curve in curves for result in curve}
    rest = [r for r in quantized(run) if r.name not in drawn and r.metrics["bits_per_weight"] <= MOST_BITS]
    for result in rest:
        look = look_of(result.method)
        axes.plot(result.metrics["bits_per_weight"], result.metrics["kld_mnats"], marker=look.marker, color=look.colour,
                  linestyle="", markersize=5, alpha=0.75, zorder=2)
        axes.annotate(result.name, (result.metrics["bits_per_weight"], result.metrics["kld_mnats"]), xytext=(4, 3),
                      textcoords="offset points", fontsize=7, color=QUIET)
    lines = []
    for curve, style, marker in zip(curves, cycle(("-", "--", "-.", ":")), cycle(_MARKERS)):
        (line,) = axes.plot([r.metrics["bits_per_weight"] for r in curve], [r.metrics["kld_mnats"] for r in curve], style,
                            color=look_of(curve[0].method).colour, marker=marker, markersize=5, zorder=3,
                            label=f"{curve[0].name} to {curve[-1].name}")
        lines.append(line)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=METRICS["bits_per_weight"].label, ylabel=METRICS["kld_mnats"].label)
    legend_of(axes, looks_of([r.method for r in rest]), loc="lower left")
    if lines:
        axes.add_artist(axes.get_legend())
        axes.legend(handles=lines, loc="upper right")
    return figure


def draw_family(run: Run):
    """Draw every model's points: weights in memory against bits per byte of text, with intervals."""
    figure, axes = new_axes(8, 5)
    shown = {UNQUANTIZED, *run.params["family"]["variants"]}
    for model, colour, marker in zip(models(run), cycle(("#0072B2", "#D55E00", *PARTS[3:])), cycle(_MARKERS)):
        axes.plot([p.weights_mib for p in model.points], [p.bits_per_byte for p in model.points], linestyle="", marker=marker,
                  color=colour, markersize=4, alpha=0.35)
        line = sorted((p for p in model.points if p.variant in shown), key=lambda p: p.weights_mib)
        axes.plot([p.weights_mib for p in line], [p.bits_per_byte for p in line], marker=marker, color=colour, markersize=7,
                  linewidth=1.2, label=title(model), zorder=3)
        for point in line:
            axes.plot([point.weights_mib] * 2, point.interval, color=colour, linewidth=1, zorder=2)
            axes.annotate(point.variant, (point.weights_mib, point.bits_per_byte), xytext=(7, 5), textcoords="offset points",
                          fontsize=8, color=INK)
    log_axis(axes.xaxis, axes, "x")
    axes.margins(x=0.1, y=0.1)
    axes.legend(loc="upper right")
    axes.set(xlabel="weights (MiB), unquantized ones as stored", ylabel=METRICS["bits_per_byte"].label)
    return figure


def draw_sensitivity(run: Run):
    """Draw the divergence with one role, or one decoder block, quantized alone."""
    parts = run.sensitivity["parts"]
    kinds = {kind: [part for part in parts if part["kind"] == kind] for kind in ("role", "block")}
    height = 0.27 * max(map(len, kinds.values())) + 1.2
    figure, panels = new_axes(8.5, height, ncols=2)
    for axes, (kind, found) in zip(panels, kinds.items(), strict=True):
        for i, part in enumerate(found):
            axes.barh(i, part["kld_mnats"], height=0.7, color="#0072B2")
            axes.plot(part["interval"], [i, i], color=INK, linewidth=1.2, marker="|", markersize=6)
            axes.annotate(f"{part['kld_mnats']:.3g}", (max(part["kld_mnats"], part["interval"][1]), i), xytext=(4, 0),
                          textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(found)), [part["name"] for part in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="divergence (mnat per token)", ylabel="role" if kind == "role" else "decoder block")
        axes.margins(x=0.16)
    return figure
