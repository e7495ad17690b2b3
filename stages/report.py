"""Write the report as Markdown, HTML and PDF: python stages/report.py"""

from common import parameters, run

from quant.report.document import write_report
from quant.report.results import read_results


def main() -> None:
    params = parameters()
    write_report(read_results(params), params)


run(main)
