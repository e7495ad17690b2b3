"""LayerNorm and RMSNorm of one vector, as a job within a program (quant.kernels.threads)."""

from __future__ import annotations

import math

import numpy
from numba import carray, cfunc, float32, njit

from quant.kernels.threads import FIRST, LOOP, done, pointer, take

# Places in a job: addresses, of which BIAS may be 0, and sizes. EPSILON: of a float32. CENTERED: 1 for LayerNorm.
X, Y, WEIGHT, BIAS, EPSILON, WIDTH, CENTERED, FIELDS = range(FIRST, FIRST + 8)
_FAST = {"reassoc", "contract", "nsz"}


@njit(nogil=True, fastmath=_FAST)
def _normalize(x, weight, bias, epsilon, centered, y):
    mean, square = float32(0), float32(0)
    if centered:
        for i in range(len(x)):
            mean += x[i]
        mean /= float32(len(x))
    for i in range(len(x)):
        square += (x[i] - mean) * (x[i] - mean)
    factor = float32(1) / math.sqrt(square / float32(len(x)) + epsilon)
    for i in range(len(x)):
        y[i] = (x[i] - mean) * factor * weight[i]
    for i in range(len(bias)):
        y[i] += bias[i]


@cfunc(LOOP, cache=True)
def _normalized(job_pointer):
    job = carray(job_pointer, FIELDS)
    if take(job_pointer) == 0:
        width = job[WIDTH]
        _normalize(
            carray(pointer(job[X]), width, numpy.float32),
            carray(pointer(job[WEIGHT]), width, numpy.float32),
            carray(pointer(job[BIAS]), width if job[BIAS] else 0, numpy.float32),
            carray(pointer(job[EPSILON]), 1, numpy.float32)[0],
            job[CENTERED],
            carray(pointer(job[Y]), width, numpy.float32),
        )
        done(job_pointer)


NORMALIZED = _normalized.address
