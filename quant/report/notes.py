"""What a reader has to know besides the numbers: what was not measured and why, and what each number's machine could do."""

from __future__ import annotations

from collections.abc import Mapping

import jinja2

from quant.methods import load, names
from quant.report.results import Result, Run
from quant.report.style import GRIDS
from quant.report.subsets import equal_grids, grid_of, quantized
from quant.report.wording import joined, named
from quant.tensor.codebooks import label_of
from quant.text.corpus import FEW_LINES

TEXTS = {"grammar": "text of the embedded grammar", "ptb": "the Penn Treebank", "wikitext2": "WikiText-2"}


def text_name(corpus: Mapping) -> str:
    """What was scored, in words."""
    return TEXTS.get(corpus["source"], f"`{corpus['source']}`")


def few_lines(corpus: Mapping) -> str:
    """A warning where the text is too short, else nothing."""
    if corpus["sentences"] >= FEW_LINES:
        return ""
    return (f"**Few lines.** {corpus['sentences']:,} lines were scored, fewer than {FEW_LINES:,}: small differences may be "
            "chance of the text. The intervals say how much.")


def skipped(run: Run) -> list[str]:
    """What this run left out, each with its reason."""
    unused = [method.label for method in map(load, names()) if method.name not in {used.name for used in run.methods}]
    notes = [f"Of {label}, nothing: no variant of params.yaml names it." for label in unused]
    notes += _prompts(run)
    if all(result.speed["memory"]["cuda"] is None for result in run.results):
        notes.append("Memory and speed on a GPU: everything ran on the processor.")
    noisy = [r for r in run.results if r.speed["is_noisy"]]
    if noisy:
        notes.append(f"A trustworthy time of {named(noisy)}: measured twice, both times with too wide a spread. The second is "
                     "shown, and flagged.")
    again = [r for r in run.results if r.speed["attempts"] > 1 and r not in noisy]
    if again:
        notes.append(f"First timings of {named(again)}: they scattered too widely and were measured again; what was set aside "
                     "stands in reports/speed.")
    weights = run.weights["schemes"]
    if weights["left_out"]:
        sizes = joined([str(size) for size in weights["left_out"]])
        notes.append(f"In the figure of error against bits, groups of {sizes}: they do not divide every row of this model.")
    if run.base.speed["generation"]["prompt"] is None:
        notes.append("The prompt of the sample texts: it is the Penn Treebank's, which is licensed and not passed on.")
    notes.append("Methods that need calibration data or training (GPTQ [4], AWQ, quantization-aware training): every variant "
                 "here rounds the weights it was given.")
    return notes


def _prompts(run: Run) -> list[str]:
    timing, asked = run.base.speed["timing"], run.params["benchmark"]["prompts"]
    if len(asked) > 1 and timing["prefill_long"] is None:
        return [f"Prefill of {asked[1]} tokens: the model's context leaves no prompt longer than the first."]
    cut = [timing[phase] for phase in ("prefill", "prefill_long")
           if timing[phase] and timing[phase]["prompt_tokens"] < timing[phase]["asked_tokens"]]
    return [f"A prompt of {phase['asked_tokens']} tokens: the model's context leaves {phase['prompt_tokens']}." for phase in cut]


def bandwidth(run: Run) -> str:
    """How much of what memory delivers decoding used."""
    machine = run.base.speed["environment"]["memory_read_gb_per_s"]
    base = f"base read {run.base.decode['gb_per_s']:.2g} GB/s of weights while decoding"
    if not quantized(run):
        return f"Here {base}; this machine's memory delivers {machine:.1f}."
    most = max(quantized(run), key=lambda r: r.decode["gb_per_s"])
    least = min(quantized(run), key=lambda r: r.decode["gb_per_s"])
    return (f"Here {base}, of the {machine:.1f} that this machine's memory delivers; of the quantized variants `{most.name}` "
            f"read most, {most.decode['gb_per_s']:.2g}, and `{least.name}` least, {least.decode['gb_per_s']:.2g}.")


def about(run: Run) -> list[str]:
    """Paragraphs on the methods of this run, each from the method's own folder."""
    texts = []
    for method in run.methods:
        results = run.of_method(method)
        text = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(method.text("about.md.jinja") or "")
        rows = [{"name": result.name, "values": result.variant.values} for result in results]
        texts.append(text.render(variants=joined([f"`{row['name']}`" for row in rows]), rows=rows).strip())
    return [text for text in texts if text]


def grid_times(run: Run) -> str:
    """Decoding time of equal recipes that differ in their grid, ranked only where no rounds overlap."""
    chosen = equal_grids(run)
    if not chosen:
        return ""
    times = joined([f"{r.decode['ms']['median']:.2f} ms a token with `{r.name}`" for r in chosen])
    linear = [r for r in chosen if grid_of(r) == "linear"]
    verdicts = [f"`{r.name}` {_faster(r, linear[0])} `{linear[0].name}`" for r in chosen if linear and r is not linear[0]]
    return f"In this run decoding took {times}{': ' + joined(verdicts) if verdicts else ''}."


def _faster(one: Result, other: Result) -> str:
    mine, theirs = one.decode["speedup"]["raw"], other.decode["speedup"]["raw"]
    if min(mine) > max(theirs):
        return "was faster in every round than"
    return "was slower in every round than" if max(mine) < min(theirs) else "can't be told from"


def grid_errors(run: Run) -> str:
    """Error of the weights by grid, at each group size."""
    points = {(p["codebook"], p["group_size"]): p["error_pct"] for p in run.weights["schemes"]["points"]
              if (p["bits"], p["kind"]) == (4, "plain")}
    sizes = list(dict.fromkeys(size for _, size in points))
    size = 64 if 64 in sizes else sizes[0]
    labels = {name: label_of(name, 4) for name in GRIDS if (name, size) in points}
    errors = joined([f"{points[name, size]:.1f} % with {label}" for name, label in labels.items()])
    ratios = joined([f"{points['linear', size] / points['nf4', size]:.2f} with {_scale(size)}" for size in sizes])
    return (f"On this model's own weights, with {_scale(size)}, rounding to 4 bits errs by {errors}. INT4's error is that of NF4 "
            f"times {ratios}.")


def _scale(size: int | str) -> str:
    return "a scale per row" if size == "row" else f"a scale per {size} weights"


def commits(run: Run) -> str:
    """The commits of the code that the times were measured with."""
    found = sorted({r.speed["environment"]["commit"] or "unknown, no git" for r in run.results})
    return joined([f"`{commit}`" for commit in found])
