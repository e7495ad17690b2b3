"""The tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quant.report.results import Result, Run
from quant.report.words import signed

MIB = 2**20
SMALL = 0.005  # MiB that round to nothing: biases, norms


@dataclass(frozen=True)
class Column:
    heading: str
    cell: Callable[[Result], str]


def _metric(key: str, heading: str, form: str) -> Column:
    return Column(heading, lambda result: number(result.metrics[key], form))


METRIC_COLUMNS = {
    key: _metric(key, heading, form)
    for key, heading, form in (
        ("ppl", "ppl", "{:.4f}"), ("ppl_change_pct", "ppl change %", "{:+.3f}"), ("kld_mnats", "KLD mnat", "{:.3f}"),
        ("top1_agree_pct", "top-1 %", "{:.1f}"), ("bits_per_weight", "bits / weight", "{:.2f}"),
        ("weights_mib", "weights MiB", "{:.2f}"), ("disk_mib", "disk MiB", "{:.2f}"),
        ("peak_rss_mib", "peak MiB", "{:.0f}"), ("load_s", "load s", "{:.2f}"),
        ("prefill_ms", "prefill ms", "{:.1f}"), ("prefill_speedup", "prefill ×", "{:.2f}"),
        ("decode_ms_per_token", "decode ms", "{:.2f}"), ("decode_speedup", "decode ×", "{:.2f}"),
    )
}  # fmt: skip


def _interval(result: Result) -> str:
    if result.name == "base":
        return ""
    low, high = result.quality["intervals"]["ppl_change_pct"]
    return f"{signed(low)} to {signed(high)}"


def _quality_number(heading: str, form: str, *path: str) -> Column:
    def cell(result: Result) -> str:
        value = result.quality["divergence"]
        for key in path:
            value = value[key]
        return number(value, form)

    return Column(heading, cell)


def _noise(result: Result) -> str:
    return ", ".join(name for name, phase in result.speed["timing"].items() if phase and phase["is_noisy"]).replace("_", " ")


_M = METRIC_COLUMNS
QUALITY = (
    _M["ppl"], _M["ppl_change_pct"], Column("95 % interval", _interval), _M["kld_mnats"],
    _quality_number("KLD 99.9 %", "{:.2f}", "kld_mnats", "p999"), _M["top1_agree_pct"],
    _quality_number("top-5 %", "{:.1f}", "top5_agree_pct"), _M["bits_per_weight"], _M["weights_mib"], _M["disk_mib"],
)  # fmt: skip
SPEED = (
    _M["prefill_ms"], _M["prefill_speedup"], _M["decode_ms_per_token"],
    Column("± MAD", lambda r: number(r.decode["ms"]["mad"], "{:.2f}")), _M["decode_speedup"],
    Column("tokens/s", lambda r: number(r.decode["tokens_per_s"], "{:.0f}")),
    Column("GB/s", lambda r: number(r.decode["gb_per_s"], "{:.2f}")), Column("scattered", _noise),
)  # fmt: skip
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


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all but the first `left` columns are set to the right."""
    lines = ["| " + " | ".join(headings) + " |", "|" + ":--|" * left + "--:|" * (len(headings) - left)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def left_in_float(run: Run) -> str:
    """What each quantized variant keeps in floating point, by group, in MiB, and its layers by type."""
    rows = []
    for result in run.others:
        if result.family == "float":
            continue
        kept: dict[str, int] = {}
        for row in result.quality["ledger"]:
            if row["part"] == "floats":
                kept[row["group"]] = kept.get(row["group"], 0) + row["bytes"]
        listed = ", ".join(f"{group} {size / MIB:.2f}" for group, size in kept.items() if size >= SMALL * MIB)
        census = ", ".join(f"{count} {kind}" for kind, count in result.quality["census"].items())
        rows.append([result.name, listed or f"less than {SMALL} each", census])
    return grid(["variant", "left in floating point (MiB)", "layers"], rows, left=3)


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
