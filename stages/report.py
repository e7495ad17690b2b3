"""Write the report as Markdown, HTML and PDF, and print its first table."""

from quant.outside import read_json
from quant.pipeline import BASE, REPORTS, TEXT, parameters, run


def main() -> None:
    from quant.report.answer import answer_lines, left_out_lines
    from quant.report.document import write_report
    from quant.report.results import read_run

    corpus, model, results = read_json(TEXT / "corpus.json"), read_json(BASE / "manifest.json"), read_run(parameters(), REPORTS)
    write_report(results, REPORTS, corpus, model)
    print("", *answer_lines(results), *left_out_lines(results),
          f"report: {REPORTS / 'report.html'}, report.pdf, report.md; all metrics: {REPORTS / 'variants.csv'}", sep="\n")


run(main)
