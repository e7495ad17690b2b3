"""Write the report as Markdown, HTML and PDF."""

from quant.files import read_json
from quant.pipeline import BASE, REPORTS, TEXT, parameters, run
from quant.report.document import write_report
from quant.report.results import read_run


def main() -> None:
    corpus, model = read_json(TEXT / "corpus.json"), read_json(BASE / "manifest.json")
    write_report(read_run(parameters(), REPORTS), REPORTS, corpus, model)
    print(f"report: {REPORTS / 'report.html'}, report.pdf, report.md; metrics: {REPORTS / 'variants.csv'}")


run(main)
