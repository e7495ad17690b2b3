"""Draw the figures, and write the metrics in the forms that DVC compares and plots."""

import csv

from quant.files import atomic_file, atomic_folder, write_json
from quant.pipeline import REPORTS, parameters, run
from quant.report.figures import draw_all
from quant.report.metrics import METRICS, rounded
from quant.report.results import read_run
from quant.report.subsets import front_names, summary


def main() -> None:
    results = read_run(parameters(), REPORTS)
    with atomic_folder(REPORTS / "figures") as folder:
        draw_all(results, folder)
    metrics = {result.name: rounded(result.metrics) for result in results.results}
    with atomic_folder(REPORTS / "metrics") as folder:
        for name, values in metrics.items():
            write_json(folder / f"{name}.json", values)
    write_json(REPORTS / "summary.json", summary(results))
    write_json(REPORTS / "environment.json", results.base.speed["environment"])
    front = front_names(results)
    with atomic_file(REPORTS / "variants.csv") as path, open(path, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["variant", "method", "pareto", *METRICS])
        rows.writerows([r.name, r.method.name, "front" if r.name in front else "", *metrics[r.name].values()]
                       for r in results.results)


run(main)
