"""Compiled loops on torch's own threads.

Threads that wait for work spin for a while, so two pools on the same cores take turns in stealing them: with numba's pool
beside torch's a decoded token took up to twice the time. So no second pool here: a loop compiled by numba becomes a C
function, and the OpenMP library that torch has loaded (GNU's, on Linux) runs it on every thread of torch's team.
Where the process has no such library, the calling thread does it all.

A loop takes a job, an array of int64 that holds sizes and the addresses of what it reads and writes. Its parts are taken
one by one by whoever is free (`take`), so that a core which is busy elsewhere delays nobody.

Jobs that need each other's results are a program: the team is called once, and everybody goes on to the next job when all
parts of this one are done. That waits for work, not for threads: one that wakes late finds the program where it is.
"""

from __future__ import annotations

import ctypes

import torch
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic

LOOP = types.void(types.CPointer(types.int64))  # signature of a compiled loop
SIZE, FIRST = 26, 4  # numbers of a job, and the first that its loop gives a meaning
NEXT, DONE, PARTS, WORK = range(FIRST)  # the others: parts taken, parts done; of a program's jobs, parts, and the loop's address
STEPS, REST = 2, 3  # of a program, which begins as a job does: how many jobs follow, and the address of a pause to wait with
PATIENCE = 10_000  # times that a thread looks whether all is done before it lets others have its core

Job = ctypes.c_int64 * SIZE

_process = ctypes.CDLL(None)
_parallel = getattr(_process, "GOMP_parallel", None)
if _parallel:
    _parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    _parallel.restype = None


def run(loop: int, job: ctypes.Array) -> None:
    """Run the compiled loop at an address (of numba.cfunc of LOOP) over a job, which is used up, until all parts are done.

    On as many threads as torch uses now.
    """
    if _parallel:
        _parallel(loop, job, torch.get_num_threads(), 0)
    else:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loop)(ctypes.addressof(job))


def program_of(jobs: list[ctypes.Array]) -> bytes:
    """Jobs in their order, each with its PARTS and WORK, as one array that `perform` takes a copy of."""
    rest = ctypes.cast(_process.sched_yield, ctypes.c_void_p).value
    return bytes(Job(0, 0, len(jobs), rest)) + b"".join(bytes(job) for job in jobs)


def perform(program: ctypes.Array) -> None:
    """Run a copy of a program, whose jobs have their addresses filled in."""
    run(_PERFORM, program)


_I64 = ir.IntType(64)


@intrinsic
def pointer(typing, address):
    """An int64 address as a pointer, for numba.carray."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


def _add_one(builder, job, place: int, ordering: str) -> ir.Value:
    counter = builder.gep(builder.bitcast(job, _I64.as_pointer()), [ir.Constant(_I64, place)])
    return builder.atomic_rmw("add", counter, ir.Constant(_I64, 1), ordering)


@intrinsic
def take(typing, job):
    """The number of a part that nobody else has taken."""

    def generate(context, builder, signature, arguments):
        return _add_one(builder, arguments[0], NEXT, "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def done(typing, job):
    """Tell that a part is done; what was written before is seen by whoever sees it."""

    def generate(context, builder, signature, arguments):
        return _add_one(builder, arguments[0], DONE, "acq_rel")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def _count_done(typing, job):
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


@cfunc(LOOP, cache=True)
def _perform(program_pointer):
    program = carray(program_pointer, SIZE)
    for step in range(1, program[STEPS] + 1):
        job_address = _address(program_pointer) + 8 * SIZE * step
        job = carray(pointer(job_address), SIZE, types.int64)
        if job[NEXT] < job[PARTS]:
            _call(job[WORK], pointer(job_address))
        looks = 0
        while _count_done(pointer(job_address)) < job[PARTS]:
            looks += 1
            if looks > PATIENCE:
                _pause(program[REST])


_PERFORM = _perform.address
