"""The tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quant.methods import Method
from quant.progress import MIB
from quant.report.metrics import METRICS, REPORT, Metric, shown_in
from quant.report.results import LeftOut, Result, Run
from quant.report.wording import named, number, plain

LEAST_MIB = 0.005  # smaller groups would show as 0.00, and are not listed


@dataclass(frozen=True)
class Column:
    heading: str
    cell: Callable[[Result], str]


def mib_in_16_bits(result: Result) -> float:
    """MiB of the model's weights in 16 bits, as most models are published."""
    return 2 * result.quality["parameters"] / MIB


def metric_column(metric: Metric) -> Column:
    """The column of one metric; a cell is empty where the variant was not timed."""
    def cell(result: Result) -> str:
        return metric.format(result.metrics[metric.key]) if metric.key in result.metrics else ""

    return Column(metric.heading, cell)


def _interval(key: str, form: Callable[[float], str]) -> Column:
    def cell(result: Result) -> str:
        return "" if result.name == "base" else " to ".join(form(end) for end in result.quality["intervals"][key])

    return Column("95 % interval", cell)


def _on_gpu(key: str) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        found = result.speed["memory"]["cuda"]
        return "" if found is None else number(found[key], "{:.0f}")

    return cell


def _divergence(heading: str, form: str, *path: str) -> Column:
    def cell(result: Result) -> str:
        value = result.quality["divergence"]
        for key in path:
            value = value[key]
        return number(value, form)

    return Column(heading, cell)


def _with_spread(phase: str, form: str) -> Callable[[Result], str]:
    """Milliseconds of a phase: the median and the median absolute deviation."""
    def cell(result: Result) -> str:
        ms = result.speed["timing"][phase]["ms"]
        return f"{number(ms['median'], form)} ± {number(ms['mad'], form)}"

    return cell


def _noise(result: Result) -> str:
    return ", ".join(name for name, phase in result.speed["timing"].items() if phase and phase["is_noisy"]).replace("_", " ")


_M = {key: metric_column(metric) for key, metric in METRICS.items()}
OF_16_BIT = Column("of 16-bit", lambda r: f"{100 * r.metrics['weights_mib'] / mib_in_16_bits(r):.0f} %")
DIVERGENCE = (
    _divergence("KLD mean", "{:.4f}", "kld_mnats", "mean"), _interval("kld_mnats", "{:.4f}".format),
    _divergence("median", "{:.4f}", "kld_mnats", "median"), _divergence("99 %", "{:.2f}", "kld_mnats", "p99"),
    _divergence("99.9 %", "{:.2f}", "kld_mnats", "p999"), _M["top1_agree_pct"],
    _divergence("top-5 %", "{:.1f}", "top5_agree_pct"),
    _divergence("Δp mean", "{:+.4f}", "true_token_change_pct", "mean"),
    _divergence("Δp rms", "{:.3f}", "true_token_change_pct", "rms"),
)  # fmt: skip
SPEED = (
    Column("prefill ms", _with_spread("prefill", "{:.1f}")), _M["prefill_speedup"],
    Column("decode ms", _with_spread("decode", "{:.2f}")), _M["decode_speedup"],
    Column("tokens/s", lambda r: number(r.decode["tokens_per_s"], "{:.0f}")),
    Column("GB/s", lambda r: number(r.decode["gb_per_s"], "{:.1f}")), Column("noisy", _noise),
)  # fmt: skip
ON_GPU = (
    Column("GPU loading MiB", _on_gpu("load_peak_mib")),
    Column("GPU generating MiB", _on_gpu("generate_peak_mib")),
    Column("GPU allocated MiB", _on_gpu("allocated_mib")),
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


def quality(results: Sequence[Result], left_out: Sequence[LeftOut] = ()) -> str:
    """The metrics that the report shows first, each with its interval where it has one of its own; below, rows left out."""
    columns = []
    for metric in shown_in(REPORT):
        columns.append(metric_column(metric))
        if metric.key == "ppl_change_pct":
            columns.append(_interval(metric.key, metric.format))
    rows = [[result.name, *(column.cell(result) for column in columns)] for result in results]
    rows += [[one.variant.name, "left out", *[""] * (len(columns) - 1)] for one in left_out]
    return grid(["variant", *(column.heading for column in columns)], rows)


def left_out(run: Run) -> str:
    """A row for each variant that could not be made or run, with the reason."""
    rows = [[one.variant.name, one.variant.method.label, one.refusal.stage, plain(one.refusal.reason)] for one in run.left_out]
    return grid(["left out", "method", "stage", "reason"], rows, left=4)


def memory(run: Run) -> str:
    """Memory of every variant, on the GPU as well where there is one."""
    columns = MEMORY if all(result.speed["memory"]["cuda"] is None for result in run.timed) else (*MEMORY, *ON_GPU)
    return table(run.timed, columns)


def ranking(run: Run, tiers: Sequence[Sequence[str]], key: str) -> str:
    """A row per tier: its variants, and the range of a metric and of the size among them."""
    def span(members: Sequence[Result], metric: Metric) -> str:
        cells = list(dict.fromkeys(metric.format(value) for value in sorted(r.metrics[metric.key] for r in members)))
        return " to ".join([cells[0], *cells[1:][-1:]])

    shown = (METRICS[key], METRICS["weights_mib"])
    rows = [[str(place), named(run.named(names)), *(span(run.named(names), metric) for metric in shown)]
            for place, names in enumerate(tiers, 1)]
    return grid(["tier", "variants", *(metric.heading for metric in shown)], rows, left=2)


def of_another_runtime(run: Run, method: Method) -> str:
    """Base and the variants of a method that another runtime than base's runs: tensors by type, and the main metrics.

    Empty where base's runtime runs them.
    """
    if method.runtime == run.base.method.runtime:
        return ""
    columns = [_M[key] for key in ("bits_per_weight", "load_s", "peak_rss_mib", "decode_speedup", "ppl_change_pct", "kld_mnats")]
    rows = [[r.name, "" if r is run.base else _module_counts(r), *(column.cell(r) for column in columns)]
            for r in (run.base, *run.of_method(method))]
    return grid(["variant", "tensors", *(column.heading for column in columns)], rows, left=2)


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, text_last: bool = False) -> str:
    """A Markdown table; all but the first `left` columns, and the last if it is text, are aligned to the right."""
    aligned = [":--" if i < left or (text_last and i == len(headings) - 1) else "--:" for i in range(len(headings))]
    return "\n".join(["| " + " | ".join(headings) + " |", f"|{'|'.join(aligned)}|",
                      *("| " + " | ".join(row) + " |" for row in rows)])


def before_after(run: Run) -> str:
    """Every variant, base first: its size, what it keeps in floating point, its bytes by dtype in MiB, its modules by type."""
    rows = []
    for result in run.results:
        kept: dict[str, int] = {}
        for row in result.quality["size_breakdown"]:
            if row["part"] == "floats":
                kept[row["group"]] = kept.get(row["group"], 0) + row["bytes"]
        listed = [f"{group} {size / MIB:.2f}" for group, size in kept.items() if size >= LEAST_MIB * MIB]
        dtypes = [f"{dtype} {size / MIB:.2f}" for dtype, size in result.quality["held_bytes"].items() if size >= LEAST_MIB * MIB]
        rows.append([result.name, _module_counts(result), ", ".join(dtypes), ", ".join(listed) or f"less than {LEAST_MIB} each",
                     _M["weights_mib"].cell(result), OF_16_BIT.cell(result)])
    headings = ["variant", "layers", "MiB by dtype", "MiB left in floating point", "weights MiB", OF_16_BIT.heading]
    return grid(headings, rows, left=4)


def selections(run: Run, chosen: Sequence[Result]) -> str:
    """Base, and variants that apply one scheme to different weights: size, quality and speed."""
    keys = ("kld_mnats", "ppl_change_pct", "prefill_speedup", "decode_speedup")
    return table([run.base, *chosen], [_M["weights_mib"], OF_16_BIT, *(_M[key] for key in keys)])


def _module_counts(result: Result) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in result.quality["module_counts"].items())
