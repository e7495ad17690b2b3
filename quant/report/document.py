"""Writes the report: Markdown from a template and the data, then HTML (pandoc) and PDF (typst) from the Markdown."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from quant.files import atomic_file, write_text
from quant.report import notes, tables
from quant.report.figures import figures_of
from quant.report.findings import findings, order_by
from quant.report.results import Run
from quant.report.subsets import equal_grids
from quant.report.templates import HERE, environment

FORMAT = "markdown-tex_math_dollars-raw_html-raw_tex-raw_attribute"  # nothing of the data is markup that runs


def write_report(run: Run, reports: Path, corpus: Mapping, model: Mapping) -> None:
    """Write report.md, report.html (self-contained) and report.pdf in the folder `reports`, which holds the figures already.

    corpus: the contents of corpus.json of the evaluation text; model: the manifest of the base model.
    """
    text = render_markdown(run, corpus, model)
    write_text(reports / "report.md", text)
    _write_html(text, reports)
    _write_pdf(text, reports)


def render_markdown(run: Run, corpus: Mapping, model: Mapping) -> str:
    """The report's Markdown text; its figures are links into figures/. Arguments as of `write_report`."""
    floor = corpus["floor_nats"]
    tiers = {kind: order_by(run, kind) for kind in ("kld", "ppl")}
    return environment().get_template("report.md.jinja").render(
        run=run,
        base=run.base,
        protocol=run.base.quality["protocol"],
        intervals=run.base.quality["intervals"],
        blocks=run.base.quality["blocks"],
        machine=run.base.speed["environment"],
        timing_plan=run.base.speed["plan"],
        findings=findings(run),
        tiers=tiers,
        rankings={kind: tables.ranking(run, tiers[kind], key) for kind, key in (("kld", "kld_mnats"), ("ppl", "ppl_change_pct"))},
        divergence_table=tables.table(run.results, tables.DIVERGENCE),
        quality_table=tables.quality(run.results),
        speed_table=tables.table(run.results, tables.SPEED),
        memory_table=tables.memory(run),
        grids=equal_grids(run),
        grids_table=tables.quality(equal_grids(run)),
        left_in_float=tables.left_in_float(run),
        generations=tables.generations(run),
        prompt=run.base.speed["generation"],
        figures={f.name: f"![{f.title}. {f.caption(run)}](figures/{f.name}.svg)" for f in figures_of(run)},
        notes=notes,
        corpus=corpus,
        floor=floor and math.exp(floor / corpus["words"]),
        model=model,
        params=run.params,
        parameters=yaml.safe_dump(dict(run.params), sort_keys=False, allow_unicode=True, default_flow_style=None).strip(),
    )


def _write_html(text: str, reports: Path) -> None:
    def embedded(match: re.Match) -> str:
        data = base64.b64encode((reports / "figures" / match[1]).read_bytes()).decode()
        return f"(data:image/svg+xml;base64,{data})"

    text = re.sub(r"\(figures/([\w-]+\.svg)\)", embedded, text)  # the file opens anywhere
    arguments = ["--standalone", f"--template={HERE / 'report.template.html'}", "--toc", "--toc-depth=2", "--metadata=lang:en",
                 "--metadata=pagetitle:Quantization report"]
    write_text(reports / "report.html", _convert(text, "html5", arguments))


def _write_pdf(text: str, reports: Path) -> None:
    import typst

    source = reports / ".report.typ"  # beside the figures, to which it has relative paths
    try:
        write_text(source, (HERE / "report.template.typ").read_text(encoding="utf-8") + _convert(text, "typst", []))
        with atomic_file(reports / "report.pdf") as partial:
            partial.write_bytes(typst.compile(str(source), root=str(reports.resolve())))
    finally:
        source.unlink(missing_ok=True)


def _convert(text: str, target: str, arguments: list[str]) -> str:
    import pypandoc

    return pypandoc.convert_text(text, target, format=FORMAT, extra_args=["--wrap=none", "--columns=10000", *arguments])
