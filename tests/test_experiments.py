"""What DVC shows of a run and of experiments, in a small project of its own: real commands, made-up results."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, run_stage
from dvc_project import environment
from made_up import PARAMS, made_up
from made_up import write_results as write_files

pytestmark = pytest.mark.slow

WIDTH = 120


def command(folder, *words):
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def commit(folder):
    for words in (("add", "-A"), ("commit", "-q", "-m", "state")):
        subprocess.run(["git", *words], cwd=folder, env=environment(), check=True)


def start(folder):
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    command(folder, "dvc", "init", "-q")


def write_results(folder, **changes):
    """Made-up results in the places of the stages that measure, then the real stage that plots."""
    write_files(made_up(**changes), folder / "reports")
    done = run_stage("plot", cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two runs: one committed, and one in the workspace, in which whole has 4 bits and is smaller and worse."""
    folder = tmp_path_factory.mktemp("project")
    start(folder)
    for name in ("quant", "stages", ".dvc/plots"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    (folder / "dvc.yaml").write_text(yaml.safe_dump({key: whole[key] for key in ("metrics", "plots")}))
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (folder / ".gitignore").write_text("__pycache__/\nreports/quality/\nreports/speed/\nreports/figures/\n")
    write_results(folder, whole={"weights_mib": 30.0})
    commit(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"quant": PARAMS["quant"] | {"bits": 4}}))
    write_results(folder, whole={"weights_mib": 15.0, "ppl_change_pct": 0.8, "kld_mnats": 0.12345678})
    command(folder, "dvc", "exp", "save", "-n", "four-bits")
    return folder


def test_what_changed_reads_well(project):
    shown = command(project, "dvc", "metrics", "diff", "--md")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line.startswith("|")]
    assert max(len(line) for line in shown.splitlines()) <= WIDTH
    assert ["reports/metrics/whole.json", "weights_mib", "30.0", "15.0", "-15.0"] in rows
    assert ["reports/metrics/whole.json", "kld_mnats", "1.0", "0.1235", "-0.8765"] in rows
    assert {row[0] for row in rows[2:]} == {"reports/metrics/whole.json", "reports/summary.json"}


def test_experiments_read_well(project):
    shown = command(project, "dvc", "exp", "show", "--only-changed", "--md", "--drop", ".*/")
    assert max(len(line) for line in shown.splitlines()) <= WIDTH
    headings = [cell.strip() for cell in shown.splitlines()[0].strip("|").split("|")]
    assert headings[0] == "Experiment" and set(headings) >= {"smallest_1pct_mib", "best_4bit_kld_mnats", "quant.bits"}
    assert "four-bits" in shown
    one = command(project, "dvc", "exp", "show", "--only-changed", "--md", "--drop", ".*[/_]", "--keep", ".*/whole.json:kld")
    assert max(len(line) for line in one.splitlines()) <= WIDTH
    assert "whole.json:kld_mnats" in one and "0.1235" in one and "four-bits" in one and "nf4.json" not in one


def test_all_metrics_show_as_a_row_per_variant(project):
    lines = command(project, "dvc", "metrics", "show").splitlines()
    assert {line.split()[0] for line in lines[1:]} >= {f"reports/metrics/{name}.json" for name in ("base", "whole", "gguf-q4_0")}


def test_the_plots_are_drawn_from_the_csv_for_one_run_and_for_two(project, tmp_path):
    """Vega's specifications, as DVC fills them from our templates."""
    names = [name for plot in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"] for name in plot]
    with open(project / "reports" / "variants.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for words, revisions in ((("show",), {"workspace"}), (("diff", "HEAD", "workspace"), {"HEAD", "workspace"})):
        for name in (names[0], "divergence"):
            target = (name,) if words == ("show",) else ("--targets", name)
            vega = json.loads(command(project, "dvc", "plots", *words, "--show-vega", *target))
            points = vega["data"]["values"]
            assert {point["rev"] for point in points} == revisions and len(points) == len(revisions) * len(table)
            assert "DVC_METRIC" not in json.dumps(vega), "a place of the template was not filled"
    assert vega["encoding"]["x"]["field"] == "kld_mnats" and vega["encoding"]["y"]["field"] == "variant"
    assert {row["variant"] for row in table if row["pareto"]} == {"whole"}
    assert "html" in command(project, "dvc", "plots", "show", "-o", str(tmp_path / "plots"))
    html = (tmp_path / "plots" / "index.html").read_text()
    assert all(name in html for name in names)


TINY = {
    "stages": {
        "plan": {"cmd": "python plan.py", "params": [{"params.yaml": None}], "outs": ["data/plan"]},
        "quantize": {"foreach": "${variants}", "do": {"cmd": "python quantize.py ${key}", "outs": ["models/${key}.txt"],
                                                      "deps": ["data/plan/variants/${key}.json"]}},
        "evaluate": {"foreach": "${variants}", "do": {"cmd": "python evaluate.py ${key}", "deps": ["models/${key}.txt"],
                                                      "params": ["evaluate"], "outs": ["reports/quality/${key}.json"]}},
    }
}
PLAN = """
import json, pathlib, yaml
params = yaml.safe_load(open("params.yaml"))
folder = pathlib.Path("data/plan/variants")
folder.mkdir(parents=True, exist_ok=True)
for name, row in params["variants"].items():
    (folder / f"{name}.json").write_text(json.dumps({**params["quant"], **row}))
"""
QUANTIZE = """
import json, pathlib, sys
pathlib.Path("models").mkdir(exist_ok=True)
bits = json.load(open(f"data/plan/variants/{sys.argv[1]}.json"))["bits"]
pathlib.Path("models", sys.argv[1] + ".txt").write_text(str(bits))
"""
EVALUATE = """
import json, sys, pathlib
bits = int(open(f"models/{sys.argv[1]}.txt").read())
metrics = {"ppl": 20 + 100 / 2**bits, "ppl_change_pct": 500 / 2**bits, "kld_mnats": 1.0, "bits_per_weight": bits + 0.1,
           "weights_mib": bits}
pathlib.Path("reports/quality").mkdir(parents=True, exist_ok=True)
pathlib.Path(f"reports/quality/{sys.argv[1]}.json").write_text(json.dumps({"metrics": metrics}))
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A pipeline that takes no time, and experiments with it."""
    folder = tmp_path_factory.mktemp("swept")
    start(folder)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "params.yaml").write_text(yaml.safe_dump({"quant": {"bits": 8}, "evaluate": {"stride": 1},
                                                        "variants": {"whole": {"x": 0}, "int4": {"bits": 4}}}))
    (folder / "plan.py").write_text(PLAN)
    (folder / "quantize.py").write_text(QUANTIZE)
    (folder / "evaluate.py").write_text(EVALUATE)
    (folder / ".gitignore").write_text("/data\n/models\n/reports\n")
    command(folder, "dvc", "repro", "-q")
    commit(folder)
    for words in (["quant.bits=2"], ["quant.bits=4"], ["quant.bits=5", "-S", "evaluate.stride=7"]):
        command(folder, "dvc", "exp", "run", "-q", "-S", *words, "evaluate@whole")
    command(folder, "dvc", "exp", "run", "-q", "-S", "quant.bits=3", "-S", "evaluate.stride=1", "evaluate@int4")
    return folder


def test_a_sweep_takes_what_differs_in_one_parameter_and_was_really_evaluated(swept):
    from quant.report.sweep import read_sweep

    rows = read_sweep("quant.bits", "whole", swept)
    assert [row["value"] for row in rows] == [2, 4, 8], "5 differs in the stride too; at 3 whole was never evaluated"
    assert [row["ppl"] for row in rows] == [45.0, 26.25, 20.390625]


def test_labels_of_a_sweep_do_not_lie_on_each_other():
    from quant.report.style import in_style
    from quant.report.sweep import draw_sweep

    rows = [{"value": bits, "ppl": 7.84 * (1 + change / 100), "ppl_change_pct": change, "bits_per_weight": bits + 0.17}
            for bits, change in ((2, 998.5), (3, 9.73), (4, 1.43), (5, 0.28), (6, 0.05), (8, 0.013))]
    with in_style():
        figure = draw_sweep(rows, "quant.bits", "whole")
        figure.canvas.draw()
        (axes,) = figure.axes
        for labels in (axes.texts, axes.get_xticklabels()):
            boxes = [label.get_window_extent() for label in labels]
            assert len(boxes) == 6
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_sweep_is_drawn_and_printed(swept):
    words = [sys.executable, "-m", "quant.report.sweep", "quant.bits", "whole"]
    done = subprocess.run(words, cwd=swept, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == ["quant.bits", "2", "4", "8"]
    assert (swept / "reports" / "sweep.csv").read_text().splitlines()[1] == "2,45.0,125.0,1.0,2.1,2"
    assert all((swept / "reports" / f"sweep.{kind}").stat().st_size > 1000 for kind in ("svg", "png"))
    words[-1] = "nf4"
    done = subprocess.run(words, cwd=swept, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: 0 evaluated value(s) of quant.bits for nf4")
