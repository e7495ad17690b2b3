"""The frame that all products share: threads claim parts of a weight's rows, multiply them, and finish each output."""

from __future__ import annotations

import math

import numpy
from numba import carray, float32, njit

from quant.compiled.threads import FIRST, claim, finish, pointer
from quant.kernels.exponential import exp

# Places in a job of quant.compiled.threads: addresses (0: none), and sizes.
(X, Y, BIAS, OTHER, THEN, GATHERED, COUNT, CODES, SCALES, ZEROS, VALUES, LOOKUP_PLANES, ROWS, COLUMNS, GROUPS, GROUP_SIZE,
 ROW_BYTES, BITS, DECODER, HEIGHT, BYTES_OF_CODES, FACTOR, MIDDLE, PREPARED, BETWEEN, FIELDS) = range(FIRST, FIRST + 26)
# PREPARED, BETWEEN: of quant.kernels.bands; the address of activations in the order of its products, or 0; and rows between a
# part and the one that the same thread probably takes next. BYTES_OF_CODES, FACTOR, MIDDLE: of its products in 8 bits; addresses
# of uint8 [16], or 0 for equal steps, and of float32 [1]; the byte that stands for 0.
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
                _finish_outputs(y[i, start:end], bias[start:end], job[THEN], other[i, start:end] if len(other) else bias[:0])
            finish(job_pointer)

    return run


@njit(nogil=True, fastmath=FAST, error_model="numpy")  # a check of each divisor would forbid vectors
def gelu(x):  # float32 -> float32, by the tanh formula: 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
    u = float32(0.7978845608028654) * (x + float32(0.044715) * x * x * x)
    return x / (float32(1) + exp(float32(-2) * u))


@njit(nogil=True, fastmath=FAST, error_model="numpy")
def silu(x):  # float32 -> float32
    return x / (float32(1) + exp(-x))


@njit(nogil=True, fastmath=FAST, error_model="numpy")
def exact_gelu(x):  # float32 -> float32
    return float32(0.5) * x * (float32(1) + float32(math.erf(x * float32(0.7071067811865476))))


@njit(nogil=True, fastmath=FAST, error_model="numpy")
def _finish_outputs(y, bias, then, other):  # float32 [n], [n] or [0], int64, [n] or [0]
    """Add the bias and apply the epilogue, in place; each has a loop of its own, so that it takes vectors."""
    for j in range(len(bias)):
        y[j] += bias[j]
    if then == ADD:
        for j in range(len(y)):
            y[j] += other[j]
    elif then == MULTIPLY:
        for j in range(len(y)):
            y[j] *= other[j]
    elif then == GELU:
        for j in range(len(y)):
            y[j] = gelu(y[j])
    elif then == SILU:
        for j in range(len(y)):
            y[j] = silu(y[j])
    elif then == EXACT_GELU:
        for j in range(len(y)):
            y[j] = exact_gelu(y[j])
    elif then == RELU:
        for j in range(len(y)):
            y[j] = max(y[j], float32(0))


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
