"""Chart types that several figures share: labelled points, bars and stacked bars by variant, logarithmic axes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from quant.report.results import Result
from quant.report.style import HATCHES, INK, LINE, PARTS, legend_of, look_of, looks_of, new_axes

_HEIGHTS = (4, -11, 15, -22, 26, -33, 37, -44, 48, -55, 59, -66, 70, -77)
_OFFSETS = [(x, y) for y in _HEIGHTS for x in (7, None)]  # None: to the left


def scatter(axes, results: Sequence[Result], points: Sequence[tuple[float, float]], bold: Collection[str] = (),
            line: Sequence[tuple[float, float]] = ()) -> None:
    """Draw labelled points by method; a label moves until it is clear of earlier labels, points, the legend and `line`.

    bold: names in bold; line: the corners of a stepped line, in the axes' units.
    """
    for result, (x, y) in zip(results, points, strict=True):
        look = look_of(result.method)
        axes.scatter(x, y, color=look.colour, marker=look.marker, s=45, zorder=3, edgecolors="white", linewidths=0.6)
    axes.margins(x=0.14, y=0.12)
    legend_of(axes, looks_of([r.method for r in results]), loc="best")
    axes.figure.canvas.draw()
    places = [axes.transData.transform(point) for point in points]
    markers = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    corners = [axes.transData.transform(corner) for corner in line]
    pieces = [Bbox([corner, following]).padded(1) for corner, following in pairwise(corners)]
    taken = [axes.get_legend().get_window_extent(), *markers, *pieces]
    for result, point in sorted(zip(results, points, strict=True), key=lambda pair: -pair[1][1]):
        for x, y in _OFFSETS:
            label = axes.annotate(
                result.name, point, xytext=(7 if x else -7, y), textcoords="offset points", fontsize=8, color=INK,
                ha="left" if x else "right", weight="bold" if result.name in bold else "normal",
                arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.6, "shrinkA": 0} if abs(y) > 15 else None,
            )
            box = _text_of(label).expanded(1.02, 1.05)
            if not any(box.overlaps(other) for other in taken):
                break
            label.remove()
        else:
            label = axes.annotate(result.name, point, xytext=(7, 4), textcoords="offset points", fontsize=8)
            box = _text_of(label)
        taken.append(box)


def _text_of(label: Annotation) -> Bbox:
    """Where a label's text is, without its arrow, which begins in a point."""
    label.update_positions(label.figure.canvas.get_renderer())
    return Text.get_window_extent(label)


def wide_range(values: Sequence[float]) -> bool:
    """Whether the values need a logarithmic axis."""
    return min(values) > 0 and max(values) > 4 * min(values)


def log_axis(axis, axes, which: str) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks. which: "x" or "y"."""
    getattr(axes, f"set_{which}scale")("log", subs=(2, 3, 5))
    for formatter in (axis.set_major_formatter, axis.set_minor_formatter):
        formatter("{x:g}")
    axis.set_tick_params(which="minor", labelsize=8)
    axes.grid(which="minor", axis=which)


def by_variant(axes, results: Sequence[Result], label: str, names: bool = True) -> None:
    """Give the y axis a row per variant, the first on top. label: of the x axis."""
    axes.set_yticks(range(len(results)), [r.name for r in results] if names else [])
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)


def bars(axes, results: Sequence[Result], values: Sequence[float], spreads: Sequence[float], form: str,
         flagged: Collection[str] = ()) -> None:
    """Draw a bar per variant with its spread and its number. flagged: names whose number gets a mark."""
    for i, (result, value, spread) in enumerate(zip(results, values, spreads, strict=True)):
        look = look_of(result.method)
        axes.barh(i, value, height=0.7, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0, xerr=spread,
                  ecolor="black", capsize=3)
        mark = " (!)" if result.name in flagged else ""
        axes.annotate(form.format(value) + mark, (value + spread, i), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=8)
    axes.margins(x=0.14)


def stacks(axes, results: Sequence[Result], parts: Sequence[Mapping[str, float]], order: Sequence[str], title: str) -> None:
    """Draw a bar per variant, stacked from parts. parts: a size by part for each result; order: of the parts."""
    start = [0.0] * len(results)
    for i, part in enumerate(order):
        sizes = [sizes.get(part, 0.0) for sizes in parts]
        axes.barh(range(len(results)), sizes, left=start, label=part, color=PARTS[i], hatch=HATCHES[i], edgecolor="white",
                  linewidth=0.3)
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    axes.legend(title=title, loc="lower right")


def axes_by_variant(results: Sequence[Result], width: float = 8, **grid):
    """A figure and its axes with room for a line per result; width in inches, `grid` as of pyplot.subplots."""
    return new_axes(width, 0.28 * len(results) + 1.2, **grid)
