"""The product of a weight that is not quantized with one row of activations, as a job of a program (quant.kernels.threads)."""

from __future__ import annotations

import numpy
from numba import carray, float32

from quant.kernels.loops import BIAS, CODES, COLUMNS, FIELDS, HEIGHT, OTHER, ROWS, THEN, X, Y, dot, epilogue
from quant.kernels.threads import claim, compiled_loop, finish, pointer


@compiled_loop
def _multiply_rows_of_floats(job_pointer):
    """y = W x for a weight float32 [ROWS, COLUMNS] at CODES."""
    job = carray(job_pointer, FIELDS)
    rows, columns, height = job[ROWS], job[COLUMNS], job[HEIGHT]
    weight = carray(pointer(job[CODES]), (rows, columns), numpy.float32)
    x, y = carray(pointer(job[X]), columns, numpy.float32), carray(pointer(job[Y]), rows, numpy.float32)
    bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
    other = carray(pointer(job[OTHER]), rows if job[OTHER] else 0, numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            total = dot(weight[row], x)
            if len(bias):
                total += bias[row]
            y[row] = epilogue(total, job[THEN], other[row] if len(other) else float32(0))
        finish(job_pointer)


@compiled_loop
def _multiply_columns_of_floats(job_pointer):
    """y = x W for a weight float32 [COLUMNS, ROWS] at CODES, stored as GPT-2's Conv1D does: ROWS is the number of outputs."""
    job = carray(job_pointer, FIELDS)
    rows, columns, height = job[ROWS], job[COLUMNS], job[HEIGHT]
    weight = carray(pointer(job[CODES]), (columns, rows), numpy.float32)
    x, y = carray(pointer(job[X]), columns, numpy.float32), carray(pointer(job[Y]), rows, numpy.float32)
    bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
    other = carray(pointer(job[OTHER]), rows if job[OTHER] else 0, numpy.float32)
    sums = numpy.empty(height, numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        count = min(rows, start + height) - start
        sums[:] = 0
        for i in range(columns):
            part, factor = weight[i, start : start + count], x[i]
            for k in range(count):
                sums[k] += factor * part[k]
        for k in range(count):
            total = sums[k]
            if len(bias):
                total += bias[start + k]
            y[start + k] = epilogue(total, job[THEN], other[start + k] if len(other) else float32(0))
        finish(job_pointer)


MULTIPLY_ROWS_OF_FLOATS, MULTIPLY_COLUMNS_OF_FLOATS = _multiply_rows_of_floats.address, _multiply_columns_of_floats.address
