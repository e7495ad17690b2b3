"""Several stages at a time: the order, the share of the machine, errors, signals; and the same results as `dvc repro`."""

import ast
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from dvc_project import environment
from hypothesis import given
from hypothesis import strategies as st

from quant.jobs.schedule import Schedule, fits, guess, ranks, read_durations, write_durations

SLEEP = "echo begin; sleep {s}; date +%s.%N > {name}; echo $OMP_NUM_THREADS >> {name}"
PARAMS = """line: " {} \\n"\nseed: [1.0, null, 'x: y', 1e-5, 012, '012', 'yes']\nrow: {b: yes, a: [{bits: 2}, 3]}\n"""
QUICK = "echo {name} > {name}"


def mini(folder, **stages):
    """A DVC project. stages: name -> (command, names of the stages that it needs); a stage writes the file of its name."""
    folder.mkdir(exist_ok=True)
    entries = {name: {"cmd": command.replace("{name}", name), "deps": needs, "params": [{"params.yaml": None}], "outs": [name]}
               for name, (command, needs) in stages.items()}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": entries}, sort_keys=False))
    (folder / "params.yaml").write_text("{}\n")
    for words in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(words, cwd=folder, check=True, env=environment())
    return folder


def jobs(folder, *words, ok=True, **more):
    done = subprocess.run([sys.executable, "-m", "quant.jobs", *words], cwd=folder, capture_output=True, text=True,
                          env={**environment(), "PYTHONPATH": str(ROOT), **more})
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def serial(folder, *words):
    return subprocess.run([sys.executable, "-m", "dvc", "repro", *words], cwd=folder, capture_output=True, text=True, check=True,
                          env=environment()).stdout


def test_stages_run_beside_each_other_in_the_order_of_the_graph(tmp_path):
    sleep = SLEEP.replace("{s}", "1.5")
    folder = mini(tmp_path / "p", a=(sleep, []), b=(sleep, []), benchmark=("date +%s.%N > benchmark", []), c=(sleep, ["a", "b"]))
    done = jobs(folder, "2", OMP_NUM_THREADS="2")
    found = {name: (folder / name).read_text().split() for name in ("a", "b", "c", "benchmark")}
    ended = {name: float(lines[0]) for name, lines in found.items()}
    assert abs(ended["a"] - ended["b"]) < 1.4 and ended["c"] - max(ended["a"], ended["b"]) > 1.4
    assert ended["benchmark"] > ended["c"], "timings run alone, and last"
    assert [found[name][1] for name in "abc"] == ["1", "1", "2"], "shares of the cores; a stage alone has all"
    assert "a | begin" in done.stdout and "b | Running stage 'b':" in done.stdout
    assert "Data and pipelines are up to date." in done.stdout, "dvc repro had the last word"
    assert set(read_durations(folder / ".dvc/tmp/durations.json")) == {"a", "b", "c", "benchmark"}
    assert jobs(folder, "2").stdout == "Data and pipelines are up to date.\n"


def test_the_lock_has_the_bytes_of_dvc_repro(tmp_path):
    stages = {name: (QUICK, needs) for name, needs in
              {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "benchmark": []}.items()}
    one, other = (mini(tmp_path / name, **stages) for name in ("one", "other"))
    for folder in (one, other):
        serial(folder)
        (folder / "params.yaml").write_text(PARAMS)
    serial(one)
    jobs(other, "3")
    assert (one / "dvc.lock").read_bytes() == (other / "dvc.lock").read_bytes()
    (one / "dvc.lock").unlink()
    jobs(one, "3")  # what ran before comes from the run cache
    assert yaml.safe_load((one / "dvc.lock").read_text()) == yaml.safe_load((other / "dvc.lock").read_text())


def test_targets_bring_what_they_need(tmp_path):
    folder = mini(tmp_path / "p", a=(QUICK, []), b=(QUICK, ["a"]), c=(QUICK, ["a"]))
    jobs(folder, "2", "b")
    assert (folder / "b").is_file() and not (folder / "c").exists()
    done = jobs(folder, "2", "nothing", ok=False)
    assert done.stderr.startswith("error: ") and "nothing" in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_error_ends_with_the_stages_line(tmp_path):
    """What stands on it does not run; the others end; status 1."""
    fail = "echo 'error: a: the disk is made of cheese' >&2; exit 3"
    folder = mini(tmp_path / "p", a=(fail, []), b=(SLEEP.replace("{s}", "2"), []), c=(QUICK, ["a"]),
                  benchmark=(QUICK, []))
    done = jobs(folder, "2", ok=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "error: a failed: a: the disk is made of cheese"
    assert (folder / "b").is_file() and not (folder / "c").exists() and not (folder / "benchmark").exists()
    assert set(yaml.safe_load((folder / "dvc.lock").read_text())["stages"]) == {"b"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_takes_the_children_along(tmp_path, number):
    """And what had ended is kept; the next run goes on from there."""
    folder = mini(tmp_path / "p", a=(QUICK, []), b=("sleep 4242 & sleep 4242", ["a"]), c=("sleep 4242", ["a"]))
    process = subprocess.Popen([sys.executable, "-m", "quant.jobs", "2"], cwd=folder, stdout=subprocess.PIPE, text=True,
                               env={**environment(), "PYTHONPATH": str(ROOT)}, start_new_session=True)
    begun = [next(line for line in process.stdout if "> sleep" in line) for _ in range(2)]
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(timeout=15) == 128 + number and len(begun) == 2
    time.sleep(0.2)
    assert not sleepers(folder)
    assert set(yaml.safe_load((folder / "dvc.lock").read_text())["stages"]) == {"a"}
    assert not (folder / ".dvc.lock.partial").exists()


def sleepers(folder):
    """Processes that work in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append(process.name)
        except OSError:
            continue
    return found


STAGE = """
import os, sys, threading
from pathlib import Path
is_loaded, files = "torch" in sys.modules, len(os.listdir("/proc/self/fd"))
import torch
from quant import pipeline
if sys.argv[1] == "fails":
    sys.exit("error: evaluate: no such row")
if sys.argv[1] == "sleeps":
    print("begin", flush=True)
    import time
    time.sleep(4242)
product = torch.ones(512, 512) @ torch.ones(512, 512)  # on every thread
name, words, own = Path(sys.argv[0]).name, sys.argv[1:], pipeline.__file__
Path(words[0]).write_text(repr([is_loaded, files, torch.get_num_threads(), float(product[0, 0]), name, words, __name__]))
print("measured", words[0])
"""


def preloading(folder, *names):
    """A project with stages of the name `evaluate`, whose libraries are loaded before they are forked."""
    mini(folder, **{f"evaluate-{name}": (f"python -m stages.evaluate {name}", []) for name in names})
    dvc = yaml.safe_load((folder / "dvc.yaml").read_text())
    for name, stage in dvc["stages"].items():
        stage["outs"] = [name.removeprefix("evaluate-")]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(dvc))
    (folder / "stages").mkdir()
    (folder / "stages/__init__.py").touch()
    (folder / "stages/evaluate.py").write_text(STAGE)
    return folder


def test_stages_of_this_project_are_forked_with_their_libraries(tmp_path):
    """They see the arguments, the share of the cores and the code as a new Python does."""
    done = jobs(preloading(tmp_path / "p", "a", "b"), "2", OMP_NUM_THREADS="2")
    for name in ("a", "b"):
        is_loaded, files, threads, product, *rest = ast.literal_eval((tmp_path / "p" / name).read_text())
        assert is_loaded and files <= 4 and threads == 1 and product == 512
        assert rest == ["evaluate.py", [name], "__main__"]
        assert f"evaluate-{name} | measured {name}" in done.stdout


def test_a_forked_stage_fails_as_another_does(tmp_path):
    folder = preloading(tmp_path / "p", "a", "fails")
    done = jobs(folder, "2", ok=False)
    assert done.stderr.splitlines()[-1] == "error: evaluate-fails failed: evaluate: no such row"
    assert "Traceback" not in done.stderr and (folder / "a").is_file()


def test_a_signal_takes_a_forked_stage_along(tmp_path):
    folder = preloading(tmp_path / "p", "sleeps")
    process = subprocess.Popen([sys.executable, "-m", "quant.jobs", "2"], cwd=folder, stdout=subprocess.PIPE, text=True,
                               env={**environment(), "PYTHONPATH": str(ROOT)}, start_new_session=True)
    assert any(line.endswith("begin\n") for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 128 + signal.SIGTERM
    time.sleep(0.2)
    assert not sleepers(folder)


def test_a_bad_number_is_one_line(tmp_path):
    done = jobs(mini(tmp_path / "p", a=(QUICK, [])), "none", ok=False)
    assert done.stderr == "error: argument N: 'none' is not a whole number of at least 1; python -m quant.jobs --help shows " \
                          "what it takes\n"


@st.composite
def graphs(draw):
    """Stages, what each needs, which of them are out of date, and which will fail."""
    count = draw(st.integers(1, 12))
    names = [draw(st.sampled_from(["benchmark@", "evaluate@", "plot"])) + str(i) for i in range(count)]
    before = {name: set(draw(st.lists(st.sampled_from(names[:i]), max_size=3))) if i else set() for i, name in enumerate(names)}
    chosen = st.sets(st.sampled_from(names))
    return before, draw(chosen), draw(chosen)


@given(graphs(), st.integers(1, 4), st.randoms())
def test_a_schedule_runs_each_stage_once_after_what_it_needs(graph, places, random):
    before, outdated, failing = graph
    schedule = Schedule(before, lambda stage: stage in outdated, {})
    ran, begun = [], set()
    schedule.settle()
    while True:
        while len(begun) < places and (stage := schedule.next(lambda _: True)):
            assert before[stage] <= schedule.done and stage not in ran
            begun.add(stage)
            ran.append(stage)
            assert len(begun) == 1 or not any(one.startswith("benchmark") for one in begun)
        if not begun:
            break
        ended = random.choice(sorted(begun))
        begun.remove(ended)
        schedule.end(ended, ended not in failing)
        schedule.settle()
    assert set(ran) <= outdated
    assert failing & set(ran) or set(ran) == outdated, "without a failure, all"
    for stage in before:
        if stage in ran:
            assert not before[stage] & schedule.failed


def test_long_chains_come_first():
    before = {"short": set(), "prepare": set(), "quantize@a": {"prepare"}, "evaluate@a": {"quantize@a"},
              "benchmark@a": {"quantize@a"}}
    seconds = {"short": 20.0, "prepare": 5.0, "quantize@a": 10.0, "evaluate@a": 15.0, "benchmark@a": 1000.0}
    expected = {"short": 20.0, "prepare": 30.0, "quantize@a": 25.0, "evaluate@a": 15.0, "benchmark@a": 0.0}
    assert ranks(before, seconds) == expected
    schedule = Schedule(before, lambda _: True, seconds)
    schedule.settle()
    assert [schedule.next(lambda _: True) for _ in range(3)] == ["prepare", "short", None]
    assert guess("quantize@b", seconds) == 10.0, "as other rows of the group"


def test_memory_holds_stages_back():
    needs = {"a": 6 * 10**9, "b": 6 * 10**9}
    assert not fits("b", ["a"], needs, 10**10) and fits("b", ["a"], needs, 12 * 10**9)
    schedule = Schedule({"a": set(), "b": set()}, lambda _: True, {})
    schedule.settle()
    assert schedule.next(lambda _: False) == "a", "one runs, whatever it needs"
    assert schedule.next(lambda _: False) is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "x"}', '{"a": null}'])
def test_durations_that_cannot_be_read_are_none(tmp_path, text):
    (tmp_path / "durations.json").write_text(text)
    assert read_durations(tmp_path / "durations.json") == {} == read_durations(tmp_path / "missing.json")
    write_durations({"a": 1.234}, tmp_path / "new.json")
    assert read_durations(tmp_path / "new.json") == {"a": 1.2}
