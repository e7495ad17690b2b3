"""The cluster that RAY_ADDRESS names. ray is imported nowhere else, and only where that variable is set.

Environment variables say where work is done, as parameters say what: QUANT_CPUS (cores of a task, 1), QUANT_GPUS (0), and
QUANT_PARTS (tasks of one evaluation or calibrated pass, 1).
"""

from __future__ import annotations

import os
import socket
import sys
from types import ModuleType

from quant.errors import InputError, first_line, printable

RETRIES = 5  # of a task whose process or machine died; an error of its own ends it at once
OUT_OF_MEMORY = {"RAY_task_oom_retries": "1"}  # Ray's own setting: of a task that lacked memory; else it tries without end
CONNECT_S = 10.0


def attached() -> ModuleType:
    """The module ray, connected. Raises InputError where it is not installed, nothing answers, or versions differ."""
    address = os.environ["RAY_ADDRESS"]
    _require_answer(address)
    os.environ.update(OUT_OF_MEMORY)  # read when ray is imported, here and in the processes of tasks, which have tasks too
    try:
        import ray

        ray.init(address=address, logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": OUT_OF_MEMORY})
    except ImportError:
        raise InputError(f"RAY_ADDRESS is {address}, but ray is not installed here; make cluster installs it, or unset "
                         "RAY_ADDRESS to work on this machine") from None
    except (ConnectionError, RuntimeError, ValueError) as error:  # not a cluster; another Python or Ray
        raise InputError(f"RAY_ADDRESS is {address}, but {printable(error)}; unset it to work on this machine") from None
    return ray


def _require_answer(address: str) -> None:
    """Raise InputError at once where ray would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"RAY_ADDRESS is {address!r}; expected HOST:PORT, such as head:6379")
    if why := silence_of(address):
        raise InputError(f"RAY_ADDRESS is {address}, but nothing answers there ({why}); start the cluster, or unset RAY_ADDRESS "
                         "to work on this machine")


def silence_of(address: str) -> str | None:
    """Why nothing answers at HOST:PORT; None where something does."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        return first_line(error)
    return None


def inside() -> ModuleType | None:
    """The module ray in a process that is part of a cluster; None everywhere else."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def task_options() -> dict:
    """What a task takes of its machine; its threads follow its cores. Raises InputError for what is no number.

    Tasks are spread, so that each has much of a machine, and one that is tried again is on another if it can be.
    """
    return {"num_cpus": number("QUANT_CPUS", 1), "num_gpus": number("QUANT_GPUS", 0), "max_retries": RETRIES,
            "scheduling_strategy": "SPREAD"}


def number(name: str, default: int) -> int:
    """A whole number from the environment. Raises InputError for anything else."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}; expected a whole number")
    return int(text)


def lost(error: Exception) -> str:
    """What is told of a task that the cluster could not end."""
    why = first_line(error)
    if type(error).__name__ == "OutOfMemoryError":
        return (f"a task had too little memory, twice ({why}); let fewer tasks share a machine, with more QUANT_CPUS for each, "
                "or take machines with more memory")
    return f"the cluster could not end a task ({why}); run the same command again: what other stages made is kept"
