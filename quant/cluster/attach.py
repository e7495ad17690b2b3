"""The cluster that RAY_ADDRESS names. ray is imported nowhere else, and only where that variable is set.

Environment variables say where work is done, as parameters say what: QUANT_CPUS (cores of a task, 1), QUANT_GPUS (0), and
QUANT_PARTS (tasks of one evaluation, 1).
"""

from __future__ import annotations

import os
import socket
import sys
from types import ModuleType

from quant.errors import InputError, first_line

RETRIES = 5  # of a task whose process or machine died; an error of its own ends it at once
CONNECT_S = 10.0


def attached() -> ModuleType:
    """The module ray, connected. Raises InputError where it is not installed, nothing answers, or versions differ."""
    address = os.environ["RAY_ADDRESS"]
    _require_answer(address)
    try:
        import ray

        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except ImportError:
        raise InputError(f"RAY_ADDRESS is {address}, but ray is not installed here; make cluster installs it, or unset "
                         "RAY_ADDRESS to work on this machine") from None
    except (ConnectionError, RuntimeError, ValueError) as error:  # not a cluster; another Python or Ray
        raise InputError(f"RAY_ADDRESS is {address}, but {first_line(error)}; unset it to work on this machine") from None
    return ray


def _require_answer(address: str) -> None:
    """Raise InputError at once where ray would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"RAY_ADDRESS is {address!r}; expected HOST:PORT, such as head:6379")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"RAY_ADDRESS is {address}, but nothing answers there ({first_line(error)}); start the cluster, or "
                         "unset RAY_ADDRESS to work on this machine") from None


def inside() -> ModuleType | None:
    """The module ray in a process that is part of a cluster; None everywhere else."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def task_options() -> dict:
    """What a task takes of its machine; its threads follow its cores. Raises InputError for what is no number."""
    return {"num_cpus": number("QUANT_CPUS", 1), "num_gpus": number("QUANT_GPUS", 0), "max_retries": RETRIES}


def number(name: str, default: int) -> int:
    """A whole number from the environment. Raises InputError for anything else."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}; expected a whole number")
    return int(text)
