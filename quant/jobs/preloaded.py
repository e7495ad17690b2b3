"""Stages in a fork of a process that has their libraries in memory: a new Python takes three seconds to import them.

Only libraries are imported here, once, by the process that forks. The project's own modules are read anew in every fork, so that
a stage runs the code that DVC found when the stage began.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from quant.command import quiet_libraries, status_of
from quant.jobs.processes import SIGNALS

LIBRARIES = ("torch", "transformers.modeling_layers", "transformers.modeling_utils", "transformers.generation", "numba",
             "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto")
# How the names of stages begin that are forked. Not those that keep all cores beside others, prepare and quantize: their threads
# must sleep while they wait (OMP_WAIT_POLICY, read when torch is imported), and those of a benchmark must not.
USERS = ("evaluate", "sensitivity", "relative", "benchmark")
OURS = ("quant", "stages")
COMMAND = re.compile(r"python -m stages\.(\w+)((?: [\w.@-]+)*)")


def is_forked(stage: str) -> bool:
    """Whether a stage, by its name, is begun in a fork with the libraries."""
    return stage.startswith(USERS)


def load() -> None:
    """Import the libraries, on Linux: elsewhere a fork of a process that has imported torch is not safe.

    No thread of OpenMP may be running afterwards: a fork would wait for it in vain.
    """
    if sys.platform != "linux":
        return
    quiet_libraries()  # read when they are imported
    gc.disable()  # three seconds with Python's default thresholds, two without
    try:
        for name in LIBRARIES:
            with suppress(ImportError):  # the stage tells of it
                importlib.import_module(name)
    finally:
        gc.enable()
        gc.freeze()  # so that collections in a fork do not copy these pages


def run_command(ordinarily: Callable, executable: str | None, command: str, **given) -> None:
    """Run a stage's command in a fork, if it is one of the project's and the libraries are loaded; else `ordinarily`, DVC's way.

    given: cwd, env and what else a subprocess takes. Raises DVC's StageCmdFailedError if the command fails.
    """
    matched = COMMAND.fullmatch(command)
    if not matched or not is_forked(matched[1]) or "torch" not in sys.modules:
        ordinarily(executable, command, **given)
        return
    from dvc.stage.exceptions import StageCmdFailedError

    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(matched[1], matched[2].split(), given["cwd"], given["env"])
    _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise StageCmdFailedError(command, code)


def _become(stage: str, arguments: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    """The forked process: run the stage as `python -m` does, and end."""
    status = 1
    try:
        atexit._clear()  # what the process that forked wants to do at its own end
        _close_files()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _forget_ours()
        sys.path[0] = str(Path(folder).resolve())
        sys.argv = [stage, *arguments]
        if threads := environment.get("OMP_NUM_THREADS", ""):  # OpenMP read it when torch was imported
            import torch

            torch.set_num_threads(int(threads))
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = status_of(end)
    except BaseException:  # noqa: BLE001 - told by its traceback, as by a process that ends
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _close_files() -> None:
    """Close all but input, output and errors, as a subprocess of DVC's does."""
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) > 2:
            with suppress(OSError):  # that of the listing is closed
                os.close(int(path.name))


def _forget_ours() -> None:
    """So that the project's modules are imported as they are now."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
