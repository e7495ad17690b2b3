"""The product of a weight that is not quantized with a few rows of activations, as a job of a program (quant.kernels.threads)."""

from __future__ import annotations

import numpy
from numba import carray, float32

from quant.kernels.loops import BIAS, CODES, COLUMNS, COUNT, FIELDS, HEIGHT, OTHER, ROWS, THEN, X, Y, dot, epilogue
from quant.kernels.threads import claim, compiled_loop, finish, pointer


@compiled_loop
def _multiply_rows_of_floats(job_pointer):
    """y = W x for a weight float32 [ROWS, COLUMNS] at CODES."""
    job = carray(job_pointer, FIELDS)
    count, rows, columns, height = job[COUNT], job[ROWS], job[COLUMNS], job[HEIGHT]
    weight = carray(pointer(job[CODES]), (rows, columns), numpy.float32)
    x = carray(pointer(job[X]), (count, columns), numpy.float32)
    y = carray(pointer(job[Y]), (count, rows), numpy.float32)
    bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
    other = carray(pointer(job[OTHER]), (count if job[OTHER] else 0, rows), numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            for i in range(count):
                total = dot(weight[row], x[i])
                if len(bias):
                    total += bias[row]
                y[i, row] = epilogue(total, job[THEN], other[i, row] if len(other) else float32(0))
        finish(job_pointer)


@compiled_loop
def _multiply_columns_of_floats(job_pointer):
    """y = x W for a weight float32 [COLUMNS, ROWS] at CODES, stored as GPT-2's Conv1D does: ROWS is the number of outputs."""
    job = carray(job_pointer, FIELDS)
    count, rows, columns, height = job[COUNT], job[ROWS], job[COLUMNS], job[HEIGHT]
    weight = carray(pointer(job[CODES]), (columns, rows), numpy.float32)
    x = carray(pointer(job[X]), (count, columns), numpy.float32)
    y = carray(pointer(job[Y]), (count, rows), numpy.float32)
    bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
    other = carray(pointer(job[OTHER]), (count if job[OTHER] else 0, rows), numpy.float32)
    sums = numpy.empty(height, numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        width = min(rows, start + height) - start
        for i in range(count):
            sums[:] = 0
            for j in range(columns):
                part, factor = weight[j, start : start + width], x[i, j]
                for k in range(width):
                    sums[k] += factor * part[k]
            for k in range(width):
                total = sums[k]
                if len(bias):
                    total += bias[start + k]
                y[i, start + k] = epilogue(total, job[THEN], other[i, start + k] if len(other) else float32(0))
        finish(job_pointer)


MULTIPLY_ROWS_OF_FLOATS, MULTIPLY_COLUMNS_OF_FLOATS = _multiply_rows_of_floats.address, _multiply_columns_of_floats.address
