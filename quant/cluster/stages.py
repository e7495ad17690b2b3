"""One stage's body as a task of a Ray cluster, which starts it again elsewhere if its process or machine dies.

All machines see the project's folder and its environment under the same path, as on a SLURM cluster. A task gets names alone and
works in that folder; what it prints goes to a file there, which this process passes on while it waits.
"""

from __future__ import annotations

import os
import runpy
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from socket import gethostname
from typing import TextIO

from quant.cluster.attach import attached, lost, silence_of, task_options
from quant.command import status_of
from quant.errors import InputError

# Stages that are worth a task. The others are quick, need the network, or measure time, which needs a machine alone
REMOTE = frozenset({"prepare", "quantize", "evaluate", "sensitivity", "relative"})
LOGS = Path(".dvc/tmp/cluster")
OUTPUTS = ("models", "models/prepared", "data", "reports", "reports/quality", "reports/studies")
GIVEN = ("DVC_", "HF_", "QUANT_")  # how the names of environment variables begin that travel
POLL_S = 0.2
HEAD_S = 3.0  # between two looks whether the head is there
MACHINE = "\x1emachine "  # begins the line with which a task names its machine
TERMINAL = "QUANT_TERMINAL"  # is set where a bar can be drawn


def run_remotely(stage: str, arguments: list[str]) -> int:
    """Run a stage on a machine of the cluster -> its exit status.

    Raises InputError where the cluster can't be used, or lost the task more often than it tries again.
    """
    ray, folder = attached(), Path.cwd()
    given = {name: value for name, value in os.environ.items() if name.startswith(GIVEN)}
    if sys.stderr.isatty():
        given[TERMINAL] = "1"
    with _log(stage) as log:
        body = ray.remote(**task_options(), max_calls=1, name=stage)(_body)
        running = body.remote(str(folder), stage, arguments, given, str(folder / log), code_of(folder))
        try:
            with open(log, encoding="utf-8", errors="replace", newline="\n") as file:  # a bar returns with \r
                output = _Output(file)
                looked = time.monotonic()
                with _interrupts_noted() as noted:
                    while not ray.wait([running], timeout=POLL_S)[0]:
                        output.pass_on()
                        if noted:
                            raise KeyboardInterrupt
                        if time.monotonic() - looked > HEAD_S:
                            _require_head(stage, arguments)
                            looked = time.monotonic()
                status = ray.get(running)
                output.pass_on()
        except ray.exceptions.RayError as error:
            raise InputError(f"{os.environ['RAY_ADDRESS']}: {lost(error)}") from None
    if isinstance(status, str):
        raise InputError(status)
    for path in OUTPUTS:  # a network's file system looks again, where it kept in mind that there is no such file
        if (folder / path).is_dir():
            os.listdir(folder / path)  # noqa: PTH208 - Path.iterdir is lazy
    return status


@contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Ctrl-C fills a list instead of raising KeyboardInterrupt, which is lost where ray's own code can't pass it on."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _require_head(stage: str, arguments: list[str]) -> None:
    """End this process with a line, if the cluster's head does not answer any more, twice. ray would try for a minute, and then
    end it with lines of its own; leaving it as usual waits for the head too."""
    address = os.environ["RAY_ADDRESS"]
    if silence_of(address) and not time.sleep(HEAD_S) and (why := silence_of(address)):
        print(f"error: {' '.join([stage, *arguments])}: the head of the cluster at {address} does not answer any more ({why}); "
              "start it and run the same command again: what other stages made is kept", file=sys.stderr, flush=True)
        os._exit(1)


def code_of(folder: Path) -> str:
    """A digest of the project's code: two machines with the same run the same."""
    digest = sha256()
    for name in ("quant", "stages"):
        for path in sorted((folder / name).rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _body(folder: str, stage: str, arguments: list[str], given: dict[str, str], log: str, code: str) -> int | str:
    """In a process of its own, on any machine: the stage's exit status, or what is wrong with the machine."""
    if not Path(log).is_file():
        return (f"{gethostname()} does not see {folder} as the machine that runs DVC does; the machines of a cluster need one "
                "folder on a shared file system, under the same path")
    os.chdir(folder)
    if code_of(Path(folder)) != code:
        return f"{gethostname()} has other code in {folder}/quant; bring all machines to the same commit"
    os.environ.update(given)
    os.environ.pop("RAY_ADDRESS", None)  # the stage is there already
    sys.argv = [str(Path(folder, "stages", f"{stage}.py")), *arguments]
    is_again = Path(log).stat().st_size > 0
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    if TERMINAL in given:
        sys.stderr.isatty = lambda: True  # so that the bar is drawn, which the machine of DVC shows
    print(f"{MACHINE}{gethostname()}")
    if is_again:
        print("begins again: the process or machine that ran it before is gone")
        _free_locks()
    sys.path.insert(0, folder)
    try:
        runpy.run_module(f"stages.{stage}", run_name="__main__")
    except SystemExit as end:
        return status_of(end)
    except BaseException:  # noqa: BLE001 - told by its traceback, as by a process that ends
        traceback.print_exc()
        return 1
    return 0


def _free_locks() -> None:
    """Remove the lock of a folder that an attempt before this one holds: it may never end, and what it writes is thrown away."""
    for lock in (one for path in OUTPUTS for one in Path(path).glob(".*.lock")):
        with suppress(OSError):
            if lock.read_text(encoding="utf-8", errors="replace").endswith(f"({' '.join(sys.argv)})"):
                lock.unlink()


@contextmanager
def _log(stage: str) -> Iterator[Path]:
    """An empty file for what a task prints."""
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"{stage}-{secrets.token_hex(6)}.log"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class _Output:
    """Passes on what a task writes to a file: lines behind the name of its machine, and, on a terminal, its bar."""

    def __init__(self, file: TextIO):
        self._file, self._machine, self._rest, self._bar = file, "", "", ""

    def pass_on(self) -> None:
        *whole, self._rest = (self._rest + self._file.read()).split("\n")
        for line in (one.rpartition("\r")[2] for one in whole):
            if line.startswith(MACHINE):
                self._machine = line.removeprefix(MACHINE)
                continue
            self._draw("")
            is_error = line.startswith("error: ")
            print(line if is_error else f"[{self._machine}] {line}", file=sys.stderr if is_error else sys.stdout, flush=True)
        if "\r" in self._rest:
            self._draw(self._rest.rpartition("\r")[2].rstrip())

    def _draw(self, bar: str) -> None:
        """Put a bar in the place of the one before; "" = none."""
        if bar != self._bar:
            print(f"\r\x1b[K[{self._machine}] {bar}" if bar else "\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._bar = bar
