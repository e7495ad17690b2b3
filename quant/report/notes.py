"""Remarks beside the numbers: warnings, gaps and their reasons, and the paragraphs on methods, grids and bandwidth."""

from __future__ import annotations

from collections.abc import Mapping

from quant.methods import load, names
from quant.report import calibration
from quant.report.results import Result, Run
from quant.report.style import GRIDS
from quant.report.subsets import equal_grids, grid_of, quantized
from quant.report.tables import of_another_runtime
from quant.report.templates import environment
from quant.report.wording import code, joined, literal, plain, scale, some
from quant.tensor.codebooks import LINEAR, label_of
from quant.text.corpus import FEW_LINES
from quant.text.source import KNOWN


def text_name(corpus: Mapping) -> str:
    """The name of the evaluation text, for a sentence."""
    source = corpus["source"]
    return KNOWN[source].title if source in KNOWN else literal(source)


def warnings(run: Run, corpus: Mapping) -> list[str]:
    """Warnings for the top of the report: a short text, a machine too busy to time on."""
    found = []
    if corpus["sentences"] < FEW_LINES:
        found.append(f"**Few lines.** {corpus['sentences']:,} lines were scored, fewer than {FEW_LINES:,}: small differences may "
                     "be chance. The intervals show how uncertain each number is.")
    if run.left_out:
        names = code(one.variant.name for one in run.left_out)
        found.append(f"**Left out.** {len(run.left_out)} of {len(run.left_out) + len(run.results)} rows could not be made or "
                     f"run: {names}. The reasons stand below the table of results.")
    noisy = [r for r in run.timed if not r.is_trusted]
    if len(noisy) > len(run.timed) / 2:
        found.append(f"**Unreliable timings.** {len(noisy)} of {len(run.timed)} timings can't be trusted: the machine was busy. "
                     "Run `dvc repro` again on an idle machine before you rely on the speeds.")
    return found


def skipped(run: Run) -> list[str]:
    """Notes on everything that this run left out, each with its reason."""
    asked = {method.name for method in run.methods} | {one.variant.method.name for one in run.left_out}
    unused = [method.label for method in map(load, names()) if method.name not in asked]
    notes = [f"Variants of {label}: no row of params.yaml asks for one." for label in unused]
    notes += [f"`{one.variant.name}`, which could not be made or run: {plain(one.refusal.reason)}." for one in run.left_out]
    notes += _prompts(run)
    if all(result.speed["memory"]["cuda"] is None for result in run.timed):
        notes.append("Memory and speed on a GPU: everything ran on the processor.")
    untimed = [r for r in run.results if not r.is_timed]
    if untimed:
        notes.append(f"Speed and peak memory of {some(untimed)}: their rows say `benchmark: false`.")
    noisy = [r for r in run.timed if not r.is_trusted]
    if noisy:
        busy = [r for r in noisy if r.speed["machine_load"]["is_busy"]]
        if busy:
            notes.append(f"Reliable timings for {some(busy)}: other processes used the machine. They are shown, and flagged.")
        if len(busy) < len(noisy):
            notes.append(f"Reliable timings for {some([r for r in noisy if r not in busy])}: both attempts varied too much. The "
                         "calmer one is shown, and flagged.")
    again = [r for r in run.timed if r.speed["attempts"] > 1 and r not in noisy]
    if again:
        notes.append(f"The first timings of {some(again)}: they varied too much and were repeated; reports/speed keeps both.")
    if run.base.speed["generation"]["prompt"] is None:
        notes.append("The prompt of the sample texts: it comes from licensed text that may not be passed on.")
    if not calibration.calibrated(run):
        notes.append("Methods that need calibration data (GPTQ [4], AWQ): every variant here rounds the weights as "
                     "they are.")
    notes.append("Training (quantization-aware training, fine-tuning after rounding): no variant here is trained; a chapter of "
                 "its own has an example.")
    return notes


def _prompts(run: Run) -> list[str]:
    timing, asked = run.base.speed["timing"], run.params["benchmark"]["prompts"]
    if len(asked) > 1 and timing["prefill_long"] is None:
        return [f"Prefill of {asked[1]} tokens: the model's context has no room for a prompt longer than the first."]
    cut = [timing[phase] for phase in ("prefill", "prefill_long")
           if timing[phase] and timing[phase]["prompt_tokens"] < timing[phase]["asked_tokens"]]
    return [f"A prompt of {phase['asked_tokens']} tokens: the model's context has room for {phase['prompt_tokens']}."
            for phase in cut]


def bandwidth(run: Run) -> str:
    """The rate at which decoding read weights, compared with the memory's bandwidth."""
    machine = run.base.speed["environment"]["memory_read_gb_per_s"]
    base = f"base read {run.base.decode['gb_per_s']:.2g} GB/s of weights while decoding"
    timed = [r for r in quantized(run) if r.is_timed]
    if not timed:
        return f"Here {base}; this machine's memory delivers {machine:.1f}."
    most = max(timed, key=lambda r: r.decode["gb_per_s"])
    least = min(timed, key=lambda r: r.decode["gb_per_s"])
    return (f"Here {base}, of the {machine:.1f} that this machine's memory delivers; of the quantized variants `{most.name}` "
            f"read most, {most.decode['gb_per_s']:.2g}, and `{least.name}` least, {least.decode['gb_per_s']:.2g}.")


def sensitivity(run: Run) -> str:
    """Whether the parts' divergences add up to that of all blocks, and which role costs most per weight."""
    parts = run.sensitivity["parts"]
    whole = next(part for part in parts if part["kind"] == "all")
    roles, blocks = ([part for part in parts if part["kind"] == kind] for kind in ("role", "block"))
    total = sum(part["kld_mnats"] for part in blocks)
    dearest = max(roles, key=lambda part: part["kld_mnats"] / part["weights"])
    cheapest = min(roles, key=lambda part: part["kld_mnats"] / part["weights"])
    ratio = (dearest["kld_mnats"] / dearest["weights"]) / max(cheapest["kld_mnats"] / cheapest["weights"], 1e-12)
    return (f"The divergences of the blocks alone add up to {total:.3g} mnat; all of them quantized together diverge by "
            f"{whole['kld_mnats']:.3g}. Per weight, `{dearest['name']}` costs most, {ratio:.3g} times as much as "
            f"`{cheapest['name']}`: bits are best saved where they cost least.")


def of_methods(run: Run, template: str, figures: Mapping[str, str] | None = None) -> list[str]:
    """A text from the folder of each method of this run that has one, such as "about.md.jinja", rendered.

    The template is given variants, the names in a sentence; rows, a list of {name, values}; and table, the method's variants
    beside base where another runtime than base's runs them, else ""; results, of the method's variants; base, its result; run;
    figures, of the report, by name; and calibration, the module.
    """
    found = []
    for method in run.methods:
        rows = [{"name": result.name, "values": result.variant.values} for result in run.of_method(method)]
        text = environment().from_string(method.text(template) or "")
        variants = code(row["name"] for row in rows)
        found.append(text.render(variants=variants, rows=rows, table=of_another_runtime(run, method),
                                 results=run.of_method(method), base=run.base, run=run, figures=figures or {},
                                 calibration=calibration).strip())
    return [text for text in found if text]


def grid_times(run: Run) -> str:
    """Decoding time of equal recipes that differ in their grid, ranked only where no rounds overlap."""
    chosen = [r for r in equal_grids(run) if r.is_timed]
    if not chosen:
        return ""
    times = joined([f"{r.decode['ms']['median']:.2f} ms per token with `{r.name}`" for r in chosen])
    linear = [r for r in chosen if grid_of(r) == LINEAR]
    verdicts = [f"`{r.name}` {_faster(r, linear[0])} `{linear[0].name}`" for r in chosen if linear and r is not linear[0]]
    return f"In this run decoding took {times}{': ' + joined(verdicts) if verdicts else ''}."


def _faster(one: Result, other: Result) -> str:
    mine, theirs = one.decode["speedup"]["raw"], other.decode["speedup"]["raw"]
    if min(mine) > max(theirs):
        return "was faster in every round than"
    return "was slower in every round than" if max(mine) < min(theirs) else "was not reliably faster or slower than"


def grid_errors(run: Run) -> str:
    """Error of the weights by grid, at each group size."""
    points = {(p["codebook"], p["group_size"]): p["error_pct"] for p in run.weights["schemes"]["points"]
              if (p["bits"], p["kind"]) == (4, "plain")}
    sizes = list(dict.fromkeys(size for _, size in points))
    size = 64 if 64 in sizes else sizes[0]
    labels = {name: label_of(name, 4) for name in GRIDS if (name, size) in points}
    errors = joined([f"{points[name, size]:.1f} % with {label}" for name, label in labels.items()])
    ratios = joined([f"{points[LINEAR, size] / points['nf4', size]:.2f} with {scale(size)}" for size in sizes])
    return (f"On this model's own weights, with {scale(size)}, rounding to 4 bits has a relative RMS error of {errors}. "
            f"INT4's error divided by NF4's is {ratios}.")


def commits(run: Run) -> str:
    """The commits of the code whose speed was measured."""
    found = sorted({r.speed["environment"]["commit"] or "unknown, no git" for r in run.timed})
    return joined([f"`{commit}`" for commit in found])
