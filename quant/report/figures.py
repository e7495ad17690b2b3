"""The figures. Each is a function from results to a drawing, with the caption that says what to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quant.report.results import Result
from quant.report.style import FAMILIES, family_legend, new_axes, save


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    caption: str
    draw: Callable[[Sequence[Result]], object]


def draw_all(results: Sequence[Result], folder: Path) -> None:
    for figure in FIGURES:
        save(figure.draw(results), folder, figure.name)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates (less is better), by the first."""
    front: list[int] = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < best:
            front.append(index)
            best = points[index][1]
    return front


def _size_and_quality(results: Sequence[Result]):
    points = [(r.metrics["weights_mib"], r.metrics["ppl"]) for r in results]
    figure, axes = new_axes()
    front = [points[i] for i in pareto_front(points)]
    axes.plot(*zip(*front, strict=True), color="#999999", linewidth=1, drawstyle="steps-post", zorder=1)
    _scatter(axes, results, points)
    axes.set(xlabel="weights in memory (MiB)", ylabel="perplexity per token", title="Size against quality")
    return figure


def _size_and_speed(results: Sequence[Result]):
    points = [(r.metrics["weights_mib"], r.metrics["decode_speedup"]) for r in results]
    figure, axes = new_axes()
    axes.axhline(1, color="#999999", linewidth=1)
    _scatter(axes, results, points)
    axes.set(xlabel="weights in memory (MiB)", ylabel="decoding speed, base = 1", title="Size against speed")
    return figure


def _perplexity_change(results: Sequence[Result]):
    chosen = [r for r in results if r.name != "base"]
    return _bars(chosen, [r.metrics["ppl_change_pct"] for r in chosen], "change of perplexity (%)",
                 "What quantization costs in perplexity", "{:+.3f}")


def _divergence(results: Sequence[Result]):
    chosen = [r for r in results if r.name != "base"]
    return _bars(chosen, [r.metrics["kld_mnats"] for r in chosen], "mean KL divergence from base (mnat per token)",
                 "How far the predictions moved", "{:.3f}")


def _latency(results: Sequence[Result]):
    values = [r.metrics["decode_ms_per_token"] for r in results]
    spreads = [r.speed["timing"]["decode"]["ms"]["mad"] for r in results]
    return _bars(results, values, "milliseconds per decoded token", "Decoding, one token at a time", "{:.2f}", spreads)


def _bytes_by_dtype(results: Sequence[Result]):
    dtypes = sorted({dtype for r in results for dtype in r.quality["held_bytes"]})
    figure, axes = new_axes(8, 0.3 * len(results) + 1.6)
    start = [0.0] * len(results)
    for i, dtype in enumerate(dtypes):
        sizes = [r.quality["held_bytes"].get(dtype, 0) / 2**20 for r in results]
        shade = str(0.15 + 0.75 * i / max(1, len(dtypes) - 1))
        axes.barh([r.name for r in results], sizes, left=start, label=dtype, color=shade, edgecolor="black", linewidth=0.4)
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(title="stored as", loc="lower right", fontsize=8)
    axes.set(xlabel="weights in memory (MiB)", title="What the bytes are")
    return figure


def _scatter(axes, results: Sequence[Result], points: Sequence[tuple[float, float]]) -> None:
    """Points by family, labelled; a label moves down while it would lie on an earlier one."""
    for result, (x, y) in zip(results, points, strict=True):
        look = FAMILIES[result.family]
        axes.scatter(x, y, color=look.colour, marker=look.marker, s=45, zorder=3, edgecolors="white", linewidths=0.6)
    axes.margins(x=0.12, y=0.1)
    axes.figure.canvas.draw()
    taken: list = []
    for result, point in sorted(zip(results, points, strict=True), key=lambda pair: -pair[1][1]):
        for offset in _OFFSETS:
            label = axes.annotate(result.name, point, xytext=offset, textcoords="offset points", fontsize=8,
                                  color=FAMILIES[result.family].colour)
            box = label.get_window_extent().expanded(1.02, 1.05)
            if not any(box.overlaps(other) for other in taken):
                break
            label.remove()
        else:
            label = axes.annotate(result.name, point, xytext=(6, 4), textcoords="offset points", fontsize=8)
            box = label.get_window_extent()
        taken.append(box)
        if abs(offset[1]) > 14:
            axes.annotate("", point, xytext=offset, textcoords="offset points",
                          arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.6})
    family_legend(axes, [r.family for r in results])


_OFFSETS = [(x, y) for y in (4, -10, 14, -20, 24, -30, 34, -40, 44, -50) for x in (7, -52)]


def _bars(results: Sequence[Result], values: Sequence[float], label: str, title: str, form: str,
          spreads: Sequence[float] | None = None):
    figure, axes = new_axes(8, 0.3 * len(results) + 1.4)
    for i, (result, value) in enumerate(zip(results, values, strict=True)):
        look = FAMILIES[result.family]
        axes.barh(i, value, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0,
                  xerr=None if spreads is None else spreads[i], ecolor="#888888", capsize=2)
        axes.annotate(form.format(value), (max(value, 0), i), xytext=(4 if spreads is None else 9, 0),
                      textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(results)), [r.name for r in results])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=label, title=title)
    return figure


FIGURES = (
    Figure("size-quality", "Size against quality", "Lower left is better. The grey steps are the Pareto front: no variant "
           "is both smaller and better than one on it.", _size_and_quality),
    Figure("ppl-change", "Change of perplexity", "Against base, on the same tokens. Variants with the same number of bits "
           "differ only in their grid and in what they leave alone.", _perplexity_change),
    Figure("divergence", "Divergence", "How far a variant's predictions are from the base's, over the whole vocabulary at "
           "every token. It tells variants apart that perplexity can't.", _divergence),
    Figure("size-speed", "Size against speed", "Upper left is better. Above the line a variant decodes faster than base.",
           _size_and_speed),
    Figure("decode", "Decoding speed", "Median over the rounds; the whisker is the median absolute deviation.", _latency),
    Figure("bytes", "What the bytes are", "All tensors a model holds, scales included, tied weights once. uint8 are packed "
           "codes.", _bytes_by_dtype),
)  # fmt: skip
