"""Pieces of one stage's work, on machines of the cluster where the stage runs on one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

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
            _result(ray, ended)
        return [_result(ray, one) for one in running]
    finally:
        for one in waiting:  # after an error
            ray.cancel(one, force=True)


def in_turn(function: Callable, pieces: Iterable) -> Iterator:
    """function(piece) of each piece, one after the other, in their order; on a cluster, up to QUANT_PARTS of them at a time.

    As for `over_machines`; what the function holds, such as a part of a model, is sent once.
    """
    ray, most = inside(), parts_of_work()
    if ray is None or most < 2:
        yield from map(function, pieces)
        return
    task, held, folder = ray.remote(**task_options(), name="piece")(_call), ray.put(function), str(Path.cwd())
    running: deque = deque()
    try:
        for piece in pieces:
            running.append(task.remote(folder, held, piece))
            if len(running) == most:
                yield _result(ray, running.popleft())
        while running:
            yield _result(ray, running.popleft())
    finally:
        for one in running:  # after an error
            ray.cancel(one, force=True)


def _result(ray: ModuleType, task):
    """What a task returns. Raises InputError as its function does, and where the cluster could not end it."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise InputError(lost(error)) from None


def parts_of_work() -> int:
    """Parts of an evaluation, or of a calibrated pass: QUANT_PARTS where this process is part of a cluster, else 1."""
    return max(1, number("QUANT_PARTS", 1)) if inside() else 1


def _call(folder: str, function: Callable, piece):
    os.chdir(folder)
    return function(piece)
