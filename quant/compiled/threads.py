"""Compiled loops on torch's own threads.

Idle threads spin for a while before they sleep, so two thread pools on the same cores slow each other down: with numba's pool
beside torch's, decoding a token took up to twice the time. So there is no second pool here: a loop compiled by numba becomes a C
function, and the OpenMP library that torch has loaded (GNU's, on Linux) runs it on every thread of torch's team.
Without such a library in the process, the calling thread runs the whole loop.

A loop gets a job: an array of int64 with sizes and the addresses of its inputs and outputs. Free threads claim the job's parts
one by one (`claim`), so that a core which is busy elsewhere delays no other.

Jobs that need each other's results form a program: the team is called once, and every thread moves to the next job when all
parts of the current one are finished. Only unfinished parts are waited for: a thread that wakes late joins at the current job.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy
import torch
from llvmlite import ir
from numba import carray, cfunc, types
from numba.core.bytecode import FunctionIdentity
from numba.extending import intrinsic

from quant.compiled.lanes import LANES

LOOP = types.void(types.CPointer(types.int64))  # signature of a compiled loop
SIZE = 40  # numbers in a job: whole cache lines
NEXT = 0  # parts claimed so far
DONE = 1  # parts finished so far
PARTS = 2  # in a program's jobs: number of parts
WORK = 3  # in a program's jobs: address of the loop
FIRST = 4  # first place that each loop defines for itself
JOBS = 2  # in a program's head: number of jobs that follow
PAUSE = 3  # in a program's head: address of the function that yields the core
SPINS = 10_000  # checks before a waiting thread yields its core

Job = ctypes.c_int64 * SIZE

_process = ctypes.CDLL(None)
_parallel = getattr(_process, "GOMP_parallel", None)
if _parallel:
    _parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    _parallel.restype = None


@cache
def digest_of(*folders: Path) -> str:
    """Short hash of some folders' Python sources."""
    sources = (path.read_bytes() for folder in folders for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


def compiled_loop(function: Callable):
    """Compile a loop, or load it from disk if no file of its folder or of this one has changed since; `run` takes its `address`.

    numba recompiles a cached function when its own file changes, but not when a file whose functions it inlines does. So the
    name in the cache includes a hash of all files of its folder, and of the folders around it, and the number of floats in a
    vector. (numba itself adds the processor.)
    """
    here = Path(__file__).parent
    own, *around = Path(function.__code__.co_filename).parents
    sources = digest_of(here, own, *(folder for folder in around if here.parent in folder.parents))
    function.__qualname__ += f"_{sources}_{LANES}"
    _number_functions_from(f"{function.__module__}.{function.__qualname__}")
    return cfunc(LOOP, cache=True)(function)


def _number_functions_from(name: str) -> None:
    """Let numba number the functions that it compiles next from a number of this name's own.

    numba names a function's machine code by the function's name, its arguments and a number that is counted anew in each process.
    A loop from the cache brings its functions along. Where another process counted otherwise, one of them could have the name of
    a function compiled here that was made in the same place, such as for another width of codes, and be called instead.
    """
    FunctionIdentity._unique_ids = itertools.count(int(hashlib.sha256(name.encode()).hexdigest()[:12], 16))


def run(loop: int, job: ctypes.Array | int) -> None:
    """Run a compiled loop, given by its address, until all parts of a job are finished, on as many threads as torch uses now.

    job: it, or its address. It runs once: its counters of parts are not reset.
    """
    if _parallel:
        _parallel(loop, job, torch.get_num_threads(), 0)
    else:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loop)(job if isinstance(job, int) else ctypes.addressof(job))


def program_of(jobs: list[ctypes.Array]) -> bytes:
    """Join jobs, each with PARTS and WORK set, into one array of int64, in order. `perform` needs a fresh copy for each run."""
    pause = ctypes.cast(_process.sched_yield, ctypes.c_void_p).value
    return bytes(Job(0, 0, len(jobs), pause)) + b"".join(bytes(job) for job in jobs)


def perform(program: numpy.ndarray) -> None:
    """Run a copy of a program, int64 [n], in whose jobs all addresses are filled in."""
    run(_PERFORM, program.ctypes.data)


_I64 = ir.IntType(64)


@intrinsic
def pointer(typing, address):
    """Turn an int64 address into a pointer, for numba.carray."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


def _add_one(builder, job, place: int, ordering: str) -> ir.Value:
    counter = builder.gep(builder.bitcast(job, _I64.as_pointer()), [ir.Constant(_I64, place)])
    return builder.atomic_rmw("add", counter, ir.Constant(_I64, 1), ordering)


@intrinsic
def claim(typing, job):
    """Atomically claim the next part of a job; returns its number, PARTS or more when none is left."""

    def generate(context, builder, signature, arguments):
        return _add_one(builder, arguments[0], NEXT, "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def finish(typing, job):
    """Atomically count a part as finished; a thread that sees the count sees what was written before it."""

    def generate(context, builder, signature, arguments):
        return _add_one(builder, arguments[0], DONE, "acq_rel")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def _count_finished(typing, job):
    def generate(context, builder, signature, arguments):
        counter = builder.gep(builder.bitcast(arguments[0], _I64.as_pointer()), [ir.Constant(_I64, DONE)])
        return builder.load_atomic(counter, "acquire", 8)

    return types.int64(types.voidptr), generate


@intrinsic
def _call(typing, function, job):
    """Call a compiled loop by its address."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.voidptr), generate


@intrinsic
def _pause(typing, function):
    """Call sched_yield by its address."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _address(typing, job):
    def generate(context, builder, signature, arguments):
        return builder.ptrtoint(arguments[0], _I64)

    return types.int64(types.CPointer(types.int64)), generate


@compiled_loop
def _perform(program_pointer):
    program = carray(program_pointer, SIZE)
    for step in range(1, program[JOBS] + 1):
        job_address = _address(program_pointer) + 8 * SIZE * step
        job = carray(pointer(job_address), SIZE, types.int64)
        if job[NEXT] < job[PARTS]:
            _call(job[WORK], pointer(job_address))
        spins = 0
        while _count_finished(pointer(job_address)) < job[PARTS]:
            spins += 1
            if spins > SPINS:
                _pause(program[PAUSE])


_PERFORM = _perform.address
