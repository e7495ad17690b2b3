"""The figures of the report: what each draws, and the caption that says what to see in this run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from matplotlib.colors import ListedColormap

from quant.progress import MIB
from quant.quality.bootstrap import difference, in_order, real_pairs
from quant.report.charts import axes_by_variant, bars, by_variant, log_axis, pareto_front, scatter, stacks, wide_range
from quant.report.results import Run
from quant.report.style import GRIDS, INK, OWN_TABLE, QUIET, in_style, legend_of, look_of, looks_of, new_axes, save
from quant.report.subsets import compared, equal_grids, grid_of, quantized
from quant.report.weight_figures import draw_error_against_bits, draw_error_map, draw_histogram
from quant.report.wording import joined, named
from quant.tensor.codebooks import LINEAR, label_of

PARTS = ("codes", "scales", "zeros", "codebook", "blocks", "floats")  # of the size breakdown, in the order of the bars
GROUPS = ("attention", "mlp", "embedding", "head", "norm", "other")
LEAST_KLD = 1e-3  # mnat; what is less is drawn there, for rounding of the scorer itself is of that size


@dataclass(frozen=True)
class Figure:
    """caption: from the data, since what there is to see depends on it. exists: whether a run
    has something to draw, where not every run has."""

    name: str
    title: str
    caption: Callable[[Run], str]
    draw: Callable[[Run], object]
    exists: Callable[[Run], bool] | None = None


def figures_of(run: Run) -> list[Figure]:
    return [figure for figure in FIGURES if figure.exists is None or figure.exists(run)]


def draw_all(run: Run, folder: Path) -> None:
    with in_style():
        for figure in figures_of(run):
            save(figure.draw(run), folder, figure.name)


def front_names(run: Run) -> list[str]:
    """Variants that no other beats in both size and perplexity, the smallest first."""
    return [run.results[i].name for i in pareto_front(_size_and_quality(run))]


def _size_and_quality(run: Run) -> list[tuple[float, float]]:
    return [(r.metrics["weights_mib"], r.metrics["ppl"]) for r in run.results]


def _draw_size_quality(run: Run):
    points = _size_and_quality(run)
    figure, axes = new_axes(8, 5)
    front = front_names(run)
    steps = [(r.metrics["weights_mib"], r.metrics["ppl"]) for r in run.named(front)]
    corners = [steps[0]]
    for (_, before), (x, y) in pairwise(steps):
        corners += [(x, before), (x, y)]
    axes.plot(*zip(*corners, strict=True), color=QUIET, linewidth=1.2, linestyle="--", zorder=1)
    log_axis(axes.xaxis, axes, "x")
    if wide_range([y for _, y in points]):
        log_axis(axes.yaxis, axes, "y")
    scatter(axes, run.results, points, front, corners)
    axes.set(xlabel="weights in memory (MiB)", ylabel="perplexity per token")
    return figure


def _caption_size_quality(run: Run) -> str:
    front = run.named(front_names(run))
    steps = [(small, large) for small, large in pairwise(front) if difference(large.blocks, small.blocks).is_real]
    ppl = [r.metrics["ppl"] for r in run.results]
    real = ""
    if steps:
        listed = joined([f"from `{small.name}` to `{large.name}`" for small, large in steps])
        real = f" Real among its steps down: {listed}."
    elif len(front) > 1:
        real = " None of its steps down is real: in each pair of neighbours the interval of the difference contains zero."
    return (f"Lower left is better. The dashed steps are the Pareto front, its members in bold: {named(front)}. Nothing here is "
            f"both smaller and of lower perplexity than one of them.{real} From the lowest point to the highest perplexity rises "
            f"by {100 * (max(ppl) / min(ppl) - 1):.2g} %.")


def _draw_size_speed(run: Run):
    points = [(r.metrics["weights_mib"], r.metrics["decode_speedup"]) for r in run.results]
    figure, axes = new_axes(8, 5)
    axes.axhline(1, color=QUIET, linewidth=1)
    log_axis(axes.xaxis, axes, "x")
    if wide_range([y for _, y in points]):
        log_axis(axes.yaxis, axes, "y")
    scatter(axes, run.results, points)
    axes.set(xlabel="weights in memory (MiB)", ylabel="decoding speed (base = 1)")
    return figure


def _caption_size_speed(run: Run) -> str:
    slower = [r.name for r in run.others if r.metrics["decode_speedup"] < 1]
    count = len(run.others)
    seen = f"{len(slower)} of {count} variants lie below it" if slower else f"All {count} variants lie above it"
    return f"Upper left is better. Above the line a variant decodes faster than base. {seen}."


def _draw_change(run: Run):
    figure, axes = axes_by_variant(run.others)
    for i, result in enumerate(run.others):
        look = look_of(result.method)
        low, high = result.quality["intervals"]["ppl_change_pct"]
        real = result.quality["intervals"]["is_real"]
        axes.plot([low, high], [i, i], color=look.colour, linewidth=1.6)
        axes.plot([low, high], [i, i], linestyle="", marker="|", color=look.colour, markersize=7)
        axes.plot(result.metrics["ppl_change_pct"], i, marker=look.marker, color=look.colour, markersize=6,
                  markerfacecolor=look.colour if real else "white")
    axes.axvline(0, color=QUIET, linewidth=1)
    by_variant(axes, run.others, "change of perplexity (%), with its 95 % interval")
    axes.margins(x=0.05)
    legend_of(axes, looks_of([r.method for r in run.others]), loc="best")
    return figure


def _caption_change(run: Run) -> str:
    unreal = [f"`{r.name}`" for r in run.others if not r.quality["intervals"]["is_real"]]
    seen = (f"Hollow markers: the interval contains zero, so on this text perplexity can't tell {joined(unreal)} from base"
            if unreal else "No interval contains zero: every variant's perplexity really differs from base's on this text")
    return ("Against base, on the same tokens; the interval comes from resampling blocks of text, variant and base together. "
            f"{seen}.")


PAIRS = {"kld": ("divergence", "by divergence from base"), "ppl": ("perplexity", "by perplexity")}


def _draw_pairs(run: Run):
    height = 0.21 * len(run.results)
    figure, panels = new_axes(10, height + 1.6, ncols=2)
    for axes, (kind, (_, title)) in zip(panels, PAIRS.items(), strict=True):
        measured = compared(run, kind)
        order = in_order(measured, kind)
        real = set(real_pairs(measured, kind))
        cells = [[(better, worse) in real for worse in order] for better in order]
        axes.imshow(cells, cmap=ListedColormap(["#eeeeee", GRIDS[LINEAR].colour]), vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(order)), order, rotation=90, fontsize=8)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        axes.set_xticks([i - 0.5 for i in range(1, len(order))], minor=True)
        axes.set_yticks([i - 0.5 for i in range(1, len(order))], minor=True)
        axes.grid(visible=False)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, loc="left")
    return figure


def _caption_pairs(run: Run) -> str:
    counts = []
    for kind, (name, _) in PAIRS.items():
        measured = compared(run, kind)
        counts.append(f"{len(real_pairs(measured, kind))} of {len(measured) * (len(measured) - 1) // 2} pairs by {name}")
    return ("Filled: the variant on the left is better than the one below, for the interval of their difference leaves out zero. "
            f"Best on top and at the left. Pale above the diagonal: this text does not tell. Real are {' and '.join(counts)}.")


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
    by_variant(axes, run.others, "KL divergence from base, per token (mnat)")
    legend_of(axes, looks_of([r.method for r in run.others]), loc="best")
    return figure


def _caption_divergence(run: Run) -> str:
    worst = max(run.others, key=lambda r: r.metrics["kld_mnats"])
    data = worst.quality["divergence"]["kld_mnats"]
    tail = ""
    if data["mean"] > 0 and data["p999"] > data["mean"]:
        tail = (f" A mean hides a tail: for `{worst.name}`, whose mean is the largest ({data['mean']:.3g} mnat), one token in a "
                f"thousand is off by {data['p999']:.3g} mnat or more.")
    return ("How far predictions moved, over the whole vocabulary at every token. Thick: from the median to the 99th percentile; "
            f"thin: on to the 99.9th; the marker is the mean. Less than {LEAST_KLD:g} is drawn at {LEAST_KLD:g}.{tail}")


def _draw_latency(run: Run):
    phases = [("prefill", "prefill of {prompt_tokens} tokens (ms)", "{:.1f}"), ("decode", "decoding, per token (ms)", "{:.2f}")]
    if all(r.speed["timing"]["prefill_long"] for r in run.results):
        phases.insert(1, ("prefill_long", "prefill of {prompt_tokens} tokens (ms)", "{:.1f}"))
    figure, panels = axes_by_variant(run.results, 9.5, ncols=len(phases), sharey=True)
    for axes, (phase, label, form) in zip(panels, phases, strict=True):
        data = [r.speed["timing"][phase] for r in run.results]
        flagged = [r.name for r, timing in zip(run.results, data, strict=True) if timing["is_noisy"]]
        bars(axes, run.results, [d["ms"]["median"] for d in data], [d["ms"]["mad"] for d in data], form, flagged)
        by_variant(axes, run.results, label.format(**data[0]))
    return figure


def _caption_latency(run: Run) -> str:
    noisy = [f"`{r.name}`" for r in run.results if r.speed["is_noisy"]]
    seen = (f"(!) marks timings that scattered widely even when measured again: {joined(noisy)}" if noisy
            else "No timing scattered more than the limit that would flag it")
    return f"Median over the rounds; the whisker is the median absolute deviation. Shorter is better. {seen}."


def _draw_bytes(run: Run):
    by_part = [{k: v / MIB for k, v in r.bytes_by("part").items()} for r in run.results]
    by_group = [{k: v / MIB for k, v in r.bytes_by("group").items()} for r in run.results]
    figure, (left, right) = axes_by_variant(run.results, 9.5, ncols=2, sharey=True)
    stacks(left, run.results, by_part, [p for p in PARTS if any(p in sizes for sizes in by_part)], "stored as")
    stacks(right, run.results, by_group, [g for g in GROUPS if any(g in sizes for sizes in by_group)], "belongs to")
    for axes in (left, right):
        by_variant(axes, run.results, "weights in memory (MiB)")
    return figure


def _caption_bytes(run: Run) -> str:
    shares = {r.name: r.bytes_by("part").get("floats", 0) / sum(r.bytes_by("part").values()) for r in quantized(run)}
    seen = ""
    if shares:
        most = max(shares, key=shares.__getitem__)
        seen = (f" Of what is quantized, `{most}` leaves most in floating point: {100 * shares[most]:.0f} % of its bytes.")
    return ("Every tensor that a model holds, scales included, tied weights once: on the left by what the bytes are, on the "
            f"right by what they belong to.{seen}")


def _draw_grids(run: Run):
    chosen = equal_grids(run)
    figure, panels = new_axes(8.5, 3.6, ncols=3)
    for axes, key, label in ((panels[0], "kld_mnats", "KL divergence from base (mnat)"),
                             (panels[1], "ppl_change_pct", "change of perplexity (%)")):
        for i, result in enumerate(chosen):
            value, (low, high) = result.metrics[key], result.quality["intervals"][key]
            _grid_bar(axes, i, value, grid_of(result), (low, high))
        axes.set_ylabel(label)
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
    axes.bar(place, value, width=0.6, color=look.colour, hatch=GRIDS.get(grid, OWN_TABLE).hatch, edgecolor="white",
             linewidth=0)
    top = value
    if interval:
        axes.plot([place, place], interval, color=INK, linewidth=1.2, marker="_", markersize=8)
        top = max(value, interval[1])
    axes.annotate(f"{value:#.3g}", (place, max(0, top)), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(y=0.12)


def _caption_grids(run: Run) -> str:
    chosen = equal_grids(run)
    size = chosen[0].metrics["weights_mib"]
    linear = [r for r in chosen if grid_of(r) == "linear"]
    seen = ""
    if linear:
        against = [f"`{r.name}` {_verdict(difference(r.blocks, linear[0].blocks, 'kld'))} `{linear[0].name}`"
                   for r in chosen if r is not linear[0]]
        seen = f" By divergence, {joined(against)}."
    return (f"The same weights at the same width and group size, {size:.2f} MiB each: only the grid differs. Lower is better; "
            f"lines are 95 % intervals, each against base.{seen}")


def _verdict(change) -> str:
    if not change.is_real:
        return "can't be told from"
    return "is closer to base than" if change.value < 0 else "is further from base than"


def _caption_error_bits(run: Run) -> str:
    data = run.weights["schemes"]
    points = {(p["codebook"], p["bits"], p["group_size"]): p["error_pct"] for p in data["points"] if p["kind"] == "plain"}
    size = 64 if ("linear", 4, 64) in points else "row"
    factor = (points["linear", 4, size] / points["linear", 8, size]) ** 0.25
    four = sorted((points[name, 4, size], label_of(name, 4)) for name in GRIDS if (name, 4, size) in points)
    scale = "a scale per row" if size == "row" else f"a scale per {size} weights"
    lost = ", ".join(f"{error:.1f} % as {name}" for error, name in four)
    left = ""
    if data["left_out"]:
        left = f" Left out, since they do not divide every row: groups of {', '.join(map(str, data['left_out']))}."
    return (f"Lower left is better. From 4 to 8 bits, each further bit divides the error by {factor:.2f}. With {scale}, 4 bits "
            f"lose {lost}. Scales are 32-bit unless quantized too; attention and feed-forward weights, {_sampled(data)}.{left}")


def _caption_map(run: Run) -> str:
    data = run.weights["map"]
    worst = max(data["cells"], key=lambda cell: cell["error_pct"])
    where = "outside the blocks" if worst["block"] is None else f"of block {worst['block']}"
    return (f"Error of rounding every weight with `{data['scheme']}`, root mean square, relative to the weight. The largest "
            f"is {worst['error_pct']:.1f} % for `{worst['role']}` {where}; {_sampled(data)}.")


def _caption_histogram(run: Run) -> str:
    data = run.weights["histogram"]
    used = sorted(((grid["entropy_bits"], label_of(name, 4)) for name, grid in data["grids"].items()), reverse=True)
    bits = ", ".join(f"{bits:.2f} by {name}" for bits, name in used)
    values = joined([f"{label_of(name, 4)}'s {len(grid['values'])}" for name, grid in data["grids"].items()])
    return (f"Grey: the weights of `{data['module']}` (kurtosis {data['kurtosis']:.1f}; a normal distribution has 3), each over "
            f"the largest of its group of {data['group_size']}. Stems: the values a 4-bit grid offers, as high as the share of "
            f"weights that lands on each. The more even the stems, the more of the 4 bits is used: {bits}. Values "
            f"that 16 codes name: {values}.")


def _sampled(data: Mapping) -> str:
    if data["sampled"] >= data["weights"]:
        return f"all {data['weights']:,} of them"
    return f"{data['sampled']:,} of {data['weights']:,} weights, in rows at even distances"


FIGURES = (
    Figure("size-quality", "Size against quality", _caption_size_quality, _draw_size_quality),
    Figure("ppl-change", "Change of perplexity", _caption_change, _draw_change),
    Figure("divergence", "Divergence", _caption_divergence, _draw_divergence),
    Figure("pairs", "Which differences are real", _caption_pairs, _draw_pairs),
    Figure("size-speed", "Size against speed", _caption_size_speed, _draw_size_speed),
    Figure("latency", "Latency", _caption_latency, _draw_latency),
    Figure("bytes", "What the bytes are", _caption_bytes, _draw_bytes),
    Figure("grids", "Linear against nonlinear at equal size", _caption_grids, _draw_grids, lambda run: bool(equal_grids(run))),
    Figure("histogram", "One weight matrix and three grids", _caption_histogram, lambda run: draw_histogram(run.weights)),
    Figure("error-bits", "Error of the weights against bits", _caption_error_bits,
           lambda run: draw_error_against_bits(run.weights)),
    Figure("error-map", "Error by block and role", _caption_map, lambda run: draw_error_map(run.weights)),
)  # fmt: skip
