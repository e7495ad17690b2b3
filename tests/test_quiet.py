"""Is the machine quiet: what counts as busy, how long a benchmark waits, what it then does. Loads and clock are the test's."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from conftest import ROOT

from quant.speed import quiet
from quant.speed.quiet import Load, measure_load, wait_for_quiet
from quant.speed.watch import Watch, watch_machine

QUIET = Load(cores=2, threads=2, loop_slowdown=1.05, involuntary_switches_per_s=20.0, others_cpu=0.1, stolen_cpu=0.05)
BUSY = replace(QUIET, loop_slowdown=3.6, involuntary_switches_per_s=210.0, others_cpu=1.93)
MEASURING_S = 0.25
WITHOUT_TORCH = """
import os, sys
from quant.speed.plan import TimingPlan
from quant.speed.quiet import spare_the_processor
from quant.speed.watch import watch_machine
assert "torch" not in sys.modules
spare_the_processor()
assert os.environ["OMP_WAIT_POLICY"] == "passive"
"""


class Machine:
    """Gives one load after the other, the last again and again, and keeps the time."""

    def __init__(self, *loads):
        self.loads, self.seconds, self.slept, self.told = list(loads), 0.0, [], []

    def measure(self, _):
        self.seconds += MEASURING_S
        return self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.seconds += seconds

    def wait(self, most_s):
        return wait_for_quiet(2, most_s, self.told.append, self.sleep, self.measure, lambda: self.seconds)


@pytest.mark.parametrize(("changes", "is_busy"), [
    ({}, False),
    ({"loop_slowdown": 1.8}, True),
    ({"others_cpu": 0.5}, True),
    ({"stolen_cpu": 0.5}, True),
    ({"involuntary_switches_per_s": 500.0}, False),
    ({"cores": 16, "others_cpu": 5.0}, False),
    ({"cores": 16, "others_cpu": 10.0}, True),
    ({"others_cpu": None, "stolen_cpu": None}, False),
    ({"others_cpu": None, "stolen_cpu": None, "loop_slowdown": 2.0}, True),
], ids=["quiet", "slow-loop", "others", "stolen", "switches-alone", "enough-cores-free", "few-cores-free", "unknown",
        "unknown-but-slow"])  # fmt: skip
def test_busy_is_a_slow_loop_or_too_few_free_cores(changes, is_busy):
    load = replace(QUIET, **changes)
    assert load.is_busy == is_busy == load.to_dict()["is_busy"]
    assert json.loads(json.dumps(load.to_dict(), allow_nan=False)) == load.to_dict()


def test_a_load_in_words_has_its_numbers():
    assert str(BUSY) == "other processes use 1.9 of 2 cores, a test loop runs 3.6 times as long as undisturbed"
    assert str(replace(BUSY, others_cpu=None, stolen_cpu=None)) == "a test loop runs 3.6 times as long as undisturbed"
    assert "the host takes 0.8 cores away" in str(replace(QUIET, stolen_cpu=0.8))


def test_a_quiet_machine_is_neither_waited_for_nor_spoken_of():
    machine = Machine(QUIET)
    assert machine.wait(10) == (QUIET, 0.0) and machine.slept == machine.told == []


def test_the_wait_ends_when_the_machine_is_quiet_and_is_told_once():
    machine = Machine(BUSY, BUSY, BUSY, QUIET, BUSY)
    load, waited_s = machine.wait(60)
    assert load == QUIET and machine.slept == [2.0, 2.0, 2.0] and waited_s == pytest.approx(3 * (2.0 + MEASURING_S))
    assert machine.told == [f"the machine is busy: {BUSY}; waiting up to 60 s for quiet"]


@pytest.mark.parametrize("most_s", [1, 2, 10])
def test_the_wait_is_bounded(most_s):
    machine = Machine(BUSY)
    load, waited_s = machine.wait(most_s)
    assert load == BUSY and most_s <= waited_s <= most_s + MEASURING_S and len(machine.told) == 1


def test_without_a_wait_a_busy_machine_is_only_told():
    machine = Machine(BUSY)
    assert machine.wait(0) == (BUSY, 0.0) and machine.slept == [] and machine.told == [f"the machine is busy: {BUSY}"]


@pytest.mark.parametrize(("rounds", "shortened"), [(1, 1), (2, 2), (3, 2), (4, 2), (6, 3)])
def test_a_busy_machine_halves_the_rounds(rounds, shortened):
    assert Watch(2, [BUSY], 0.0).shorten(rounds) == shortened and Watch(2, [QUIET], 0.0).shorten(rounds) == rounds


def test_a_watch_that_once_saw_a_busy_machine_stays_busy(monkeypatch):
    loads = iter([QUIET, BUSY, QUIET])
    monkeypatch.setattr("quant.speed.watch.measure_load", lambda _: next(loads))
    watch = Watch(2, [QUIET], 0.0)
    assert [watch.still_quiet() for _ in range(3)] == [True, False, False] and watch.is_busy


@pytest.mark.parametrize(("load", "lines"), [(QUIET, 0), (BUSY, 1)], ids=["quiet", "busy"])
def test_what_a_busy_machine_changes_is_told(monkeypatch, load, lines):
    told = []
    monkeypatch.setattr("quant.speed.watch.wait_for_quiet", lambda *_: (load, 10.2))
    found = watch_machine(2, 10, told.append).to_dict()
    assert len(told) == lines and all("fewer rounds" in line for line in told)
    assert (found["before"], found["waited_s"], found["is_busy"]) == (load.to_dict(), 10.2, load.is_busy)


def test_a_measurement_is_short_and_fits_the_machine():
    start = time.process_time()
    load = measure_load(1000)
    assert time.process_time() - start < 1 * load.threads, "it hashes for a tenth of a second on every thread"
    assert 1 <= load.threads == load.cores and load.loop_slowdown >= 1 and load.involuntary_switches_per_s >= 0
    assert all(value is None or value >= 0 for value in (load.others_cpu, load.stolen_cpu))


def test_other_processes_and_stolen_time_are_told_apart(monkeypatch, tmp_path):
    """/proc/stat, in ticks: user nice system idle iowait irq softirq steal. The second core is not this process's."""
    stat, second = tmp_path / "stat", quiet.os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(quiet, "STAT", stat)
    monkeypatch.setattr(quiet, "_own_cores", lambda: {0})
    times = " ".join(str(seconds * second) for seconds in (1, 1, 1, 7, 7, 1, 1, 3, 0, 0))
    stat.write_text(f"cpu 9 9 9 9 9 9 9 9 0 0\ncpu0 {times}\ncpu1 5 5 5 5 5 5 5 5 0 0\n")
    assert quiet._cpu_seconds() == (5.0, 3.0)


@pytest.mark.parametrize("text", [None, "", "cpu 1 2 3\n", "cpu0 1 2 3\n"], ids=["missing", "empty", "no-cores", "few-columns"])
def test_without_the_kernels_counters_the_loop_decides(monkeypatch, tmp_path, text):
    monkeypatch.setattr(quiet, "STAT", tmp_path / "stat")
    if text is not None:
        quiet.STAT.write_text(text)
    load = measure_load(1)
    assert load.others_cpu is None and load.stolen_cpu is None and load.is_busy == (load.loop_slowdown > quiet.MAX_LOOP_SLOWDOWN)


def test_measuring_needs_no_torch_so_that_openmp_can_still_be_told_to_sleep():
    environment = {key: value for key, value in quiet.os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
