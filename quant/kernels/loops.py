"""Products of quantized weights with one row of activations, or a few, on a CPU; compiled at the first import and kept on disk.

Decoding a token reads every code once, so the loops must keep up with memory. Vectors hold 8 or 16 floats, whichever
quant.compiled.lanes chose: rows_of_8 and rows_of_16 multiply one row of activations.
"""

from __future__ import annotations

import numpy
from numba import carray, njit

from quant.compiled.lanes import LANES
from quant.compiled.threads import compiled_loop, pointer
from quant.kernels.decode import decode_row
from quant.kernels.frame import (
    BITS,
    CODES,
    COLUMNS,
    COUNT,
    DECODER,
    EQUAL_STEPS,
    GROUPS,
    LOOKUP_PLANES,
    ROW_BYTES,
    ROWS,
    VALUES,
    X,
    dot,
    group_sums,
    product_of,
    scales_and_zeros,
)
from quant.kernels.vectors import BLOCK

if LANES == 16:
    from quant.kernels import rows_of_16 as rows_of_lanes
else:
    from quant.kernels import rows_of_8 as rows_of_lanes

prepared, products, LOOKUP_BITS = rows_of_lanes.prepared, rows_of_lanes.products, rows_of_lanes.LOOKUP_BITS


@njit(nogil=True)
def _prepare_row(job):
    """The activations as `products` takes them, its initial sums, and the activations' sums by group where there are zeros."""
    x = carray(pointer(job[X]), job[COLUMNS], numpy.float32)
    sums = group_sums(x, job[GROUPS] if len(scales_and_zeros(job)[1]) else 0)
    x, offsets = prepared(x, job[BITS], job[DECODER] != EQUAL_STEPS, job[COLUMNS] // job[GROUPS] // BLOCK)
    return x, offsets, sums


@njit(nogil=True)
def _multiply_row(job, given, y, start, end):
    x, offsets, sums = given
    blocks, out = job[COLUMNS] // job[GROUPS] // BLOCK, y[0]
    codes = carray(pointer(job[CODES]), (job[ROWS], job[ROW_BYTES]), numpy.uint8)  # the second argument is the shape
    values, lookup_planes = carray(pointer(job[VALUES]), 16, numpy.float32), carray(pointer(job[LOOKUP_PLANES]), 128, numpy.uint8)
    scales, zeros = scales_and_zeros(job)
    products(job[BITS], job[DECODER] != EQUAL_STEPS, codes, x, values, lookup_planes, offsets, scales, out, blocks, start, end)
    if len(zeros):
        for row in range(start, end):
            out[row] += dot(zeros[row], sums)


@njit(nogil=True)
def _prepare_rows(job):
    """The activations, and room for a row of the weight in the core's L1 cache."""
    return carray(pointer(job[X]), (job[COUNT], job[COLUMNS]), numpy.float32), numpy.empty(job[COLUMNS], numpy.float32)


@njit(nogil=True)
def _multiply_rows(job, given, y, start, end):
    x, buffer = given
    for row in range(start, end):
        decode_row(job, row, buffer)
        for i in range(len(x)):
            y[i, row] = dot(x[i], buffer)


_row, _rows = product_of(_prepare_row, _multiply_row), product_of(_prepare_rows, _multiply_rows)


@compiled_loop
def multiply_row(job_pointer):
    """Multiply one row of activations with a weight whose groups are whole blocks."""
    _row(job_pointer)


@compiled_loop
def multiply_rows(job_pointer):
    """Multiply a few rows of activations with any weight; each row of the weight is decoded once and serves all of them."""
    _rows(job_pointer)
