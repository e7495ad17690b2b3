"""Figures of the rounding error of the model's own weights, from the results of quant.quality.weight_error."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt

from quant.report.style import GRIDS, INK, new_axes
from quant.report.wording import scale
from quant.tensor.codebooks import CODEBOOKS, LINEAR, label_of

KINDS = {"double": ("scales quantized too", "white"), "clipped": ("clipped for least error", "#F0E442")}  # label, fill
MOST_ROWS = 40  # of the heat map; deeper models show every n-th block


def draw_error_map(weights: Mapping):
    """Draw the error by block and role, a number in each cell."""
    cells = {(cell["block"], cell["role"]): cell["error_pct"] for cell in weights["map"]["cells"]}
    roles = weights["map"]["roles"]
    blocks = sorted({block for block, _ in cells if block is not None})
    blocks = blocks[:: math.ceil(len(blocks) / MOST_ROWS)] if blocks else []
    rows = [*blocks, None] if any(block is None for block, _ in cells) else blocks
    table = [[cells.get((block, role), math.nan) for role in roles] for block in rows]
    figure, axes = new_axes(8, 0.3 * len(rows) + 1.5)
    image = axes.imshow(table, cmap="cividis", aspect="auto", vmin=0)
    for y, line in enumerate(table):
        for x, value in enumerate(line):
            if not math.isnan(value):
                axes.annotate(f"{value:.1f}", (x, y), ha="center", va="center", fontsize=8,
                              color="black" if image.norm(value) > 0.55 else "white")
    axes.set_xticks(range(len(roles)), roles)
    axes.set_yticks(range(len(rows)), ["outside" if block is None else str(block) for block in rows])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="relative error (%)", pad=0.01)
    axes.set(ylabel="decoder block", xlabel="role")
    return figure


def draw_histogram(weights: Mapping):
    """Draw a matrix's normalized weights, and over them each 4-bit grid's values, as high as their share of the weights."""
    data = weights["histogram"]
    count = len(data["share_pct"])
    edges = [-1 + 2 * i / count for i in range(count + 1)]
    heights = [share * count / 16 for share in data["share_pct"]]  # share per sixteenth of the range, like a 4-bit code
    figure, panels = new_axes(8, 1.8 * len(data["grids"]), nrows=len(data["grids"]), sharex=True, sharey=True)
    for axes, (name, grid) in zip(panels, data["grids"].items(), strict=True):
        look = GRIDS[name]
        axes.stairs(heights, edges, fill=True, color="#d9d9d9")
        axes.vlines(grid["values"], 0, grid["share_pct"], color=look.colour, linewidth=2)
        axes.plot(grid["values"], grid["share_pct"], linestyle="", marker=look.marker, color=look.colour, markersize=6)
        axes.set_title(label_of(name, 4), loc="left")
        axes.set_title(f"{grid['entropy_bits']:.2f} of 4 bits used", loc="right", fontsize=9)
        axes.grid(axis="x", visible=False)
    panels[len(panels) // 2].set_ylabel("share of the weights (%)")
    panels[-1].set_xlabel(f"weight over the largest magnitude of its group of {data['group_size']}")
    return figure


def draw_error_against_bits(weights: Mapping):
    """Draw every scheme as a point: bits per weight against error."""
    everything = weights["schemes"]["points"]
    points = [p for p in everything if p["kind"] == "plain"]
    sizes = list(dict.fromkeys(point["group_size"] for point in points))
    styles = dict(zip(sizes, ("-", "--", "-.", ":"), strict=False))
    figure, axes = new_axes(8, 5)
    for size in sizes:
        line = [p for p in points if p["group_size"] == size and p["codebook"] == LINEAR]
        axes.plot([p["bits_per_weight"] for p in line], [p["error_pct"] for p in line], color=GRIDS[LINEAR].colour,
                  marker=GRIDS[LINEAR].marker, markersize=4, linewidth=1, linestyle=styles[size])
    for name in CODEBOOKS:
        line = [p for p in points if p["codebook"] == name]
        axes.plot([p["bits_per_weight"] for p in line], [p["error_pct"] for p in line], linestyle="", marker=GRIDS[name].marker,
                  color=GRIDS[name].colour, markersize=8, markeredgecolor="white", markeredgewidth=0.5, zorder=3)
    for p in everything:
        if p["kind"] in KINDS:
            look, fill = GRIDS[p["codebook"]], KINDS[p["kind"]][1]
            axes.plot(p["bits_per_weight"], p["error_pct"], linestyle="", marker=look.marker, markersize=6, zorder=4,
                      markeredgecolor=look.colour, markerfacecolor=fill)
    for bits in sorted({p["bits"] for p in points}):
        first = next(p for p in points if p["bits"] == bits and p["codebook"] == LINEAR)
        axes.annotate(label_of(LINEAR, bits), (first["bits_per_weight"], first["error_pct"]), xytext=(-6, -5),
                      textcoords="offset points", ha="right", va="top", fontsize=8, color=INK)
    axes.set_yscale("log")
    axes.set_yticks([t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if _inside(t, points)])
    axes.yaxis.set_major_formatter(plt.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(plt.NullFormatter())
    axes.margins(x=0.08)
    axes.set(xlabel="bits per weight, scales included", ylabel="relative error of the weights (%)")
    meanings = [(look.marker, look.colour, look.colour, look.label) for look in GRIDS.values()]
    meanings += [("o", GRIDS[LINEAR].colour, fill, label) for label, fill in KINDS.values()]
    axes.legend(handles=[plt.Line2D([], [], linestyle="", marker=marker, markeredgecolor=edge, markerfacecolor=fill, label=label)
                         for marker, edge, fill, label in meanings], loc="upper right")
    axes.add_artist(axes.get_legend())
    lines = [plt.Line2D([], [], color=GRIDS[LINEAR].colour, linewidth=1, linestyle=styles[s]) for s in sizes]
    axes.legend(lines, [scale(size) for size in sizes], loc="lower left")
    return figure


def _inside(tick: float, points) -> bool:
    errors = [point["error_pct"] for point in points]
    return min(errors) / 1.5 <= tick <= max(errors) * 1.5
