"""Draw the figures, and write the metrics in the forms that DVC compares and plots: python stages/plot.py"""

import csv
from pathlib import Path

from common import parameters, run

from quant.files import whole_file, whole_folder, write_json
from quant.report.figures import draw_all, front_names
from quant.report.results import METRICS, read_run, rounded
from quant.report.subsets import summary


def main() -> None:
    results = read_run(parameters())
    with whole_folder(Path("reports/figures")) as folder:
        draw_all(results, folder)
    metrics = {result.name: rounded(result.metrics) for result in results.results}
    with whole_folder(Path("reports/metrics")) as folder:
        for name, values in metrics.items():
            write_json(folder / f"{name}.json", values)
    write_json(Path("reports/summary.json"), summary(results))
    write_json(Path("reports/environment.json"), results.base.speed["environment"])
    front = front_names(results)
    with whole_file(Path("reports/variants.csv")) as path, open(path, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["variant", "family", "pareto", *METRICS])
        rows.writerows([r.name, r.family, "front" if r.name in front else "", *metrics[r.name].values()] for r in results.results)


run(main)
