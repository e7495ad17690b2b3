"""One failure costs one row: DVC for real, on a tiny model that half of the rows don't fit."""

import csv
import subprocess
import sys

import pytest
import yaml
from dvc_project import Project, environment, write_tiny

from quant.outside import read_json

pytestmark = pytest.mark.slow

MADE = {
    "int4": {"method": "quant", "bits": 4, "group_size": 64},
    "bf16": {"method": "float", "dtype": "bfloat16", "benchmark": False},
    "gguf-q8_0": {"method": "llama_cpp", "type": "Q8_0", "benchmark": False},
    "cal4": {"method": "calibrated", "bits": 4, "group_size": 32, "sweeps": 0, "refits": 0, "benchmark": False},
}
LEFT_OUT = {
    "nowhere": ({"method": "quant", "include": ["transformer.x.*"]}, "'transformer.x.*' selects nothing"),
    "blocks": ({"method": "quant", "blocks": [7]}, "blocks names 7; the model's blocks are 0 to 0"),
    "tight": ({"method": "calibrated", "budget": 0.6}, "the smallest candidates take"),
    "cal-nowhere": ({"method": "calibrated", "include": ["=x | <b>*"]}, "'=x | <b>*' selects nothing"),
    "iq1": ({"method": "llama_cpp", "type": "IQ1_S"}, "type IQ1_S needs an importance matrix"),
    "q9": ({"method": "llama_cpp", "type": "Q9_Z"}, "llama.cpp type is 'Q9_Z'"),
    "peer": ({"method": "peers", "package": "hqq"}, "there is no "),
}
PARAMS = {
    "data": {"source": "grammar", "sentences": 30},
    "model": {"source": "tiny", "revision": None},
    "variants": {**MADE, **{name: row for name, (row, _) in LEFT_OUT.items()}},
    "evaluate": {"protocol": "joined/1", "context": 64, "stride": 64, "line": " {} \n", "unk": "text"},
    "benchmark": {"prompts": [16, 32], "tokens": 4, "rounds": 1, "threads": 2, "wait": 0},
    "family": {"variants": ["int4", "nowhere"], "models": {"relative": {"source": "tiny", "revision": None}}},
    "calibration": {"text": None, "windows": 4, "length": 32, "seed": 0},
    "sensitivity": None,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project, reproduced once, and what was printed."""
    folder = tmp_path_factory.mktemp("left-out")
    write_tiny(folder / "tiny")
    project = Project(folder, PARAMS)
    return project, project.dvc("repro")


def test_the_run_ends_well_and_says_what_was_left_out(project):
    project, said = project
    end = said[said.rindex("Running stage 'report'"):]
    assert f"left out: {len(LEFT_OUT)} of {len(PARAMS['variants']) + 1} rows, which could not be made or run here" in end
    for name, (_, reason) in LEFT_OUT.items():
        (line,) = [line for line in end.splitlines() if line.startswith(f"  {name}: ")]
        assert reason in line
        assert [path.name for path in (project.folder / "models" / name).iterdir()] == ["refused.json"]
    assert project.stages_run("repro") == set()


def test_a_row_left_out_stands_everywhere_and_no_number_with_it(project):
    project, _ = project
    reports = project.folder / "reports"
    metrics = project.metrics()
    assert all(metrics[name] == {"left_out": True} for name in LEFT_OUT)
    assert all(isinstance(value, float) for name in MADE for value in metrics[name].values())
    with open(reports / "variants.csv", newline="", encoding="utf-8") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    markdown, html = (reports / "report.md").read_text(), (reports / "report.html").read_text()
    for name, (row, reason) in LEFT_OUT.items():
        assert rows[name]["left_out"].startswith("because ") and reason in rows[name]["left_out"]
        assert set(rows[name].values()) == {name, row["method"], "", rows[name]["left_out"]}
        assert f"| {name} | left out |" in markdown and f"<td>{name}</td>" in html.replace(' style="text-align: left;"', "")
    assert not any(rows[name]["left_out"] for name in MADE)
    assert "**Left out.** 7 of 12 rows" in markdown and "<b>*" not in html and "&lt;b&gt;*" in html
    family = read_json(reports / "studies" / "family" / "relative.json")["rows"]
    assert [row["variant"] for row in family if "refused" in row] == ["nowhere"]
    shown = project.dvc("metrics", "show")
    assert "left_out" in shown and "nan" not in shown.lower()
    project.dvc("plots", "show")
    project.dvc("metrics", "diff")


def run(project, *words, **more):
    return subprocess.run([sys.executable, "-m", *words], cwd=project.folder, env={**environment(), **more}, capture_output=True,
                          text=True)


def test_a_changed_parameter_makes_the_row_and_back_leaves_it_out(project):
    project, _ = project
    before = project.metrics()
    params = project.folder / "params.yaml"
    text = params.read_text()
    values = yaml.safe_load(text)
    values["variants"]["blocks"]["blocks"] = [0]
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    ran = project.stages_run("repro")
    assert {"quantize@blocks", "evaluate@blocks", "benchmark@blocks", "plot", "report"} <= ran
    assert not {"quantize@int4", "evaluate@int4"} & ran and project.metrics()["blocks"]["kld_mnats"] >= 0
    params.write_text(text)
    project.dvc("repro")
    assert project.metrics() == before


def test_a_refusal_that_depends_on_the_machine_is_tried_again_when_that_changed(project, tmp_path):
    """Also from DVC's run cache it does not come back. The other environment is one whose package fails."""
    project, _ = project
    assert run(project, "quant.retry").stdout == ""
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\ncase \"$1\" in -c) exit 0;; esac\necho the package fails here; exit 3\n")
    other.chmod(0o755)
    done = run(project, "quant.retry", PEERS_PYTHON=str(other))
    assert done.stdout == "peer is tried again, for missing changed since it was left out\n", done.stderr
    assert not (project.folder / "models" / "peer").exists()
    said = project.dvc("repro", PEERS_PYTHON=str(other))
    ran = {line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")}
    assert ran == {"quantize@peer", "evaluate@peer", "benchmark@peer", "plot", "report"}
    assert "peer: hqq could not quantize the model (status 3): the package fails here" in said
    assert run(project, "quant.retry", PEERS_PYTHON=str(other)).stdout == ""
    done = run(project, "quant.retry")
    assert done.stdout.startswith("peer is tried again")
    project.dvc("repro")
    assert "there is no " in read_json(project.folder / "models" / "peer" / "refused.json")["reason"]


def test_an_error_that_concerns_all_rows_still_stops_the_run(project):
    project, _ = project
    weights = project.folder / "models" / "base" / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.unlink()
        weights.write_bytes(whole[:-10])
        done = run(project, "stages.quantize", "int4")
        assert done.returncode == 1 and "its header says" in done.stderr and len(done.stderr.splitlines()) == 1
    finally:
        weights.write_bytes(whole)
    assert (project.folder / "models" / "int4" / "model.safetensors").is_file()
