"""`dvc repro` with several stages at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from types import FrameType

from quant.device import cores
from quant.errors import InputError
from quant.jobs import preloaded
from quant.jobs.machine import computes, computes_on_gpu, free_memory
from quant.jobs.pipeline_graph import PipelineGraph
from quant.jobs.processes import SIGNALS, Ended, Processes
from quant.jobs.schedule import Schedule, fits, is_timing, read_durations, write_durations

LOCK_EVERY_S = 120.0  # between two writes of dvc.lock, which take seconds where it has a hundred stages


class Interrupted(BaseException):
    """A signal asks to end. Not an Exception, so that nothing takes it for an error of its own."""


def repro(jobs: int, targets: tuple[str, ...] = ()) -> None:
    """Bring stages up to date, `jobs` at a time. Raises InputError after one failed, when those running beside it have ended."""
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        if _Run(jobs, PipelineGraph(targets)).work():
            _last_word(targets)
        else:  # DVC's own checks, as `dvc repro` makes them
            print("Data and pipelines are up to date.")
    except Interrupted as end:
        sys.exit(128 + end.args[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # what follows is short
    raise Interrupted(number)


def _last_word(targets: tuple[str, ...]) -> None:
    """`dvc repro`, in a process that ends with this one."""
    processes = Processes()
    try:
        processes.start("dvc repro", partial(_dvc_repro, targets), {}, prefix="")
        while processes.running:
            for ended in processes.ended():
                if ended.returned is None:
                    raise InputError(_why(ended))
    finally:
        processes.stop()


def _dvc_repro(targets: tuple[str, ...]) -> str:
    from dvc.cli import main

    status = main(["--wait-for-lock", "repro", *targets])
    if status:
        raise InputError(f"dvc repro ended with status {status}")
    return ""


class _Run:
    def __init__(self, jobs: int, graph: PipelineGraph):
        self._jobs, self._graph, self._processes = jobs, graph, Processes()
        self._seconds = read_durations()
        self._schedule = Schedule(graph.before, graph.is_outdated, self._seconds)
        self._entries: list[str] = []
        self._written = time.monotonic()
        self._cores, self._memory, self._needs, self._has_gpu = cores(), free_memory(), None, computes_on_gpu()
        self._failures: list[Ended] = []
        self._count, self._is_loaded = 0, False

    def work(self) -> int:
        """Run what is out of date -> the number of stages that ran. Raises InputError if one failed."""
        try:
            self._schedule.settle()
            while self._begin() or self._processes.running:
                for ended in self._processes.ended():
                    self._end(ended)
        except Interrupted:
            for ended in self._processes.stop():
                self._end(ended)
            raise
        finally:
            self._processes.stop()
            self._write()
        if self._failures:
            raise InputError("; ".join(f"{ended.name} failed: {_why(ended)}" for ended in self._failures))
        return self._count

    def _begin(self) -> bool:
        """Begin as many stages as there are places -> whether any began."""
        began = False
        while len(self._processes.running) < self._jobs and (stage := self._schedule.next(self._fits)):
            if not self._is_loaded and preloaded.is_forked(stage) and not os.environ.get("RAY_ADDRESS"):
                preloaded.load()
                self._is_loaded = True
            self._processes.start(stage, partial(self._graph.run, stage), self._environment(stage))
            began = True
        return began

    def _fits(self, stage: str) -> bool:
        if os.environ.get("RAY_ADDRESS"):
            return True  # the cluster counts
        if self._has_gpu and all(any(map(computes, some)) for some in ([stage], self._processes.running)):
            return False  # its memory is not in the forecasts
        if not self._needs:  # also before the model is there
            self._needs = _forecast()
        return fits(stage, self._processes.running, self._needs, self._memory)

    def _environment(self, stage: str) -> dict[str, str]:
        """Threads for a stage: its share of the cores, where others run beside it.

        Stages that write models keep all, because calibrated weights depend on the number of threads in their last bits; results
        of quality do not.
        """
        beside = min(self._jobs, len(self._schedule.begun) + sum(not is_timing(one) for one in self._schedule.ready))
        if is_timing(stage) or beside < 2 or any(path.startswith("models/") for path in self._graph.outs[stage]):
            return {}
        return {"OMP_NUM_THREADS": str(max(1, self._cores // beside))}

    def _end(self, ended: Ended) -> None:
        succeeded = ended.returned is not None
        self._schedule.end(ended.name, succeeded)
        if succeeded:
            self._count += 1
            self._entries.append(ended.returned)
            self._seconds[ended.name] = ended.seconds
            self._schedule.settle()
        else:
            self._failures.append(ended)
        if time.monotonic() - self._written > LOCK_EVERY_S:
            self._write()

    def _write(self) -> None:
        if self._entries:
            self._graph.write_lock(self._entries)
            write_durations(self._seconds)
        self._entries = []
        self._written = time.monotonic()


def _forecast() -> dict[str, int]:
    """`memory_of_stages`, in a process of its own: stages are forked from this one, which runs no model and has no threads."""
    code = "import json; from quant.jobs.machine import memory_of_stages; print(json.dumps(memory_of_stages()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def _why(ended: Ended) -> str:
    """The line with which a stage said what is wrong: its own, or else DVC's."""
    told = [line for line in ended.said if line.startswith("error: ")]
    return (told or ended.said or ["no word"])[-1].removeprefix("error: ").removeprefix("ERROR: ")
