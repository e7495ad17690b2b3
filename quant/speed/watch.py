"""Follows the machine's load from before a benchmark until after it, and says what a busy machine means for the benchmark."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from quant.speed.quiet import Load, measure_load, wait_for_quiet

LEAST_ROUNDS = 2


@dataclass
class Watch:
    """The loads found so far, the first before the benchmark; seconds waited before it; rounds that the benchmark then ran."""

    threads: int
    loads: list[Load]
    waited_s: float
    rounds: int | None = field(default=None, init=False)

    @property
    def is_busy(self) -> bool:
        """Whether the machine was busy at any time."""
        return any(load.is_busy for load in self.loads)

    def still_quiet(self) -> bool:
        """Measure again; whether the machine is quiet and has been all the time."""
        self.loads.append(measure_load(self.threads))
        return not self.is_busy

    def shorten(self, rounds: int) -> int:
        """Rounds to run: half, at least two, if the machine is busy, because timings that can't be trusted aren't worth more."""
        self.rounds = min(rounds, max(LEAST_ROUNDS, rounds // 2)) if self.is_busy else rounds
        return self.rounds

    def to_dict(self) -> dict:
        return {
            "before": self.loads[0].to_dict(),
            "after": self.loads[-1].to_dict(),
            "waited_s": round(self.waited_s, 1),
            "is_busy": self.is_busy,
            "rounds": self.rounds,
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        }


def tell_on_terminal(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def watch_machine(threads: int, most_s: float, tell: Callable[[str], None] = tell_on_terminal) -> Watch:
    """Wait for a quiet machine, `most_s` seconds at most, and tell if it is busy. threads: of the benchmark."""
    load, waited_s = wait_for_quiet(threads, most_s, tell)
    if load.is_busy:
        tell("measuring all the same, in fewer rounds; these timings count as noisy")
    return Watch(threads, [load], waited_s)
