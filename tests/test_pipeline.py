"""DVC for real, on a tiny model: what reruns when what changes, and what a kill costs."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from dvc_project import Project, environment, write_tiny

from quant.quality.bootstrap import Blocks, difference

pytestmark = pytest.mark.slow
WATCH = Path(__file__).with_name("watch_network.py")

TINY = {
    "data": {"source": "grammar", "sentences": 40},
    "variants": {
        "bf16": {"method": "float", "dtype": "bfloat16", "benchmark": False},
        "whole": {"method": "quant", "include": ["*"]},
        "int4": {"method": "quant", "bits": 4, "group_size": 64},
        "mix4": {"method": "calibrated", "budget": 4.0, "group_size": 32},
        "bnb-nf4": {"method": "bitsandbytes", "type": "nf4"},
        "gguf-q8_0": {"method": "llama_cpp", "type": "Q8_0"},
    },
    "evaluate": {"protocol": "joined/1", "context": 64, "stride": 64, "line": " {} \n", "unk": "text"},
    "benchmark": {"prompts": [16, 32], "tokens": 4, "rounds": 2, "threads": 2, "wait": 0},
    "family": {"variants": ["int4"], "models": {"relative": {"source": "tiny", "revision": None}}},
    "calibration": {"text": None, "windows": 8, "length": 32, "seed": 0},
    "sensitivity": {"bits": 4, "group_size": 64, "windows": 2},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The pipeline on a tiny model, reproduced once."""
    folder = tmp_path_factory.mktemp("project")
    write_tiny(folder / "tiny")
    project = Project(folder, {**TINY, "model": {"source": "tiny", "revision": None}})
    ran = project.stages_run("repro", **watched(tmp_path_factory.mktemp("watch")))
    assert families(ran) == {"plan", "download", "prepare", "quantize", "evaluate-base", "evaluate", "benchmark-base",
                             "benchmark", "compare", "sensitivity", "fetch-relative", "relative", "plot", "report"}
    assert {f"quantize@{name}" for name in TINY["variants"]} < ran
    project.commit()
    return project


def watched(folder):
    """The environment of processes of Python that note in `watched` when they begin, and what they look up or connect to; other
    machines are refused. Offline settings, which would keep the Hub's client from asking, are off."""
    shutil.copyfile(WATCH, folder / "sitecustomize.py")
    return {"PYTHONPATH": str(folder), "WATCHED": str(folder / "watched"), "HF_HUB_OFFLINE": "0"}


def families(stages):
    return {stage.partition("@")[0] for stage in stages}


@pytest.mark.usefixtures("project")
def test_the_run_connected_nowhere(tmp_path_factory):
    """That of the fixture, and that of a process that tries, so that the watch is known to see it."""
    notes = tmp_path_factory.getbasetemp() / "watch0" / "watched"
    lines = notes.read_text().splitlines()
    begun = [line for line in lines if line.startswith("begun ")]
    assert sum("stages" in line for line in begun) > 2 * len(TINY["variants"]) and any("dvc" in line for line in begun)
    assert [line for line in lines if line not in begun] == []
    tried = watched(tmp_path_factory.mktemp("try"))
    script = "import sys; sys.audit('socket.connect', None, ('192.0.2.1', 9))"  # as a connection would, but there is none
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, **tried}, capture_output=True, text=True)
    assert "no connection to ('192.0.2.1', 9)" in done.stderr and "192.0.2.1" in Path(tried["WATCHED"]).read_text()


def test_nothing_to_do_runs_nothing(project):
    assert project.stages_run("repro") == set()


def test_every_variant_has_the_same_metrics(project):
    metrics = project.metrics()
    assert set(metrics) == {"base", "bf16", "whole", "int4", "mix4", "bnb-nf4", "gguf-q8_0"}
    assert len({tuple(sorted(values)) for values in metrics.values()}) == 1
    assert all(isinstance(value, float) for values in metrics.values() for value in values.values())
    shown = project.dvc("metrics", "show")
    assert all(f"{name}.json" in shown for name in metrics)


def test_the_report_is_there_and_whole(project):
    reports = project.folder / "reports"
    html = (reports / "report.html").read_text()
    drawn = {path.stem for path in (reports / "figures").glob("*.svg")}
    assert {"size-divergence", "divergence", "latency", "bytes", "error-map"} < drawn
    assert html.count("data:image/svg+xml") == len(drawn) and "figures/" not in html and "http:" not in html.split("<body>")[0]
    assert "https:" not in html.split("<body>")[0]
    assert (reports / "report.pdf").read_bytes().startswith(b"%PDF")
    text = (reports / "report.md").read_text()
    assert all(name in text for name in project.metrics())
    assert "Few lines" in text and "40 lines" in text, "differences between variants may be chance"


def test_what_was_measured_is_whole(project):
    reports = project.folder / "reports"
    quality, speed = ({path.stem: json.loads(path.read_text()) for path in (reports / kind).glob("*.json")}
                      for kind in ("quality", "speed"))
    assert set(quality) == set(speed) == set(project.metrics())
    blocks = {name: Blocks.from_dict(found["blocks"]) for name, found in quality.items()}
    for name, found in quality.items():
        assert found["protocol"] == quality["base"]["protocol"] and found["protocol"]["name"] == "joined"
        assert blocks[name].tokens.sum() == found["protocol"]["tokens"]
        assert sum(row["bytes"] for row in found["size_breakdown"]) == sum(found["held_bytes"].values())
        low, high = found["intervals"]["ppl_change_pct"]
        again = difference(blocks[name], blocks["base"])  # from what is stored alone, as the report does it
        assert [again.low, again.high, again.value] == pytest.approx([low, high, found["metrics"]["ppl_change_pct"]], abs=1e-3)
        assert (low < 0 < high) or found["intervals"]["is_significant"] or name == "base"
        assert found["divergence"]["kld_mnats"]["mean"] == pytest.approx(found["metrics"]["kld_mnats"], rel=1e-3, abs=1e-9)
    assert speed.pop("bf16") == {"variant": "bf16", "is_timed": False, "metrics": {}}
    for found in speed.values():
        assert set(found["timing"]) == {"prefill", "prefill_long", "decode", "generate"} and found["attempts"] in (1, 2)
        assert found["timing"]["decode"]["gb_per_s"] > 0 and found["environment"]["memory_read_gb_per_s"] > 0
        assert found["memory"]["generate_peak_mib"] > 0 and found["generation"]["text"]
    assert speed["base"]["generation"]["is_same"]
    assert json.loads((reports / "environment.json").read_text()) == speed["base"]["environment"]


def test_evaluating_twice_gives_the_same_bytes(project):
    folder = project.folder / "reports" / "quality"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    project.dvc("repro", "--force", "--single-item", "evaluate-base", "evaluate@int4", "evaluate@gguf-q8_0", "evaluate@bnb-nf4")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_through_a_dvc_remote_another_checkout_has_everything(project, tmp_path):
    """Push, clone elsewhere, pull: there is nothing left to run, and the metrics are the same. Timings go by git, forced."""
    project.dvc("remote", "add", "-d", "shared", str(tmp_path / "remote"))
    project.git("add", "--force", "reports/speed")
    project.commit()
    project.dvc("push")
    clone = Project.cloned(project, tmp_path / "clone")
    clone.dvc("pull")
    assert clone.stages_run("repro") == set()
    assert clone.metrics() == project.metrics()
    for name in ("models/int4/model.safetensors", "models/gguf-q8_0/model.gguf", "reports/report.html"):
        assert (clone.folder / name).read_bytes() == (project.folder / name).read_bytes()


@contextmanager
def changed(project, name, old, new):
    """A file of the project with one passage replaced."""
    path = project.folder / name
    text = path.read_text()
    assert old in text
    try:
        path.write_text(text.replace(old, new))
        yield
    finally:
        path.write_text(text)


def would_run(project) -> set[str]:
    """Stages that stand on something that changed; what follows from their results is not known before they run."""
    return project.stages_run("repro", "--dry")


def every(*groups) -> set[str]:
    return {f"{group}@{name}" for group in groups for name in TINY["variants"]}


OF_QUALITY = {"sensitivity", "relative@relative"}  # stages beside the variants' that score a model


def test_code_that_changes_reruns_what_imports_it(project):
    with changed(project, "quant/tensor/codebooks.py", "-0.6961928009986877", "-0.69"):  # a value of NF4
        assert would_run(project) == every("quantize", "evaluate", "benchmark") | {
            "plan", "prepare", "evaluate-base", "benchmark-base", "compare", "plot", "report"} | OF_QUALITY
    with changed(project, "quant/quality/score.py", "TOP = 5", "TOP = 4"):
        assert would_run(project) == every("evaluate") | {"evaluate-base"} | OF_QUALITY
    with changed(project, "quant/methods/bitsandbytes/build.py", "dtype=torch.float32", "dtype=torch.float16"):
        assert would_run(project) == {"plan", "prepare", "quantize@bnb-nf4", "benchmark@bnb-nf4", "plot", "report"}
    with changed(project, "quant/report/notes.py", "Few lines", "Too few lines"):
        assert would_run(project) == {"plot", "report"}
    assert would_run(project) == set()


UPGRADES = {
    "bitsandbytes": {f"{group}@bnb-nf4" for group in ("quantize", "evaluate", "benchmark")} | {"plot", "report"},
    "torch": every("quantize", "evaluate", "benchmark") | {
        "prepare", "evaluate-base", "benchmark-base", "compare", "plot", "report"} | OF_QUALITY,
    "matplotlib": {"plot", "report"},
    "dvc": set(),
}


def test_an_upgrade_reruns_what_the_library_computes(project):
    pins = (project.folder / "requirements.txt").read_text().splitlines()
    for library, expected in UPGRADES.items():
        pin = next(line.split()[0] for line in pins if line.startswith(f"{library}=="))
        with changed(project, "requirements.txt", pin, f"{library}==99.0"):
            assert project.stages_run("repro", "plan") == {"plan"}
            assert would_run(project) == expected, library
    project.dvc("repro", "plan")
    assert would_run(project) == set()


TOY = '''"""A method for a test: every matrix of the blocks rounded to multiples of a step, stored in float32."""

from quant.errors import InputError
from quant.methods import Method, Sizes


def resolve(defaults, row):
    values = {"step": 0.01, **defaults, **row}
    if set(values) != {"step"}:
        raise InputError("known: step")
    return values


def build(base, prepared, values, out, tell):
    from quant.files import atomic_folder, write_json, write_manifest
    from quant.model.checkpoint import Checkpoint
    from quant.model.folder import copy_companions
    from quant.model.safetensors_file import write_checkpoint

    checkpoint = Checkpoint(base)
    matrices = {weight.tensor for weight in checkpoint.inventory.weights if weight.is_block_matrix}

    def tensors():
        for name in checkpoint.tensors:
            value = checkpoint.read(name)
            yield name, (value / values["step"]).round() * values["step"] if name in matrices else value

    with atomic_folder(out) as folder:
        write_checkpoint(folder, checkpoint.tensors, tensors())
        write_json(folder / "config.json", checkpoint.config)
        copy_companions(base, folder)
        write_manifest(folder, {"method": "toy", "runtime": "transformers", "step": values["step"]})


METHOD = Method(
    label="a toy",
    resolve=resolve,
    build=build,
    sizes=lambda inventory, folder, values: Sizes(inventory.stored_bytes, 4 * inventory.parameters, inventory.stored_bytes),
    nominal_bits=lambda values: 5,
)
'''


def test_a_new_method_is_a_folder_and_a_row(project):
    """Metrics, rows of the tables, marks in the figures, a forecast: with no other edit."""
    toy = project.folder / "quant" / "methods" / "toy"
    toy.mkdir()
    (toy / "__init__.py").write_text(TOY)
    (toy / "about.md.jinja").write_text("**A toy** ({{ variants }}): rounds to steps of {{ rows[0]['values'].step }}.\n")
    ran = project.stages_run("exp", "run", "-S", "+variants.toy={method: toy, step: 0.02}")
    assert ran == {"plan", "prepare", "quantize@toy", "evaluate@toy", "benchmark@toy", "plot", "report"}
    metrics = project.metrics()
    assert set(metrics["toy"]) == set(metrics["int4"]) and metrics["toy"]["kld_mnats"] > 0
    report = (project.folder / "reports" / "report.md").read_text()
    assert "| toy |" in report and "**A toy** (`toy`): rounds to steps of 0.02." in report
    with open(project.folder / "reports" / "variants.csv", newline="") as file:
        assert {row["variant"]: row["method"] for row in csv.DictReader(file)}["toy"] == "toy"
    for name in ("size-divergence", "divergence", "ppl-change"):
        drawn = (project.folder / "reports" / "figures" / f"{name}.svg").read_text()
        assert "<!-- toy -->" in drawn and "<!-- a toy -->" in drawn, f"{name}: its mark, and its line of the legend"
    shown = subprocess.run([sys.executable, "-m", "quant.check", "tiny"], cwd=project.folder, env=environment(),
                           capture_output=True, text=True)
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("toy")]
    assert line.split()[:3] == ["toy", "a", "toy"], "the forecast of quant.check"
    refused = project.dvc("exp", "run", "-S", "variants.toy.method=nosuch", ok=False)
    assert "nosuch" in refused
    shutil.rmtree(toy)
    for kind in ("quality", "speed", "metrics"):
        (project.folder / "reports" / kind / "toy.json").unlink()
    project.git("checkout", ".")
    project.dvc("checkout", "--quiet", "--force")
    assert would_run(project) == set()


def test_the_boundaries_of_caching(project):
    """One parameter after another, there and back; each line is one promise."""
    ran = project.stages_run("exp", "run", "-S", "evaluate.stride=32")
    assert families(ran) == {"plan", "evaluate", "evaluate-base", "sensitivity", "relative", "plot", "report"}

    ran = project.stages_run("exp", "run", "-S", "evaluate.stride=64", "-S", "quant.bits=6")
    assert {name for name in ran if "@" in name} == {"quantize@whole", "evaluate@whole", "benchmark@whole"}, \
        "of the variants from scratch the one that inherits quant.bits, and no other method's"
    assert project.metrics()["whole"]["bits_per_weight"] < 8

    before = project.metrics()
    ran = project.stages_run("exp", "run", "-S", "variants.int4.group_size=32")
    assert ran == {"plan", "quantize@int4", "evaluate@int4", "benchmark@int4", "relative@relative", "plot", "report"}
    assert project.metrics()["int4"]["bits_per_weight"] > before["int4"]["bits_per_weight"]

    timings = {path.name: path.read_bytes() for path in (project.folder / "reports" / "speed").iterdir()}
    ran = project.stages_run("exp", "run", "-S", "variants.int4.group_size=64")
    assert not {"quantize@int4", "evaluate@int4"} & ran, "what was measured once comes from the cache"
    assert "benchmark@int4" in ran, "a timing never does"
    now = {path.name: path.read_bytes() for path in (project.folder / "reports" / "speed").iterdir()}
    assert {name for name in now if now[name] != timings[name]} == {"int4.json"}

    ran = project.stages_run("exp", "run", "-S", "+variants.int3={method: quant, bits: 3, group_size: 32}")
    assert ran == {"plan", "quantize@int3", "evaluate@int3", "benchmark@int3", "plot", "report"}
    assert "int3.json" in project.dvc("metrics", "show") and "int3" in (project.folder / "reports" / "report.md").read_text()
    assert "int3" in project.dvc("metrics", "diff")

    params = (project.folder / "params.yaml").read_text()
    refused = project.dvc("exp", "run", "-S", "quant.bitz=4", ok=False)
    assert "bitz" in refused
    refused = project.dvc("exp", "run", "-S", "+variants.int3.bitz=4", ok=False)
    assert "variants.int3: unknown recipe key 'bitz'" in refused, "before anything is quantized"
    (project.folder / "params.yaml").write_text(params)


@pytest.mark.parametrize("stage", ["prepare", "quantize@whole", "quantize@mix4", "quantize@bnb-nf4", "evaluate@whole"])
def test_killed_in_a_stage_it_ends_with_the_same_hashes(project, stage):
    expected = project.hashes()
    words = [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", stage]
    process = subprocess.Popen(words, cwd=project.folder, env=environment(), stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    for line in process.stdout:
        if line.startswith("> python"):
            break
    time.sleep(1.5)  # into the stage's own work, or DVC's writing of its lock where the stage is quick
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    subprocess.run([sys.executable, "-m", "quant.recover"], cwd=project.folder, env=environment(), check=True)  # as make repro
    project.dvc("repro")
    assert project.hashes() == expected
