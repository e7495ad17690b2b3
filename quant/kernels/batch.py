"""Products of a weight with a few rows of activations in vectors of 16 floats, as a job (quant.kernels.threads)."""

from __future__ import annotations

import numpy
from numba import carray, float32

from quant.kernels.loops import (
    BIAS,
    BITS,
    CODES,
    COLUMNS,
    COUNT,
    DECODER,
    EQUAL_STEPS,
    FIELDS,
    GROUPS,
    HEIGHT,
    OTHER,
    ROW_BYTES,
    ROWS,
    SCALES,
    THEN,
    VALUES,
    ZEROS,
    X,
    Y,
    dot,
    epilogue,
    group_sums,
)  # fmt: skip
from quant.kernels.rows_of_16 import batch_products, prepared
from quant.kernels.threads import claim, compiled_loop, finish, pointer
from quant.kernels.wide_batch import SIZE


@compiled_loop
def _multiply_batch(job_pointer):
    """Multiply a few rows of activations with a weight whose groups are multiples of 64 codes."""
    job = carray(job_pointer, FIELDS)
    count, rows, columns, groups, bits, height = job[COUNT], job[ROWS], job[COLUMNS], job[GROUPS], job[BITS], job[HEIGHT]
    codes = carray(pointer(job[CODES]), (rows, job[ROW_BYTES]), numpy.uint8)
    scales = carray(pointer(job[SCALES]), (rows, groups), numpy.float32)
    zeros = carray(pointer(job[ZEROS]), (rows if job[ZEROS] else 0, groups), numpy.float32)
    values = carray(pointer(job[VALUES]), 32, numpy.float32)
    bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
    given = carray(pointer(job[X]), (count, columns), numpy.float32)
    y = carray(pointer(job[Y]), (count, rows), numpy.float32)
    other = carray(pointer(job[OTHER]), (count if job[OTHER] else 0, rows), numpy.float32)
    blocks, is_table = columns // groups // SIZE, job[DECODER] != EQUAL_STEPS
    buffer = numpy.empty(count * columns + 16, numpy.float32)
    start = (-buffer.ctypes.data % 64) // 4  # a vector that crosses a cache line takes two reads
    x = buffer[start : start + count * columns].reshape((count, columns))
    sums = numpy.empty((count, groups if len(zeros) else 0), numpy.float32)
    for i in range(count):
        x[i] = prepared(given[i], bits, is_table, 2 * blocks)[0]
        sums[i] = group_sums(given[i], sums.shape[1])
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        end = min(rows, start + height)
        batch_products(bits, codes, x, values, scales, y, blocks, start, end)
        for i in range(count):
            for row in range(start, end):
                total = y[i, row]
                if len(zeros):
                    total += dot(zeros[row], sums[i])
                if len(bias):
                    total += bias[row]
                y[i, row] = epilogue(total, job[THEN], other[i, row] if len(other) else float32(0))
        finish(job_pointer)


MULTIPLY_BATCH = _multiply_batch.address
