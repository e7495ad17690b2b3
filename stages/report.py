"""Write the report as Markdown, HTML and PDF: python stages/report.py"""

from pathlib import Path

from common import parameters, run

from quant.files import read_json
from quant.report.document import write_report
from quant.report.results import read_run


def main() -> None:
    corpus, model = read_json(Path("data/eval/corpus.json")), read_json(Path("models/base/manifest.json"))
    write_report(read_run(parameters()), Path("reports"), corpus, model)


run(main)
