"""The tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quant.progress import MIB
from quant.report.metrics import METRICS
from quant.report.results import Result, Run
from quant.report.wording import named, signed

SMALL = 0.005  # MiB that round to nothing: biases, norms


@dataclass(frozen=True)
class Column:
    heading: str
    cell: Callable[[Result], str]


def metric_column(key: str) -> Column:
    """The column of one metric."""
    metric = METRICS[key]
    return Column(metric.heading, lambda result: metric.format(result.metrics[key]))


def _interval(key: str, form: Callable[[float], str]) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        return "" if result.name == "base" else " to ".join(form(end) for end in result.quality["intervals"][key])

    return cell


def _on_gpu(result: Result, key: str) -> str:
    found = result.speed["memory"]["cuda"]
    return "" if found is None else number(found[key], "{:.0f}")


def _quality_number(heading: str, form: str, *path: str) -> Column:
    def cell(result: Result) -> str:
        value = result.quality["divergence"]
        for key in path:
            value = value[key]
        return number(value, form)

    return Column(heading, cell)


def _noise(result: Result) -> str:
    return ", ".join(name for name, phase in result.speed["timing"].items() if phase and phase["is_noisy"]).replace("_", " ")


_M = {key: metric_column(key) for key in METRICS}
QUALITY = (
    _M["ppl"], _M["ppl_change_pct"], Column("95 % interval", _interval("ppl_change_pct", signed)), _M["kld_mnats"],
    _M["top1_agree_pct"], _M["bits_per_weight"], _M["weights_mib"], _M["disk_mib"], _M["decode_speedup"],
)  # fmt: skip
DIVERGENCE = (
    _quality_number("KLD mean", "{:.4f}", "kld_mnats", "mean"), Column("95 % interval", _interval("kld_mnats", "{:.4f}".format)),
    _quality_number("median", "{:.4f}", "kld_mnats", "median"), _quality_number("99 %", "{:.2f}", "kld_mnats", "p99"),
    _quality_number("99.9 %", "{:.2f}", "kld_mnats", "p999"), _M["top1_agree_pct"],
    _quality_number("top-5 %", "{:.1f}", "top5_agree_pct"),
    _quality_number("Δp mean", "{:+.4f}", "true_token_change_pct", "mean"),
    _quality_number("Δp rms", "{:.3f}", "true_token_change_pct", "rms"),
)  # fmt: skip
SPEED = (
    _M["prefill_ms"], _M["prefill_speedup"], _M["decode_ms_per_token"],
    Column("± MAD", lambda r: number(r.decode["ms"]["mad"], "{:.2f}")),
    Column("p90", lambda r: number(r.decode["ms"]["p90"], "{:.2f}")), _M["decode_speedup"],
    Column("tokens/s", lambda r: number(r.decode["tokens_per_s"], "{:.0f}")),
    Column("GB/s", lambda r: number(r.decode["gb_per_s"], "{:.2f}")),
    Column("generate ms", lambda r: number(r.speed["timing"]["generate"]["ms"]["median"], "{:.0f}")), Column("scattered", _noise),
)  # fmt: skip
ON_GPU = (
    Column("GPU loading MiB", lambda r: _on_gpu(r, "load_peak_mib")),
    Column("GPU generating MiB", lambda r: _on_gpu(r, "generate_peak_mib")),
    Column("GPU allocated MiB", lambda r: _on_gpu(r, "allocated_mib")),
)
MEMORY = (
    Column("first call ms", lambda r: number(r.speed["load"]["first_call_ms"], "{:.1f}")), _M["load_s"],
    Column("loading MiB", lambda r: number(r.speed["memory"]["load_peak_mib"], "{:.0f}")),
    Column("generating MiB", lambda r: number(r.speed["memory"]["generate_peak_mib"], "{:.0f}")),
    Column("afterwards MiB", lambda r: number(r.speed["memory"]["resident_mib"], "{:.0f}")),
    Column("interpreter MiB", lambda r: number(r.speed["memory"]["interpreter_mib"], "{:.0f}")),
)  # fmt: skip


def table(results: Sequence[Result], columns: Sequence[Column]) -> str:
    """A row per variant."""
    rows = [[result.name, *(column.cell(result) for column in columns)] for result in results]
    return grid(["variant", *(column.heading for column in columns)], rows)


def memory(run: Run) -> str:
    """Memory of every variant; of the GPU where there is one."""
    columns = MEMORY if all(result.speed["memory"]["cuda"] is None for result in run.results) else (*MEMORY, *ON_GPU)
    return table(run.results, columns)


def ranking(run: Run, tiers: Sequence[Sequence[str]], key: str) -> str:
    """A row per tier: its variants, and the range of a metric and of the size among them."""
    column, size = metric_column(key), metric_column("weights_mib")
    rows = []
    for number_of_tier, names in enumerate(tiers, 1):
        members = run.named(names)
        ranges = (list(dict.fromkeys(cell.cell(r) for r in sorted(members, key=lambda r: r.metrics[metric])))
                  for cell, metric in ((column, key), (size, "weights_mib")))
        rows.append([str(number_of_tier), named(members), *(" to ".join([found[0], *found[1:][-1:]]) for found in ranges)])
    return grid(["tier", "variants", column.heading, size.heading], rows, left=2)


def of_another_runtime(run: Run) -> str:
    """Variants that another runtime runs than base's: what their files hold and what they gave; empty where there are none."""
    files = [r for r in run.results if r.method.runtime != run.base.method.runtime]
    columns = [_M[key] for key in ("bits_per_weight", "load_s", "peak_rss_mib", "decode_speedup", "ppl_change_pct", "kld_mnats")]
    rows = [[r.name, _census(r).replace("GGUF ", "") if r in files else "", *(column.cell(r) for column in columns)]
            for r in (run.base, *files)]
    return grid(["variant", "tensors", *(column.heading for column in columns)], rows, left=2) if files else ""


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all but the first `left` columns are set to the right."""
    lines = ["| " + " | ".join(headings) + " |", "|" + ":--|" * left + "--:|" * (len(headings) - left)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def left_in_float(run: Run) -> str:
    """What each quantized variant keeps in floating point, by group, in MiB, and its layers by type."""
    rows = []
    for result in run.others:
        if result.method.name == run.base.method.name:  # nothing quantized
            continue
        kept: dict[str, int] = {}
        for row in result.quality["size_breakdown"]:
            if row["part"] == "floats":
                kept[row["group"]] = kept.get(row["group"], 0) + row["bytes"]
        listed = ", ".join(f"{group} {size / MIB:.2f}" for group, size in kept.items() if size >= SMALL * MIB)
        rows.append([result.name, listed or f"less than {SMALL} each", _census(result)])
    return grid(["variant", "left in floating point (MiB)", "layers"], rows, left=3)


def _census(result: Result) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in result.quality["module_counts"].items())


def generations(run: Run) -> list[Mapping[str, str]]:
    """Name, the text up to where it leaves base's, and the rest; variants with base's own text have no rest."""
    found = []
    for result in run.others:
        said = result.speed["generation"]
        text, base = said["text"], said["base_text"]
        shared = next((i for i, (a, b) in enumerate(zip(text, base, strict=False)) if a != b), min(len(text), len(base)))
        shared = text.rfind(" ", 0, shared) + 1 if text != base else len(text)
        found.append({"name": result.name, "same": text[:shared].strip(), "rest": text[shared:].strip()})
    return found


def number(value: float, form: str) -> str:
    """Formatted, and a value that rounds to zero without a sign."""
    text = form.format(value)
    return text.lstrip("+-") if float(text) == 0 else text
