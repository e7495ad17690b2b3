"""The product of a weight that is not quantized with a few rows of activations, as a job of a program."""

from __future__ import annotations

import numpy
from numba import carray, njit

from quant.compiled.threads import compiled_loop, pointer
from quant.kernels.frame import CODES, COLUMNS, COUNT, HEIGHT, ROWS, X, dot, product_of


@njit(nogil=True)
def _prepare(job):
    """The activations, and room for the outputs of a part."""
    return carray(pointer(job[X]), (job[COUNT], job[COLUMNS]), numpy.float32), numpy.empty(job[HEIGHT], numpy.float32)


@njit(nogil=True)
def _multiply_rows(job, given, y, start, end):
    x, weight = given[0], carray(pointer(job[CODES]), (job[ROWS], job[COLUMNS]), numpy.float32)
    for row in range(start, end):
        for i in range(len(x)):
            y[i, row] = dot(weight[row], x[i])


@njit(nogil=True)
def _multiply_columns(job, given, y, start, end):
    weight, width = carray(pointer(job[CODES]), (job[COLUMNS], job[ROWS]), numpy.float32), end - start
    x, sums = given
    for i in range(len(x)):
        sums[:] = 0
        for j in range(len(weight)):
            part, factor = weight[j, start:end], x[i, j]
            for k in range(width):
                sums[k] += factor * part[k]
        y[i, start:end] = sums[:width]


_rows, _columns = product_of(_prepare, _multiply_rows), product_of(_prepare, _multiply_columns)


@compiled_loop
def _rows_of_floats(job_pointer):
    """y = W x for a weight float32 [ROWS, COLUMNS] at CODES."""
    _rows(job_pointer)


@compiled_loop
def _columns_of_floats(job_pointer):
    """y = x W for a weight float32 [COLUMNS, ROWS] at CODES, stored as GPT-2's Conv1D does: ROWS is the number of outputs."""
    _columns(job_pointer)


MULTIPLY_ROWS_OF_FLOATS, MULTIPLY_COLUMNS_OF_FLOATS = _rows_of_floats.address, _columns_of_floats.address
