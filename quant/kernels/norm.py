"""LayerNorm and RMSNorm of one vector, or of some of the same width, as a job of a program (quant.compiled.threads)."""

from __future__ import annotations

import math

import numpy
from numba import carray, float32, njit

from quant.compiled.threads import FIRST, PARTS, claim, compiled_loop, finish, pointer

# Places in a job: addresses of float32 numbers (BIAS: 0 for none; X and Y may be equal), the width, CENTERED: 1 for LayerNorm, 0
# for RMSNorm, and COUNT: number of vectors, one after another.
X, Y, WEIGHT, BIAS, EPSILON, WIDTH, CENTERED, COUNT, FIELDS = range(FIRST, FIRST + 9)
_FAST = {"reassoc", "contract", "nsz"}


@njit(nogil=True, fastmath=_FAST)
def _normalize(x, weight, bias, epsilon, centered, y):  # x, weight, y: float32 [width]; bias: float32 [width] or [0]
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


@compiled_loop
def _normalize_vector(job_pointer):
    job = carray(job_pointer, FIELDS)
    width, count, parts = job[WIDTH], job[COUNT], job[PARTS]
    x, y = (carray(pointer(job[X]), (count, width), numpy.float32), carray(pointer(job[Y]), (count, width), numpy.float32))
    weight = carray(pointer(job[WEIGHT]), width, numpy.float32)
    bias = carray(pointer(job[BIAS]), width if job[BIAS] else 0, numpy.float32)
    epsilon = carray(pointer(job[EPSILON]), 1, numpy.float32)[0]
    while True:
        part = claim(job_pointer)
        if part >= parts:
            break
        for i in range(count * part // parts, count * (part + 1) // parts):
            _normalize(x[i], weight, bias, epsilon, job[CENTERED], y[i])
        finish(job_pointer)


NORMALIZE = _normalize_vector.address
