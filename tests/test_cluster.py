"""Stages on several machines: Ray's nodes, each a process of its own on this machine. Skipped where Ray is not installed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import EMBEDDED, ROOT
from ray_nodes import Nodes, start

STAGE = '''"""A stage for a test."""
import os, sys, time
from pathlib import Path
from quant.errors import InputError
from quant.pipeline import run


def main(what: str) -> None:
    out = Path("models") / what
    if what == "wrong":
        raise InputError("the moon is full; wait a week")
    if what == "broken":
        print(1 // 0)
    print("begins in", Path.cwd().name, flush=True)
    if what.startswith("slow"):
        with open(f"attempts-{what}", "a") as file:
            file.write(f"{os.getpid()}\\\\n")
        time.sleep(4 if len(open(f"attempts-{what}").readlines()) < 2 else 0.1)
    if what == "forever":
        Path("forever.pid").write_text(str(os.getpid()))
        time.sleep(1000)
    out.write_text(f"{'ray' in sys.modules} {os.environ.get('OMP_NUM_THREADS')} {os.environ.get('HF_TEST')}")
    print("tells", what)


run(main)
'''.replace("\\\\n", "\\n")


@pytest.fixture
def project(tmp_path):
    """A folder with this project's code and one stage."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "quant", folder / "quant", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("models", ".dvc/tmp", "stages"):
        (folder / name).mkdir(parents=True)
    (folder / "stages" / "__init__.py").write_text("")
    for name in ("evaluate", "benchmark"):
        (folder / "stages" / f"{name}.py").write_text(STAGE)
    return folder


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of one core; the head has none, so that tasks go to the others."""
    pytest.importorskip("ray", reason="make cluster installs Ray")
    made = Nodes(1, 1)
    yield made
    made.shutdown()


def ended(process, ok=True):
    out, err = process.communicate(timeout=120)
    assert (process.returncode == 0) == ok, out + err
    return out, err


def test_a_body_runs_on_a_node_and_its_words_arrive(cluster, project):
    out, err = ended(start(project, "stages.evaluate", "one", address=cluster.address, HF_TEST="given"))
    assert (project / "models" / "one").read_text() == "True 1 given"
    machine = os.uname().nodename
    assert out.splitlines() == [f"[{machine}] begins in project", f"[{machine}] tells one"] and not err
    assert not list((project / ".dvc/tmp/cluster").iterdir())


def test_what_measures_time_stays(cluster, project):
    out, _ = ended(start(project, "stages.benchmark", "one", address=cluster.address))
    assert out.splitlines()[-1] == "tells one" and (project / "models" / "one").read_text().startswith("False")


def test_errors_come_back_as_they_are(cluster, project):
    out, err = ended(start(project, "stages.evaluate", "wrong", address=cluster.address), ok=False)
    assert (out, err) == ("", "error: evaluate wrong: the moon is full; wait a week\n")
    out, err = ended(start(project, "stages.evaluate", "broken", address=cluster.address), ok=False)
    assert "ZeroDivisionError" in out + err


@pytest.mark.parametrize("what", ["worker", "node"])
def test_what_dies_is_done_again(cluster, project, what):
    process = start(project, "stages.evaluate", f"slow-{what}", address=cluster.address)
    attempts = project / f"attempts-slow-{what}"
    wait_for(attempts)
    (task,) = cluster.tasks()
    if what == "worker":
        os.kill(task.pid, signal.SIGKILL)
    else:
        cluster.kill_node(task.raylet)
    out, _ = ended(process)
    assert "begins again" in out and cluster.retried() and not cluster.tasks()
    assert len(attempts.read_text().split()) == 2 and (project / "models" / f"slow-{what}").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_task_ends_with_its_stage(cluster, project, number):
    process = start(project, "stages.evaluate", "forever", address=cluster.address)
    wait_for(project / "forever.pid")
    process.send_signal(number)
    process.communicate(timeout=30)
    pid, end = (project / "forever.pid").read_text(), time.monotonic() + 10
    while Path(f"/proc/{pid}/cwd").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}/cwd").exists()


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not (path.is_file() and path.stat().st_size):
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.05)


@pytest.mark.parametrize(("address", "expected"), [
    ("nowhere", "expected HOST:PORT"),
    ("127.0.0.1:1", "nothing answers there"),
], ids=["no address", "no cluster"])  # fmt: skip
def test_a_wrong_address_is_one_line(project, address, expected):
    out, err = ended(start(project, "stages.evaluate", "one", address=address), ok=False)
    assert not out and expected in err and err.startswith("error: evaluate one: RAY_ADDRESS") and err.count("\n") == 1


def test_without_ray_a_line_says_what_installs_it(project):
    """Something answers at the address, but ray can't be imported."""
    (project / "ray.py").write_text("raise ImportError('no module named ray')\n")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        process = start(project, "stages.evaluate", "one", address=f"127.0.0.1:{server.getsockname()[1]}")
        _, err = ended(process, ok=False)
    assert "make cluster installs it" in err and err.count("\n") == 1


def test_no_cluster_no_module_more(project):
    """Without RAY_ADDRESS, a stage imports nothing of it."""
    code = "import runpy, sys; sys.argv = ['stages/evaluate.py', 'one']\n" \
           "runpy.run_module('stages.evaluate', run_name='__main__')\n" \
           "print(sorted(name for name in sys.modules if name.startswith(('ray', 'quant'))))"
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env={**clean, "PYTHONPATH": str(project)}, text=True,
                          capture_output=True, check=True)
    assert "'quant.pipeline'" in done.stdout.splitlines()[-1]
    assert "ray" not in done.stdout.splitlines()[-1] and "quant.cluster" not in done.stdout.splitlines()[-1]
    assert "ray" not in (ROOT / "requirements.txt").read_text().lower().replace("array", "")


def test_another_code_is_refused(project):
    from quant.cluster.stages import _body, code_of

    before = code_of(project)
    (project / "quant" / "files.py").write_text("x = 1\n")
    assert code_of(project) != before
    log = project / "log"
    assert "shared file system" in _body(str(project), "evaluate", ["one"], {}, str(log), before)
    log.touch()
    folder = Path.cwd()
    try:
        assert "same commit" in _body(str(project), "evaluate", ["one"], {}, str(log), before)
    finally:
        os.chdir(folder)


def test_files_of_one_artifact_are_made_on_several_nodes(cluster, project, make_model):
    """The bytes of one process; also where a node dies meanwhile. A small limit gives a tiny model several files."""
    path = project / "quant" / "model" / "safetensors_file.py"
    path.write_text(path.read_text().replace("SHARD_BYTES = 4 * 10**9", "SHARD_BYTES = 20_000"))
    (project / "stages" / "quantize.py").write_text(QUANTIZE)
    shutil.copytree(make_model("gpt2"), project / "models" / "base")
    ended(start(project, "stages.quantize", "alone", address=""))
    expected = contents(project / "models" / "alone")
    assert len([name for name in expected if name.endswith(".safetensors")]) >= 5
    ended(start(project, "stages.quantize", "divided", address=cluster.address))
    assert contents(project / "models" / "divided") == expected
    process = start(project, "stages.quantize", "killed", address=cluster.address)
    wait_for_folder(project / "models" / ".killed.partial")
    cluster.kill_node(cluster.tasks()[0].raylet)
    ended(process)
    assert contents(project / "models" / "killed") == expected


QUANTIZE = '''"""A stage for a test."""
import os
from pathlib import Path
from quant.pipeline import run


def main(out: str) -> None:
    from quant.model.artifact import write_artifact
    from quant.model.recipe import Recipe
    from quant.tensor.scheme import Scheme

    recipe = Recipe(Scheme(4, 32, False, double_quant=True, fit="mse"), include=("*",))
    write_artifact(Path("models/base"), recipe, Path("models") / out)


run(main)
'''


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for_folder(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.is_dir():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.02)


def test_an_evaluation_in_parts_has_the_same_bytes(cluster, project):
    """Two tasks on two nodes, each with a model of its own, against one process."""
    (project / "stages" / "evaluate.py").write_text(EVALUATE)
    shutil.copytree(EMBEDDED, project / "models" / "base")
    ended(start(project, "stages.evaluate", "alone", address=""))
    ended(start(project, "stages.evaluate", "divided", address=cluster.address, QUANT_PARTS="3"))
    assert (project / "divided").read_bytes() == (project / "alone").read_bytes()


EVALUATE = '''"""A stage for a test: 8 bits, evaluated on some lines of the grammar."""
from pathlib import Path
from quant.pipeline import run


def main(out: str) -> None:
    from quant.files import write_json
    from quant.model.artifact import write_artifact
    from quant.model.recipe import Recipe
    from quant.quality.evaluate import evaluate, evaluate_base
    from quant.quality.protocol import ScoringProtocol
    from quant.tensor.scheme import Scheme
    from quant.text.read import read_corpus
    from quant.text.source import TextSource

    base, corpus, reference = Path("models/base"), read_corpus(TextSource("grammar", sentences=60)), Path(f"reference-{out}")
    protocol = ScoringProtocol(context=32, stride=32)
    write_artifact(base, Recipe(Scheme(4, 32), include=("*",)), Path("models") / out)
    write_json(Path(f"base-{out}"), evaluate_base(base, corpus, protocol, "cpu", reference))
    write_json(Path(out), evaluate(Path("models") / out, base, corpus, protocol, "cpu", reference))


run(main)
'''
