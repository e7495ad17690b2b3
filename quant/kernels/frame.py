"""The frame that all products share: threads claim parts of a weight's rows, multiply them, and finish each output."""

from __future__ import annotations

import math

import numpy
from numba import carray, float32, njit

from quant.compiled.threads import FIRST, claim, finish, pointer

# Places in a job of quant.compiled.threads: addresses (0: none), and sizes.
(X, Y, BIAS, OTHER, THEN, GATHERED, COUNT, CODES, SCALES, ZEROS, VALUES, LOOKUP_PLANES, ROWS, COLUMNS, GROUPS, GROUP_SIZE,
 ROW_BYTES, BITS, DECODER, HEIGHT, FIELDS) = range(FIRST, FIRST + 21)
# THEN: the epilogue of an output; ADD and MULTIPLY take the same element of another vector (OTHER), which may not be Y.
NOTHING, ADD, MULTIPLY, GELU, SILU, EXACT_GELU, RELU = range(7)
# DECODER: codes are equal steps counted from the middle code, or indices into a table of 16 values or of another size.
EQUAL_STEPS, TABLE_OF_16, ANY_TABLE = range(3)

FAST = {"reassoc", "contract", "nsz"}  # sums may be taken in any order


def product_of(prepare, multiply):
    """Make the function that runs a job: y = epilogue(W x + bias) for COUNT rows of activations.

    prepare(job) is called once by every thread; multiply(job, prepared, y, start, end) then writes W x, for the rows of the
    weight from `start` to before `end`, to the same columns of y, float32 [COUNT, ROWS].
    """

    @njit(nogil=True)
    def run(job_pointer):
        job = carray(job_pointer, FIELDS)
        count, rows, height = job[COUNT], job[ROWS], job[HEIGHT]
        y = carray(pointer(job[Y]), (count, rows), numpy.float32)
        bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
        other = carray(pointer(job[OTHER]), (count if job[OTHER] else 0, rows), numpy.float32)
        prepared = prepare(job)
        while True:
            start = claim(job_pointer) * height
            if start >= rows:
                break
            end = min(rows, start + height)
            multiply(job, prepared, y, start, end)
            for i in range(count):
                for row in range(start, end):
                    total = y[i, row]
                    if len(bias):
                        total += bias[row]
                    y[i, row] = epilogue(total, job[THEN], other[i, row] if len(other) else float32(0))
            finish(job_pointer)

    return run


@njit(nogil=True, fastmath=FAST)
def epilogue(product, then, other):  # float32, int64, float32 -> float32
    """Finish one output: add or multiply the other vector's, or apply GELU (by the tanh formula, or exact), SiLU or ReLU."""
    if then == ADD:
        return product + other
    if then == MULTIPLY:
        return product * other
    if then == GELU:  # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
        u = float32(0.7978845608028654) * (product + float32(0.044715) * product * product * product)
        return product / (float32(1) + math.exp(float32(-2) * u))
    if then == SILU:
        return product / (float32(1) + math.exp(-product))
    if then == EXACT_GELU:
        return float32(0.5) * product * (float32(1) + float32(math.erf(product * float32(0.7071067811865476))))
    if then == RELU:
        return max(product, float32(0))
    return product


@njit(nogil=True, fastmath=FAST)
def dot(a, b):  # float32 [columns], float32 [columns] -> float32
    total = float32(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@njit(nogil=True, fastmath=FAST)
def group_sums(x, groups):  # float32 [columns] -> float32 [groups]
    """Sum each group of x, to be multiplied by the group's zero."""
    sums, size = numpy.empty(groups, numpy.float32), len(x) // max(groups, 1)
    for group in range(groups):
        total = float32(0)
        for j in range(group * size, (group + 1) * size):
            total += x[j]
        sums[group] = total
    return sums


@njit(nogil=True)
def scales_and_zeros(job):
    """float32 [ROWS, GROUPS] each, zeros with no row where there are none."""
    rows, groups = job[ROWS], job[GROUPS]
    return (carray(pointer(job[SCALES]), (rows, groups), numpy.float32),
            carray(pointer(job[ZEROS]), (rows if job[ZEROS] else 0, groups), numpy.float32))
