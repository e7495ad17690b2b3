"""Draw the figures, and write one file of metrics per variant: python stages/plot.py"""

import csv
from pathlib import Path

from common import parameters, run

from quant.files import whole_file, whole_folder, write_json
from quant.report.figures import draw_all
from quant.report.results import METRICS, read_results


def main() -> None:
    results = read_results(parameters())
    with whole_folder(Path("reports/figures")) as folder:
        draw_all(results, folder)
    with whole_folder(Path("reports/metrics")) as folder:
        for result in results:
            write_json(folder / f"{result.name}.json", dict(result.metrics))
    write_json(Path("reports/environment.json"), results[0].speed["environment"])
    with whole_file(Path("reports/variants.csv")) as path, open(path, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["variant", "family", *METRICS])
        rows.writerows([r.name, r.family, *r.metrics.values()] for r in results)


run(main)
