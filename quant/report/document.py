"""Writes the report: Markdown from a template and the data, then HTML (pandoc) and PDF (typst) from the Markdown."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from quant.files import atomic_file, write_text
from quant.report import answer, calibration, family, notes, samples, tables, theory, trained
from quant.report.comparable import equal_but_for_the_selection
from quant.report.figures import figures_of
from quant.report.findings import curve_pairs, findings, order_by
from quant.report.results import Run
from quant.report.subsets import equal_grids
from quant.report.templates import HERE, environment

CHAPTERS = (  # templates in chapters/, in the order of the report
    "results", "family", "selective", "bits", "trained", "variants", "methods", "grids", "samples", "divergence", "speed",
    "skipped", "method", "provenance", "sources",
)  # fmt: skip
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
    selections = max(equal_but_for_the_selection(run), key=len, default=[])
    return environment().get_template("report.md.jinja").render(
        chapters=CHAPTERS,
        run=run,
        base=run.base,
        protocol=run.base.quality["protocol"],
        intervals=run.base.quality["intervals"],
        blocks=run.base.quality["blocks"],
        machine=run.base.speed["environment"],
        timing_plan=run.base.speed["plan"],
        findings=findings(run),
        answer=answer.answer_table(run),
        scale=answer.scale_in_words(),
        family=family,
        selections=selections,
        selections_table=tables.selections(run, selections),
        curve_pairs=curve_pairs(run),
        ranking=tables.ranking(run, order_by(run, "kld"), "kld_mnats"),
        divergence_table=tables.table(run.results, tables.DIVERGENCE),
        quality_table=tables.quality(run.results, run.left_out),
        left_out_table=tables.left_out(run),
        speed_table=tables.table(run.timed, tables.SPEED),
        memory_table=tables.memory(run),
        grids=equal_grids(run),
        grids_table=tables.quality(equal_grids(run)),
        before_after=tables.before_after(run),
        samples=samples.samples(run),
        theory=theory,
        trained=trained,
        calibration=calibration,
        prompt=run.base.speed["generation"],
        figures={f.name: f"![{f.title}. {f.caption(run)}](figures/{f.name}.svg)" for f in figures_of(run)},
        notes=notes,
        corpus=corpus,
        floor=floor and math.exp(floor / corpus["words"]),
        model=model,
        params=run.params,
        parameters=(parameters := _as_yaml(run.params)),
        fence="`" * (1 + max((len(one) for one in re.findall("`+", parameters)), default=2)),
    )


def _as_yaml(params: Mapping) -> str:
    """params.yaml with a line for each row and parameter."""
    def flow(value) -> str:
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=True, width=math.inf)
        return text.removesuffix("...\n").strip()

    lines = []
    for section, values in params.items():
        if isinstance(values, Mapping):
            lines += [f"{section}:", *(f"  {key}: {flow(value)}" for key, value in values.items())]
        else:
            lines.append(f"{section}: {flow(values)}")
    return "\n".join(lines)


def _write_html(text: str, reports: Path) -> None:
    def embedded(match: re.Match) -> str:
        data = base64.b64encode((reports / "figures" / match[1]).read_bytes()).decode()
        return f"(data:image/svg+xml;base64,{data})"

    text = re.sub(r"\(figures/([\w-]+\.svg)\)", embedded, text)  # the file opens anywhere
    arguments = ["--standalone", f"--template={HERE / 'report.template.html'}", "--toc", "--toc-depth=2", "--metadata=lang:en",
                 "--metadata=pagetitle:Quantization report"]
    page = _convert(text, "html5", arguments)
    script = page.rpartition("<script>")[2].partition("</script>")[0]  # of the template: what the policy lets run, and no other
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    write_text(reports / "report.html", page.replace("SCRIPT-HASH", hashed, 1))


def _write_pdf(text: str, reports: Path) -> None:
    import typst

    source = reports / ".report.typ"  # beside the figures, to which it has relative paths
    try:
        write_text(source, (HERE / "report.template.typ").read_text(encoding="utf-8") + _convert(text, "typst", []))
        with atomic_file(reports / "report.pdf") as partial:
            partial.write_bytes(typst.compile(str(source), root=str(reports.resolve()), timestamp=0))
    finally:
        source.unlink(missing_ok=True)


def _convert(text: str, target: str, arguments: list[str]) -> str:
    import pypandoc

    return pypandoc.convert_text(text, target, format=FORMAT, extra_args=["--wrap=none", "--columns=10000", *arguments])
