"""Products of a weight with a few rows of activations in vectors of 16 floats, as a job (quant.compiled.threads)."""

from __future__ import annotations

import numpy
from numba import carray, njit

from quant.compiled.threads import compiled_loop, pointer
from quant.kernels.frame import (
    BITS,
    CODES,
    COLUMNS,
    COUNT,
    DECODER,
    EQUAL_STEPS,
    GROUPS,
    ROW_BYTES,
    ROWS,
    VALUES,
    X,
    dot,
    group_sums,
    product_of,
    scales_and_zeros,
)
from quant.kernels.rows_of_16 import batch_products, prepared
from quant.kernels.wide_batch import SIZE


@njit(nogil=True)
def _prepare(job):
    """The activations as `batch_products` takes them, and their sums by group where there are zeros."""
    count, columns, groups = job[COUNT], job[COLUMNS], job[GROUPS]
    given = carray(pointer(job[X]), (count, columns), numpy.float32)
    buffer = numpy.empty(count * columns + 16, numpy.float32)
    start = (-buffer.ctypes.data % 64) // 4  # a vector that crosses a cache line takes two reads
    x = buffer[start : start + count * columns].reshape((count, columns))
    sums = numpy.empty((count, groups if len(scales_and_zeros(job)[1]) else 0), numpy.float32)
    for i in range(count):
        x[i] = prepared(given[i], job[BITS], job[DECODER] != EQUAL_STEPS, 2 * (columns // groups // SIZE))[0]
        sums[i] = group_sums(given[i], sums.shape[1])
    return x, sums


@njit(nogil=True)
def _multiply(job, given, y, start, end):
    x, sums = given
    codes = carray(pointer(job[CODES]), (job[ROWS], job[ROW_BYTES]), numpy.uint8)
    scales, zeros = scales_and_zeros(job)
    batch_products(job[BITS], codes, x, carray(pointer(job[VALUES]), 32, numpy.float32), scales, y,
                   job[COLUMNS] // job[GROUPS] // SIZE, start, end)
    if len(zeros):
        for i in range(len(x)):
            for row in range(start, end):
                y[i, row] += dot(zeros[row], sums[i])


_batch = product_of(_prepare, _multiply)


@compiled_loop
def _multiply_batch(job_pointer):
    """Multiply a few rows of activations with a weight whose groups are multiples of 64 codes."""
    _batch(job_pointer)


MULTIPLY_BATCH = _multiply_batch.address
