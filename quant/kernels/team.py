"""Compiled loops on torch's own threads.

Threads that wait for work spin for a while, so two pools on the same cores take turns in stealing them: with numba's pool
beside torch's a decoded token took up to twice the time. So no second pool here: a loop compiled by numba becomes a C
function, and the OpenMP library that torch has loaded (GNU's, on Linux) runs it on every thread of torch's team.
Where the process has no such library, the calling thread does it all.

A loop takes a job, an array of int64 that holds sizes and the addresses of what it reads and writes. Its parts are taken
one by one by whoever is free (`take`), so that a core which is busy elsewhere delays nobody.
"""

from __future__ import annotations

import ctypes

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LOOP = types.void(types.CPointer(types.int64))  # signature of a compiled loop

_parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
if _parallel:
    _parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    _parallel.restype = None


Job = ctypes.c_int64 * 24  # its first number counts the parts taken; the others are what its loop asks for


def run(loop: int, job: Job) -> None:
    """Run the compiled loop at an address (of numba.cfunc of LOOP) over a job, which is used up, until all parts are done.

    On as many threads as torch uses now.
    """
    if _parallel:
        _parallel(loop, job, torch.get_num_threads(), 0)
    else:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loop)(ctypes.addressof(job))


@intrinsic
def pointer(typing, address):
    """An int64 address as a pointer, for numba.carray."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def take(typing, job):
    """The number of a part that nobody else has taken: adds one to the job's first number, atomically."""

    def generate(context, builder, signature, arguments):
        counter = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate
