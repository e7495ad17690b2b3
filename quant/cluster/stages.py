"""One stage's body as a task of a Ray cluster, which starts it again elsewhere if its process or machine dies.

All machines see the project's folder and its environment under the same path, as on a SLURM cluster. A task gets names alone and
works in that folder; what it prints goes to a file there, which this process passes on while it waits.
"""

from __future__ import annotations

import os
import runpy
import secrets
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from socket import gethostname

from quant.cluster.attach import attached, task_options
from quant.errors import InputError, first_line

# Stages that are worth a task. The others are quick, need the network, or measure time, which needs a machine alone
REMOTE = frozenset({"prepare", "quantize", "evaluate", "sensitivity", "relative"})
LOGS = Path(".dvc/tmp/cluster")
OUTPUTS = ("models", "models/prepared", "data", "reports", "reports/quality", "reports/studies")
GIVEN = ("DVC_", "HF_", "QUANT_")  # how the names of environment variables begin that travel
POLL_S = 0.2


def run_remotely(stage: str, arguments: list[str]) -> int:
    """Run a stage on a machine of the cluster -> its exit status.

    Raises InputError where the cluster can't be used, or lost the task more often than it tries again.
    """
    ray, folder = attached(), Path.cwd()
    given = {name: value for name, value in os.environ.items() if name.startswith(GIVEN)}
    with _log(stage) as log:
        body = ray.remote(**task_options(), max_calls=1, name=stage)(_body)
        running = body.remote(str(folder), stage, arguments, given, str(folder / log), code_of(folder))
        try:
            lines = _lines(log)
            while not ray.wait([running], timeout=POLL_S)[0]:
                _pass_on(lines)
            status = ray.get(running)
            _pass_on(lines)
        except ray.exceptions.RayError as error:
            raise InputError(f"the cluster at {os.environ['RAY_ADDRESS']} could not end the task ({first_line(error)}); run the "
                             "same command again: what other stages made is kept") from None
    if isinstance(status, str):
        raise InputError(status)
    for path in OUTPUTS:  # a network's file system looks again, where it kept in mind that there is no such file
        if (folder / path).is_dir():
            os.listdir(folder / path)  # noqa: PTH208 - Path.iterdir is lazy
    return status


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
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    print(f"{MACHINE}{gethostname()}")
    sys.argv = [str(Path(folder, "stages", f"{stage}.py")), *arguments]
    sys.path.insert(0, folder)
    try:
        runpy.run_module(f"stages.{stage}", run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - told by its traceback, as by a process that ends
        traceback.print_exc()
        return 1
    return 0


MACHINE = "\x1emachine "  # begins the line with which a task names its machine


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


def _lines(log: Path) -> Iterator[str | None]:
    """Lines of a growing file, each behind the name of the machine that wrote it; None where there is no more for now."""
    machine, rest = "", ""
    with open(log, encoding="utf-8", errors="replace") as file:
        while True:
            *whole, rest = (rest + file.read()).split("\n")
            for line in whole:
                if line.startswith(MACHINE):
                    machine = line.removeprefix(MACHINE)
                else:
                    yield f"[{machine}] {line}" if not line.startswith("error: ") else line
            yield None


def _pass_on(lines: Iterator[str | None]) -> None:
    while (line := next(lines)) is not None:
        print(line, file=sys.stderr if line.startswith("error: ") else sys.stdout, flush=True)
