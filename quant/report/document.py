"""The report: one Markdown text from a template and the data, then HTML (pandoc) and PDF (typst) from it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import yaml

from quant.corpus import FEW_LINES
from quant.files import read_json, whole_file, write_text
from quant.report.figures import FIGURES
from quant.report.findings import findings
from quant.report.results import Result

HERE = Path(__file__).parent
TABLE = {  # heading and format of each column
    "ppl": ("ppl", "{:.4f}"), "ppl_change_pct": ("ppl change %", "{:+.3f}"), "kld_mnats": ("KLD mnat", "{:.3f}"),
    "top1_agree_pct": ("top-1 %", "{:.1f}"), "bits_per_weight": ("bits / weight", "{:.2f}"),
    "weights_mib": ("weights MiB", "{:.2f}"), "disk_mib": ("disk MiB", "{:.2f}"),
    "peak_rss_mib": ("peak MiB", "{:.0f}"), "load_s": ("load s", "{:.2f}"),
    "prefill_ms": ("prefill ms", "{:.1f}"), "prefill_speedup": ("prefill ×", "{:.2f}"),
    "decode_ms_per_token": ("decode ms", "{:.2f}"), "decode_speedup": ("decode ×", "{:.2f}"),
}  # fmt: skip
QUALITY = ("ppl", "ppl_change_pct", "kld_mnats", "top1_agree_pct", "bits_per_weight", "weights_mib", "disk_mib")
SPEED = ("peak_rss_mib", "load_s", "prefill_ms", "prefill_speedup", "decode_ms_per_token", "decode_speedup")


def table(results: Sequence[Result], columns: Sequence[str]) -> str:
    """A Markdown table, a row per variant."""
    lines = ["| variant | " + " | ".join(TABLE[c][0] for c in columns) + " |", "|:--|" + "--:|" * len(columns)]
    for result in results:
        cells = [_number(result.metrics[c], TABLE[c][1]) for c in columns]
        lines.append(f"| {result.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float, form: str) -> str:
    """Formatted, and a value that rounds to zero without a sign."""
    text = form.format(value)
    return text.lstrip("+-") if float(text) == 0 else text


def write_report(results: Sequence[Result], params: Mapping, reports: Path = Path("reports")) -> None:
    """report.md, report.html (self-contained) and report.pdf in `reports`."""
    text = render_markdown(results, params)
    write_text(reports / "report.md", text)
    _write_html(text, reports)
    _write_pdf(text, reports)


def render_markdown(results: Sequence[Result], params: Mapping) -> str:
    corpus = read_json(Path("data/eval/corpus.json"))
    floor = corpus["floor_nats"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )
    by_name = {r.name: r for r in results}
    return environment.get_template("report.md.jinja").render(
        results=results,
        by_name=by_name,
        base=by_name["base"],
        protocol=by_name["base"].quality["protocol"],
        machine=by_name["base"].speed["environment"],
        findings=findings(results),
        quality_table=table(results, QUALITY),
        speed_table=table(results, SPEED),
        figures={figure.name: figure for figure in FIGURES},
        corpus=corpus,
        floor=floor and math.exp(floor / corpus["words"]),
        model=read_json(Path("models/base/manifest.json")),
        params=params,
        parameters=yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True, default_flow_style=None).strip(),
        few_lines=FEW_LINES,
    )


def _write_html(text: str, reports: Path) -> None:
    import pypandoc

    for figure in FIGURES:  # into the file itself, so that it opens anywhere
        data = base64.b64encode((reports / "figures" / f"{figure.name}.svg").read_bytes()).decode()
        text = text.replace(f"(figures/{figure.name}.svg)", f"(data:image/svg+xml;base64,{data})")
    arguments = ["--standalone", f"--template={HERE / 'report.template.html'}", "--toc", "--toc-depth=2", "--wrap=none",
                 "--metadata=lang:en", "--metadata=pagetitle:Quantization report"]
    html = pypandoc.convert_text(text, "html5", format="markdown-tex_math_dollars", extra_args=arguments)
    write_text(reports / "report.html", html)


def _write_pdf(text: str, reports: Path) -> None:
    import pypandoc
    import typst

    body = pypandoc.convert_text(text, "typst", format="markdown-tex_math_dollars", extra_args=["--wrap=none"])
    source = reports / ".report.typ"  # beside the figures, which it names by relative paths
    try:
        write_text(source, (HERE / "report.template.typ").read_text(encoding="utf-8") + body)
        with whole_file(reports / "report.pdf") as partial:
            partial.write_bytes(typst.compile(str(source), root=str(reports.resolve())))
    finally:
        source.unlink(missing_ok=True)
