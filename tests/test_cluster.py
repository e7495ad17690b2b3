"""Stages on several machines: Ray's nodes, each a process of its own on this machine. Skipped where Ray is not installed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray_nodes
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
    if what == "bar":
        from quant.progress import progress
        for _ in progress(range(20), "sheep"):
            time.sleep(0.1)
    if what == "hungry":
        with open("attempts-hungry", "a") as file:
            file.write(f"{os.environ['RAY_task_oom_retries']}\\n")
        held = bytearray(4 * 10**9)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(60)
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
    out, err = process.communicate(timeout=600)
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


def test_a_retry_does_not_wait_for_the_lock_of_an_attempt_that_stands_still(project):
    """A folder's lock is held by a process that may never end; when it goes on, what it writes is thrown away."""
    pytest.importorskip("ray", reason="make cluster installs Ray")
    (project / "stages" / "evaluate.py").write_text(HOLDS)
    nodes = Nodes(1, **ray_nodes.IMPATIENT)
    try:
        process = start(project, "stages.evaluate", "one", address=nodes.address)
        wait_for(project / "attempts")
        (task,) = nodes.tasks()
        nodes.hold(task)
        ended(process)
        assert not ray_nodes.has_ended(task.pid)
        nodes.let_go(task)
    finally:
        nodes.shutdown()
    assert {path.name: path.read_text() for path in (project / "models" / "one").iterdir()} == {"a": "one", "b": "two"}
    assert not [path for path in (project / "models").iterdir() if path.name != "one"]


HOLDS = '''"""A stage for a test: a folder in two steps, with a long wait between them in the first attempt."""
import os, time
from pathlib import Path
from quant.files import atomic_folder
from quant.pipeline import run


def main(out: str) -> None:
    with atomic_folder(Path("models") / out) as folder:
        (folder / "a").write_text("one")
        with open("attempts", "a") as file:
            file.write("x")
        time.sleep(15 if len(Path("attempts").read_text()) == 1 else 0)
        (folder / "b").write_text("two")


run(main)
'''


def test_a_bar_is_shown_on_a_terminal_only(cluster, project):
    """One bar, which a task on another machine draws, behind the machine's name."""
    end, its = os.openpty()
    process = subprocess.Popen([sys.executable, "-m", "stages.evaluate", "bar"], cwd=project, stdout=its, stderr=its, env={
        **os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(project)})
    os.close(its)
    shown = b""
    while chunk := _read(end):
        shown += chunk
    assert process.wait() == 0
    machine = os.uname().nodename
    assert f"[{machine}] sheep: ".encode() in shown and shown.decode().endswith(f"\x1b[K[{machine}] tells bar\r\n")
    out, err = ended(start(project, "stages.evaluate", "bar", address=cluster.address))
    assert out.splitlines() == [f"[{machine}] begins in project", f"[{machine}] tells bar"] and not err


def _read(terminal):
    try:
        return os.read(terminal, 2**16)
    except OSError:  # its other end is closed
        return b""


def test_little_memory_is_tried_again_once_and_told(project):
    """Ray's own watch over memory, with a limit 2 GB above what the machine uses now; the stage wants 4."""
    pytest.importorskip("ray", reason="make cluster installs Ray")
    from quant.memory import available_memory

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if available_memory() < 8 * 10**9:
        pytest.skip("needs 8 GB of free memory")
    nodes = Nodes(1, 1, memory_usage_threshold=(total - available_memory() + 2.5e9) / total, memory_monitor_refresh_ms=100,
                  task_oom_retry_delay_base_ms=0)
    try:
        _, err = ended(start(project, "stages.evaluate", "hungry", address=nodes.address), ok=False)
    finally:
        nodes.shutdown()
    assert (project / "attempts-hungry").read_text().splitlines() == ["1", "1"]
    assert err.startswith("error: evaluate hungry: ") and "too little memory, twice" in err and err.count("\n") == 1


def test_the_heads_death_is_one_line(project):
    pytest.importorskip("ray", reason="make cluster installs Ray")
    nodes = Nodes(1)
    try:
        process = start(project, "stages.evaluate", "forever", address=nodes.address)
        wait_for(project / "forever.pid")
        nodes.kill_head()
        _, err = ended(process, ok=False)
    finally:
        nodes.shutdown()
    assert err.startswith("error: evaluate forever: ") and "run the same command again" in err and err.count("\n") == 1


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
    ray_nodes.wait_for(lambda: [*(project / "models").glob(".killed.*.partial")] and cluster.tasks())
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


def test_a_calibrated_pass_in_parts_has_the_bytes_of_one_machine(cluster, project, lively):
    """Five batches of windows, three at a time; the sums over them are added in their order. Also where a node dies meanwhile."""
    path = project / "quant" / "calibration" / "sequential.py"
    path.write_text(path.read_text().replace("BATCH_TOKENS = 8192", "BATCH_TOKENS = 5 * 32"))
    (project / "stages" / "quantize.py").write_text(CALIBRATE)
    for architecture in ("gpt2", "llama"):
        shutil.copytree(lively(architecture), project / "models" / architecture)
    ended(start(project, "stages.quantize", "alone", address="", OMP_NUM_THREADS="1"))
    for out, is_killed in (("divided", False), ("killed", True)):
        process = start(project, "stages.quantize", out, address=cluster.address, QUANT_PARTS="3")
        if is_killed:
            task = ray_nodes.wait_for(lambda: next((one for one in cluster.tasks() if one.name == "piece"), None))
            cluster.kill_node(task.raylet)
        ended(process)
        for architecture in ("gpt2", "llama"):
            found, expected = (contents(project / "models" / f"{one}-{architecture}") for one in (out, "alone"))
            assert found == expected and {"block-0.safetensors", "block-1.safetensors"} < set(found)


CALIBRATE = '''"""A stage for a test: calibrated passes over tiny models, on made-up tokens."""
from pathlib import Path
from quant.pipeline import run


def main(out: str) -> None:
    import torch
    from quant.calibration.saved import Saved
    from quant.calibration.sequential import Settings, calibrate
    from quant.calibration.skeleton import Skeleton
    from quant.calibration.solver import Solver
    from quant.model.checkpoint import Checkpoint
    from quant.model.recipe import Recipe
    from quant.model.selection import select
    from quant.tensor.scheme import Scheme

    tokens = torch.randint(3, 96, (24, 32), generator=torch.Generator().manual_seed(2))
    for architecture in ("gpt2", "llama"):
        checkpoint = Checkpoint(Path("models") / architecture)
        weights = select(checkpoint.inventory, Recipe(Scheme(3, 32, fit="mse")))
        saved = Saved(Path("models") / f"{out}-{architecture}", "")
        calibrate(Skeleton(checkpoint), weights, tokens, Settings(Solver(), equalize=architecture == "llama"), saved)


run(main)
'''


def test_an_evaluation_in_parts_has_the_same_bytes(cluster, project):
    """Two tasks on two nodes, each with a model of its own, against one process."""
    (project / "stages" / "evaluate.py").write_text(EVALUATE)
    shutil.copytree(EMBEDDED, project / "models" / "base")
    ended(start(project, "stages.evaluate", "alone", address=""))
    ended(start(project, "stages.evaluate", "divided", address=cluster.address, QUANT_PARTS="3"))
    assert (project / "divided").read_bytes() == (project / "alone").read_bytes()
    assert (project / "base-divided").read_bytes() == (project / "base-alone").read_bytes()
    assert contents(project / "reference-divided") == contents(project / "reference-alone")


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
