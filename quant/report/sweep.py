"""Draws and tabulates the experiments on one parameter:

    dvc exp run --queue -S 'quant.bits=2,3,4,5,6,8' evaluate@whole && dvc queue start
    python -m quant.report.sweep quant.bits whole

writes reports/sweep.svg, .png and .csv: the variant's quality and size at each value. An experiment counts only if its
dvc.lock shows that the variant was evaluated with the experiment's parameters.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from quant.command import Parser, run
from quant.errors import InputError
from quant.files import atomic_file
from quant.report.metrics import METRICS, SWEEP, shown_in
from quant.tensor.codebooks import LINEAR


def read_sweep(parameter: str, variant: str, project: Path = Path()) -> list[dict]:
    """A row per value of the parameter, sorted: the value, and the metrics that a sweep shows.

    They come from the experiments of this commit, and the commit itself, that differ only in this parameter; of several such
    sets, from the one with the most values. Raises InputError where there are fewer than two values.
    """
    if not (project / "dvc.yaml").is_file():
        raise InputError(f"there is no dvc.yaml in {project.resolve()}; run this in the project's folder")
    import dvc.api  # here, so that --help answers at once

    sets: dict[str, dict[str, dict]] = {}
    for experiment in dvc.api.exp_show(str(project)):
        if experiment["rev"] == "workspace":
            continue
        files = dvc.api.DVCFileSystem(str(project), rev=experiment["rev"])
        params, lock = (yaml.load(files.read_text(name), Loader=yaml.CSafeLoader) for name in ("params.yaml", "dvc.lock"))
        value, stage = _lookup(params, parameter), evaluation_of(variant, lock)

        def md5_of(path: str, files=files) -> str:
            return hashlib.md5(files.read_bytes(path), usedforsecurity=False).hexdigest()

        try:
            if value is None or stage is None or not is_current(stage, lock, params, md5_of):
                continue
            metrics = json.loads(files.read_text(f"reports/quality/{variant}.json"))["metrics"]
        except FileNotFoundError:  # dvc.lock comes with every clone, but the result was not computed here
            continue
        rows = sets.setdefault(_without(params, parameter), {})
        rows.setdefault(str(value), {"value": value, **{metric.key: metrics[metric.key] for metric in shown_in(SWEEP)}})
    rows = max(sets.values(), key=len, default={})
    if len(rows) < 2:
        raise InputError(f"{len(rows)} evaluated value(s) of {parameter} for {variant} among the experiments of this commit; run "
                         f"dvc exp run --queue -S '{parameter}=...' evaluate@{variant} and dvc queue start, without committing")
    numbers = all(isinstance(row["value"], int | float) for row in rows.values())
    return sorted(rows.values(), key=lambda row: row["value"] if numbers else str(row["value"]))


def evaluation_of(variant: str, lock: Mapping) -> str | None:
    """The stage of dvc.lock that wrote the variant's quality; None where it has none."""
    path = f"reports/quality/{variant}.json"
    return next((name for name, stage in lock["stages"].items() if path in {out["path"] for out in stage.get("outs", [])}), None)


def is_current(name: str, lock: Mapping, params: Mapping, md5_of: Callable[[str], str]) -> bool:
    """Whether a stage of dvc.lock, and every stage it depends on, ran with these parameters.

    md5_of: gives the hash of a file within an output folder in this revision; raises FileNotFoundError.
    """
    stage = lock["stages"][name]
    recorded = stage.get("params", {}).get("params.yaml", {})
    if any(_lookup(params, key) != value for key, value in recorded.items()):
        return False
    makers = {out["path"]: (maker, out) for maker, other in lock["stages"].items() for out in other.get("outs", [])}
    for dependency in stage.get("deps", []):
        path = dependency["path"]
        folder = next((out for out in makers if path == out or path.startswith(f"{out}/")), None)
        if folder is None:
            continue
        maker, out = makers[folder]
        if path == folder:
            is_same = dependency["md5"] == out["md5"]
        else:  # a file in an output folder has its own hash; a folder in it is as current as its maker
            is_same = dependency["md5"].endswith(".dir") or dependency["md5"] == md5_of(path)
        if not is_same or not is_current(maker, lock, params, md5_of):
            return False
    return True


def draw_sweep(rows: list[dict], parameter: str, variant: str):
    """Draw perplexity against the parameter, its change from base at each point, and the bits per weight below each value."""
    from quant.report.charts import log_axis, wide_range  # here, because they import matplotlib
    from quant.report.style import GRIDS, INK, new_axes

    look = GRIDS[LINEAR]
    figure, axes = new_axes(7, 4.2)
    numbers = all(isinstance(row["value"], int | float) for row in rows)
    x, y = [row["value"] if numbers else str(row["value"]) for row in rows], [row["ppl"] for row in rows]
    axes.plot(x, y, color=look.colour, marker=look.marker, linewidth=1.2)
    for row, place in zip(rows, zip(x, y, strict=True), strict=True):
        form = "{:+,.0f} %" if abs(row["ppl_change_pct"]) >= 100 else "{:+.3g} %"
        axes.annotate(form.format(row["ppl_change_pct"]), place, xytext=(0, 7), textcoords="offset points", fontsize=8, color=INK,
                      ha="center")
    if wide_range(y):
        log_axis(axes.yaxis, axes, "y")
    axes.set_xticks(x, [f"{row['value']}\n{row['bits_per_weight']:.2f}" for row in rows])
    axes.margins(x=0.1, y=0.15)
    axes.set(xlabel=f"{parameter}, and below it bits per weight with scales", ylabel=METRICS["ppl"].label,
             title=f"{variant}: perplexity, and its change from base, against {parameter}")
    return figure


def write_sweep(parameter: str, variant: str, reports: Path = Path("reports")) -> list[dict]:
    """Write sweep.csv, sweep.svg and sweep.png in `reports`, and return the rows of `read_sweep`."""
    from quant.report.style import in_style, save

    rows, keys = read_sweep(parameter, variant), [metric.key for metric in shown_in(SWEEP)]
    with atomic_file(reports / "sweep.csv") as path, open(path, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([parameter, *keys])
        table.writerows([_cell(row["value"]), *(row[key] for key in keys)] for row in rows)
    with in_style():
        save(draw_sweep(rows, parameter, variant), reports, "sweep")
    return rows


def _cell(value):
    """A value of a table: text that a spreadsheet would compute as a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _without(params: Mapping, key: str) -> str:
    """All parameters but one, as text."""
    rest = json.loads(json.dumps(params, sort_keys=True))
    *path, last = key.split(".")
    section = rest
    for part in path:
        section = section[part]
    del section[last]
    return json.dumps(rest)


def _lookup(params: Mapping, key: str):
    """params["a"]["b"] for "a.b", or None."""
    value = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def main(words: list[str]) -> None:
    parser = Parser(prog="python -m quant.report.sweep", description="A figure and a table of one parameter's experiments.")
    parser.add_argument("parameter", metavar="PARAMETER", help="a parameter of params.yaml, such as quant.bits")
    parser.add_argument("variant", metavar="VARIANT", help="the variant that the experiments evaluated, such as whole")
    given = parser.parse_args(words)
    rows = write_sweep(given.parameter, given.variant)
    keys = [metric.key for metric in shown_in(SWEEP)]
    print(f"{given.parameter:>12}  " + "  ".join(f"{key:>15}" for key in keys))
    for row in rows:
        print(f"{row['value']!s:>12}  " + "  ".join(f"{row[key]:>15g}" for key in keys))
    print("reports/sweep.svg, reports/sweep.png, reports/sweep.csv")


if __name__ == "__main__":
    run(main)
