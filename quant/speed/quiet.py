"""Measures how busy the machine is, and waits for it to become quiet.

Other processes make timings wrong, and, on a virtual machine, other guests of the same host. Nothing here needs torch: how
torch's idle threads wait is decided when it is imported, so a stage measures the load first (see `spare_the_processor`).
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

STAT = Path("/proc/stat")  # Linux only
LISTENING_S = 0.15  # this process sleeps, and the time of all others counts
WARMING_S, LOOPING_S = 0.02, 0.08  # hashing; in the first part, processors that save energy reach their speed
CHUNK = bytes(2**20)  # hashed in about a millisecond, less than the scheduler gives a thread at once, so some are undisturbed
POLL_S = 2.0
WAITED = "QUANT_WAITED"  # is set where a stage that has waited for quiet begins again

# Found with both of two cores in use: others_cpu 1.5 to 2.1, loop_slowdown 2.8 and more; on a quiet virtual machine: 0.0, and
# 1.03 to 1.3. The kernel counts in hundredths of a second, so an error of 0.1 core is normal.
MAX_OTHERS_CPU, MAX_STOLEN_CPU, MAX_LOOP_SLOWDOWN = 0.25, 0.25, 1.6


@dataclass(frozen=True)
class Load:
    """What a measurement of some tenths of a second found.

    cores: that this process may use. threads: of the loop, at most `cores`. loop_slowdown: time of a loop on the slowest thread,
    all running at once, over what it takes undisturbed. involuntary_switches_per_s: how often these threads were interrupted.
    others_cpu: cores that other processes used while this one slept; stolen_cpu: cores that the host gave to other guests
    during the loop; both None where there is no /proc/stat.
    """

    cores: int
    threads: int
    loop_slowdown: float
    involuntary_switches_per_s: float
    others_cpu: float | None
    stolen_cpu: float | None

    @property
    def is_busy(self) -> bool:
        """Whether timings would be wrong. Of cores that the threads leave free, others may use half: caches are shared."""
        allowed = MAX_OTHERS_CPU + (self.cores - self.threads) / 2
        return (self.loop_slowdown > MAX_LOOP_SLOWDOWN or (self.others_cpu or 0) > allowed
                or (self.stolen_cpu or 0) > MAX_STOLEN_CPU)

    def to_dict(self) -> dict:
        rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(self).items()}
        return {**rounded, "is_busy": self.is_busy}

    def __str__(self) -> str:
        found = [] if self.others_cpu is None else [f"other processes use {self.others_cpu:.1f} of {self.cores} cores"]
        found += [f"the host takes {self.stolen_cpu:.1f} cores away"] if (self.stolen_cpu or 0) > MAX_STOLEN_CPU else []
        return ", ".join([*found, f"a test loop runs {self.loop_slowdown:.1f} times as long as undisturbed"])


def measure_load(threads: int) -> Load:
    """Measure for a quarter of a second, with as many threads as a benchmark uses."""
    cores = len(_own_cores()) or os.cpu_count() or 1
    threads = min(threads, cores)  # more would disturb each other
    _, others_cpu, _, _ = _observed(lambda: time.sleep(LISTENING_S))
    slowdown, _, stolen_cpu, switches = _observed(lambda: _loop_slowdown(threads))
    return Load(cores, threads, slowdown, switches, others_cpu, stolen_cpu)


def wait_for_quiet(threads: int, most_s: float, tell: Callable[[str], None], sleep: Callable[[float], None] = time.sleep,
                   measure: Callable[[int], Load] = measure_load,
                   clock: Callable[[], float] = time.monotonic) -> tuple[Load, float]:
    """Measure every two seconds until the machine is quiet or `most_s` seconds have passed -> the last load, seconds waited.

    A busy machine is told of once, before the wait.
    """
    load, start = measure(threads), clock()
    if not load.is_busy or WAITED in os.environ:
        return load, 0.0
    tell(f"the machine is busy: {load}" + (f"; waiting up to {most_s:g} s for quiet" if most_s else ""))
    while load.is_busy and (left := most_s - (clock() - start)) > 0:
        sleep(min(POLL_S, left))
        load = measure(threads)
    return load, clock() - start


def spare_the_processor(module: str | None = None) -> None:
    """Let idle OpenMP threads sleep instead of spinning; for a busy machine. torch decides how they wait when it is imported.

    module: begins again in a new process, without waiting again, where torch is imported already, as in a fork of quant.jobs.
    A thread that spins keeps the core which another, for which it waits, needs: with both of two cores in use, decoding a token
    took mostly 10 to 300 ms, and 0.5 to 4 with sleeping threads. On a quiet machine torch's default stays.
    """
    is_late = "torch" in sys.modules
    if "OMP_WAIT_POLICY" in os.environ or (is_late and module is None):
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    if is_late:
        os.environ[WAITED] = "1"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def _observed(work: Callable[[], float | None]) -> tuple[float | None, float | None, float | None, float]:
    """Result of `work`; cores that others used meanwhile, and that the host took away; interruptions of this process a second."""
    start, before, own = time.perf_counter(), _cpu_seconds(), resource.getrusage(resource.RUSAGE_SELF)
    result = work()
    seconds, after, own_after = time.perf_counter() - start, _cpu_seconds(), resource.getrusage(resource.RUSAGE_SELF)
    switches = (own_after.ru_nivcsw - own.ru_nivcsw) / seconds
    if before is None or after is None:
        return result, None, None, switches
    own_s = own_after.ru_utime + own_after.ru_stime - own.ru_utime - own.ru_stime
    used, stolen = (new - old for new, old in zip(after, before, strict=True))
    return result, max(0.0, used - own_s) / seconds, max(0.0, stolen) / seconds, switches


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _cpu_seconds() -> tuple[float, float] | None:
    """Seconds that the cores of this process have been used, and stolen, since the machine started; None where nothing says."""
    try:
        lines = [line.split() for line in STAT.read_text().splitlines()]
    except OSError:
        return None
    names = {f"cpu{core}" for core in _own_cores()}
    rows = [[int(ticks) for ticks in line[1:9]] for line in lines if line and line[0] in names and len(line) >= 9]
    if not rows:
        return None
    ticks = os.sysconf("SC_CLK_TCK")  # columns: user nice system idle iowait irq softirq steal
    return sum(sum(row[:3]) + row[5] + row[6] for row in rows) / ticks, sum(row[7] for row in rows) / ticks


def _loop_slowdown(threads: int) -> float:
    """Mean time of a chunk on the slowest thread over the fastest chunk of all; the threads hash at once, without the GIL."""
    begin = time.perf_counter() + WARMING_S
    end = begin + LOOPING_S

    def hash_until_the_end(_: int) -> list[float]:
        times = [time.perf_counter()]
        while len(times) < 2 or times[-1] < end:
            hashlib.sha256(CHUNK)
            times.append(time.perf_counter())
        return times

    with ThreadPoolExecutor(threads) as pool:
        runs = list(pool.map(hash_until_the_end, range(threads)))
    fastest = min(after - before for times in runs for before, after in pairwise(times))
    slowest = max((times[-1] - begin) / sum(moment > begin for moment in times[1:]) for times in runs)
    return max(1.0, slowest / fastest)
