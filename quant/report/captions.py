"""The captions of the figures. Each is made from the data, since what a figure shows depends on the run."""

from __future__ import annotations

from collections.abc import Mapping

from quant.quality.bootstrap import Difference, difference
from quant.report.comparable import equal_but_for_the_bits
from quant.report.metrics import METRICS, better_corner
from quant.report.results import Run
from quant.report.style import GRIDS
from quant.report.subsets import FRONT, equal_grids, front_names, grid_of, quantized
from quant.report.wording import code, joined, named, scale
from quant.tensor.codebooks import LINEAR, label_of
from quant.tensor.scheme import Scheme

MOST_BITS = 10  # per weight, in the figure of bits; a variant with more keeps much of the model unquantized
LEAST_KLD = 1e-3  # mnat; smaller values are drawn as this, because the scorer's own rounding errors are about as large


def size_divergence(run: Run) -> str:
    front = front_names(run)
    best = " Only one variant is on it: no other is significantly closer to base than the smallest."
    if len(front) > 1:
        best = " Each is significantly closer to base than the one before, and no variant of its size or smaller is closer."
    return (f"{better_corner(*FRONT)} is better, and both axes are logarithmic. The dashed steps are the Pareto front, its "
            f"members in bold: {code(front)}.{best} Base itself has no divergence; the vertical line is the size of its weights "
            "in 16 bits.")


def family(run: Run) -> str:
    rows = run.params["family"]["variants"]
    under = f" and under {code(rows)}" if rows else ""
    return ("Lower left is better. Bits per byte of text can be compared between models with different tokenizers. Joined by a "
            f"line: each model unquantized{under}, with 95 % intervals. Pale: the main model's other variants.")


def bits(run: Run) -> str:
    curves = equal_but_for_the_bits(run)
    if not curves:
        return f"Quantized variants of up to {MOST_BITS} bits per weight, all tensors counted. Lower left is better."
    steps = []
    for curve in curves:
        (wide, narrow) = curve[0], curve[-1]
        kld = [r.metrics["kld_mnats"] for r in (wide, narrow)]
        steps.append(f"from {kld[0]:.3g} mnat (`{wide.name}`) to {kld[1]:.3g} (`{narrow.name}`)")
    return (f"Quantized variants of up to {MOST_BITS} bits per weight, all tensors counted; the vertical axis is logarithmic. "
            f"Lower left is better. Along the lines only the width of the codes changes: {joined(steps)}.")


def sensitivity(run: Run) -> str:
    parts, scheme = run.sensitivity["parts"], Scheme.from_dict(run.sensitivity["scheme"])
    whole = next(part for part in parts if part["kind"] == "all")
    most = {kind: max((p for p in parts if p["kind"] == kind), key=lambda p: p["kld_mnats"]) for kind in ("role", "block")}
    return (f"One role or one decoder block alone rounded as `{scheme.label}`, all else unquantized; lines are 95 % intervals, "
            f"from the first {run.sensitivity['tokens']:,} tokens. All blocks together: {whole['kld_mnats']:.3g} mnat. The most "
            f"sensitive are `{most['role']['name']}` ({most['role']['kld_mnats']:.3g}) and block {most['block']['name']} "
            f"({most['block']['kld_mnats']:.3g}).")


def size_speed(run: Run) -> str:
    timed = [r for r in run.others if r.is_timed]
    slower = [r.name for r in timed if r.metrics["decode_speedup"] < 1]
    seen = f"{len(slower)} of {len(timed)} variants lie below it" if slower else "No variant lies below it"
    return (f"{better_corner('weights_mib', 'decode_speedup')} is better. Above the line a variant decodes faster than base. "
            f"{seen}.")


def ppl_change(run: Run) -> str:
    alike = [r for r in run.others if not r.quality["intervals"]["is_significant"]]
    seen = (f"Hollow markers: the interval contains zero, so the change is not significant for {named(alike)}" if alike
            else "No interval contains zero: every variant's perplexity differs significantly from base's on this text")
    return ("Measured against base on the same tokens; the interval comes from resampling blocks of text, variant and base "
            f"together. {seen}.")


def divergence(run: Run) -> str:
    worst = max(run.others, key=lambda r: r.metrics["kld_mnats"])
    data = worst.quality["divergence"]["kld_mnats"]
    tail = ""
    if data["mean"] > 0 and data["p999"] > data["mean"]:
        tail = (f" The mean hides a tail: `{worst.name}` has the largest mean ({data['mean']:.3g} mnat), and one token in a "
                f"thousand diverges by {data['p999']:.3g} mnat or more.")
    return ("From base, over the whole vocabulary, at every scored token. Thick: from the median to the 99th percentile; thin: "
            f"on to the 99.9th; marker: the mean. Values below {LEAST_KLD:g} are drawn at {LEAST_KLD:g}.{tail}")


def latency(run: Run) -> str:
    noisy = [r for r in run.timed if not r.is_trusted]
    seen = (f"(!) marks timings that are not to be trusted: {named(noisy)}" if noisy
            else "No timing varied more than the limit that would flag it")
    return (f"Median over the rounds; the whisker is the median absolute deviation. "
            f"{'Shorter' if METRICS['decode_ms_per_token'].better == 'lower' else 'Longer'} is better. {seen}.")


def size(run: Run) -> str:
    shares = {r.name: r.bytes_by("part").get("floats", 0) / sum(r.bytes_by("part").values()) for r in quantized(run)}
    seen = ""
    if shares:
        most = max(shares, key=shares.__getitem__)
        seen = f" Of the quantized variants, `{most}` leaves the most unquantized: {100 * shares[most]:.0f} % of its bytes."
    return ("All tensors that a model holds in memory, scales included, tied weights once: on the left by storage, on the right "
            f"by part of the model.{seen}")


def grids(run: Run) -> str:
    chosen = equal_grids(run)
    seen = ""
    linear = next((r for r in chosen if grid_of(r) == LINEAR), None)
    if linear:
        against = [f"`{r.name}` {_verdict(difference(r.blocks, linear.blocks, 'kld'))} `{linear.name}`"
                   for r in chosen if r is not linear]
        seen = f" By divergence, {joined(against)}."
    return (f"The same weights at the same width and group size, {chosen[0].metrics['weights_mib']:.2f} MiB each: only the grid "
            f"differs. {METRICS['kld_mnats'].better.capitalize()} is better; lines are 95 % intervals, each against base.{seen}")


def _verdict(change: Difference) -> str:
    if not change.is_significant:
        return "is not significantly different from"
    return "is closer to base than" if change.value < 0 else "is further from base than"


def error_bits(run: Run) -> str:
    data = run.weights["schemes"]
    points = {(p["codebook"], p["bits"], p["group_size"]): p["error_pct"] for p in data["points"] if p["kind"] == "plain"}
    group = 64 if (LINEAR, 4, 64) in points else "row"
    factor = (points[LINEAR, 4, group] / points[LINEAR, 8, group]) ** 0.25
    four = sorted((points[name, 4, group], label_of(name, 4)) for name in GRIDS if (name, 4, group) in points)
    errors = ", ".join(f"{error:.1f} % as {name}" for error, name in four)
    return (f"Lower left is better. From 4 to 8 bits, each further bit divides the error by {factor:.2f}. With {scale(group)}, "
            f"the error at 4 bits is {errors}. Scales are 32-bit unless quantized too. Measured on the weights of attention "
            f"and feed-forward layers: {_sampled(data)}.")


def error_map(run: Run) -> str:
    data = run.weights["map"]
    worst = max(data["cells"], key=lambda cell: cell["error_pct"])
    where = "outside the blocks" if worst["block"] is None else f"of block {worst['block']}"
    return (f"Relative RMS error of the weights ({_sampled(data)}), each rounded with `{data['scheme']}`. The largest is "
            f"{worst['error_pct']:.1f} % for `{worst['role']}` {where}.")


def histogram(run: Run) -> str:
    data = run.weights["histogram"]
    used = sorted(((grid["entropy_bits"], label_of(name, 4)) for name, grid in data["grids"].items()), reverse=True)
    bits = ", ".join(f"{bits:.2f} by {name}" for bits, name in used)
    values = joined([f"{label_of(name, 4)} {len(grid['values'])}" for name, grid in data["grids"].items()])
    return (f"Grey: the weights of {code([data['module']])} (kurtosis {data['kurtosis']:.1f}; a normal distribution has 3), each "
            f"divided by the largest magnitude of its group of {data['group_size']}. Stems: the values of each 4-bit grid, as "
            "high as the share of weights rounded to them. The more even the stems, the more of the 4 bits is used: "
            f"{bits}. Distinct values among 16 codes: {values}.")


def _sampled(data: Mapping) -> str:
    if data["sampled"] >= data["weights"]:
        return f"all {data['weights']:,} of them"
    return f"{data['sampled']:,} of {data['weights']:,} weights, in evenly spaced rows"
