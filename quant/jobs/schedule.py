"""Chooses which stage runs next: first what most work waits for, within the machine's memory; timings run alone, and last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from quant.files import write_json
from quant.jobs.machine import LIBRARIES

DURATIONS = Path(".dvc/tmp/durations.json")  # seconds that each stage took, when it last ran
TIMINGS = "benchmark"  # how the names of stages begin that measure time
# Guesses in seconds, for stages that were never run: one of many rows, and one that stands for itself
ROW_S, SINGLE_S = 10.0, 60.0


def is_timing(stage: str) -> bool:
    return stage.startswith(TIMINGS)


class Schedule:
    """Stages in the order of their graph: open, ready, begun, and done or failed.

    before: the stages that each waits for. is_outdated: whether a stage, all of whose `before` are done, has to run.
    """

    def __init__(self, before: Mapping[str, set[str]], is_outdated: Callable[[str], bool], seconds: Mapping[str, float]):
        self._before, self._is_outdated = before, is_outdated
        self._open = dict.fromkeys(before)
        self.ready: set[str] = set()
        self.begun: set[str] = set()
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self._rank = ranks(before, seconds)

    def settle(self) -> None:
        """Bring every stage whose `before` are done to `ready`, or to `done` if it is up to date."""
        found = True
        while found:
            found = [stage for stage in self._open if self._before[stage] <= self.done]
            for stage in found:
                del self._open[stage]
                (self.ready if self._is_outdated(stage) else self.done).add(stage)

    def next(self, fits: Callable[[str], bool]) -> str | None:
        """Take the stage to begin now, or None: nothing is ready, or it has to wait for those that are running."""
        if any(map(is_timing, self.begun)):
            return None
        work = sorted((stage for stage in self._before if stage in self.ready and not is_timing(stage)),
                      key=lambda stage: -self._rank[stage])  # of equal ones, the first of the graph
        chosen = next((stage for stage in work if not self.begun or fits(stage)), None)
        if not work and not self.begun and not self.failed:
            chosen = next((stage for stage in self._before if stage in self.ready), None)  # a timing, in the order of the graph
        if chosen:
            self.ready.remove(chosen)
            self.begun.add(chosen)
        return chosen

    def end(self, stage: str, succeeded: bool) -> None:
        self.begun.remove(stage)
        (self.done if succeeded else self.failed).add(stage)


def ranks(before: Mapping[str, set[str]], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the longest chain of work that begins with each stage; timings, which come later, do not count."""
    after: dict[str, list[str]] = {stage: [] for stage in before}
    for stage, needed in before.items():
        for one in needed & before.keys():
            after[one].append(stage)
    found: dict[str, float] = {}

    def rank(stage: str) -> float:
        if stage not in found:
            found[stage] = 0.0 if is_timing(stage) else guess(stage, seconds) + max(map(rank, after[stage]), default=0.0)
        return found[stage]

    return {stage: rank(stage) for stage in before}


def guess(stage: str, seconds: Mapping[str, float]) -> float:
    """Seconds that a stage will take: what it last took, or the mean of the other rows, or a guess."""
    group, at, _ = stage.partition("@")
    alike = [value for name, value in seconds.items() if at and name.partition("@")[0] == group]
    return seconds.get(stage) or (sum(alike) / len(alike) if alike else ROW_S if at else SINGLE_S)


def read_durations(path: Path = DURATIONS) -> dict[str, float]:
    """What `write_durations` wrote; {} if there is nothing, or nothing readable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write_durations(seconds: Mapping[str, float], path: Path = DURATIONS) -> None:
    write_json(path, {stage: round(value, 1) for stage, value in seconds.items()})


def fits(stage: str, begun: Iterable[str], needs: Mapping[str, int], memory: int) -> bool:
    """Whether a stage has room in `memory` bytes beside those that have begun."""
    return sum(needs.get(one, LIBRARIES) for one in (stage, *begun)) <= memory
