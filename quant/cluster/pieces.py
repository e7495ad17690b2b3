"""Pieces of one stage's work, on machines of the cluster where the stage runs on one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from quant.cluster.attach import inside, lost, number, task_options
from quant.errors import InputError
from quant.progress import progress


def over_machines(function: Callable, pieces: Sequence) -> list:
    """[function(piece) for piece in pieces]; on a cluster, a task for each piece, and a task that died is done again.

    What a piece computes must depend on the piece alone, never on the number of machines. It may write whole files, under names
    of their own until they are complete: an attempt that was given up can still be alive.
    Raises InputError as the function does, and where the cluster lost a piece more often than it tries again.
    """
    ray = inside()
    if ray is None or len(pieces) < 2:
        return [function(piece) for piece in pieces]
    task = ray.remote(**task_options(), name="piece")(_call)
    waiting = running = [task.remote(str(Path.cwd()), function, piece) for piece in pieces]
    try:
        for _ in progress(pieces, "pieces"):  # one bar for all: those of the pieces are on other machines
            (ended,), waiting = ray.wait(waiting)
            ray.get(ended)
        return ray.get(running)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise InputError(lost(error)) from None
    finally:
        for one in waiting:  # after an error
            ray.cancel(one, force=True)


def parts_of_work() -> int:
    """Parts of one evaluation: QUANT_PARTS where this process is part of a cluster, else 1."""
    return max(1, number("QUANT_PARTS", 1)) if inside() else 1


def _call(folder: str, function: Callable, piece):
    os.chdir(folder)
    return function(piece)
