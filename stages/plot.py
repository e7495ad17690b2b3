"""Draw the figures, and write the metrics: a few for `dvc metrics diff`, all of them as a table."""

import csv

from quant.files import atomic_file, atomic_folder, write_json
from quant.pipeline import REPORTS, parameters, run


def main() -> None:
    from quant.report.figures import draw_all
    from quant.report.metrics import DIFF, METRICS, rounded, shown_in
    from quant.report.results import read_run
    from quant.report.subsets import front_names, summary

    results = read_run(parameters(), REPORTS)
    with atomic_folder(REPORTS / "figures") as folder:
        drawn = draw_all(results, folder)
    metrics = {result.name: rounded(result.metrics) for result in results.results}
    with atomic_folder(REPORTS / "metrics") as folder:
        for name, values in metrics.items():
            write_json(folder / f"{name}.json", {metric.key: values[metric.key] for metric in shown_in(DIFF)})
        for one in results.left_out:
            write_json(folder / f"{one.variant.name}.json", {"left_out": True})
    write_json(REPORTS / "summary.json", summary(results))
    write_json(REPORTS / "environment.json", results.base.speed["environment"])
    front = front_names(results)
    with atomic_file(REPORTS / "variants.csv") as path, open(path, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["variant", "method", "pareto", *METRICS, *(["left_out"] if results.left_out else [])])
        for name, values in metrics.items():
            place = "front" if name in front else ""
            rows.writerow([name, results[name].method.name, place, *(values.get(key, "") for key in METRICS)])
        for one in results.left_out:
            empty = [""] * (1 + len(METRICS))
            rows.writerow([one.variant.name, one.variant.method.name, *empty, f"because {one.refusal.reason}"])
    print(f"{drawn} figures in {REPORTS / 'figures'}; the Pareto front of size and divergence: {', '.join(front)}")


run(main)
