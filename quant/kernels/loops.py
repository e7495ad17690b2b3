"""Inner loops of products with quantized weights on a CPU, compiled by numba at the first import and cached on disk.

Decoding a token reads every code once, so the loops must keep up with memory. A loop divides the rows of a weight among the
threads. Vectors hold 8 or 16 floats, whichever quant.kernels.lanes chose: quant.kernels.rows_of_8 and rows_of_16 multiply one
row of activations; decoding to floats takes vectors of 8 on every processor.
"""

from __future__ import annotations

import math

import numpy
from numba import carray, float32, int64, njit, uint8

from quant.kernels.lanes import LANES
from quant.kernels.threads import FIRST, claim, compiled_loop, finish, pointer
from quant.kernels.vectors import BLOCK, HAS_SHUFFLE, block_decode, equal_steps, looked_up

if LANES == 16:
    from quant.kernels import rows_of_16 as rows_of_lanes
else:
    from quant.kernels import rows_of_8 as rows_of_lanes

prepared, products, LOOKUP_BITS = rows_of_lanes.prepared, rows_of_lanes.products, rows_of_lanes.LOOKUP_BITS

# Places in a job of quant.kernels.threads: addresses (0: none), and sizes.
(X, Y, BIAS, OTHER, THEN, GATHERED, COUNT, CODES, SCALES, ZEROS, VALUES, LOOKUP_PLANES, ROWS, COLUMNS, GROUPS, GROUP_SIZE,
 ROW_BYTES, BITS, DECODER, HEIGHT, FIELDS) = range(FIRST, FIRST + 21)
# THEN: the epilogue of an output; ADD and MULTIPLY take the same element of another vector (OTHER), which may not be Y.
NOTHING, ADD, MULTIPLY, GELU, SILU, EXACT_GELU, RELU = range(7)
# DECODER: codes are equal steps counted from the middle code, or indices into a table of 16 values or of another size.
EQUAL_STEPS, TABLE_OF_16, ANY_TABLE = range(3)

_FAST = {"reassoc", "contract", "nsz"}

_decode2, _decode3, _decode4, _decode5, _decode6, _decode7, _decode8 = (
    block_decode(equal_steps(bits, 2 ** (bits - 1)), 4 * bits, 8 if bits == 4 else 1) for bits in range(2, 9)
)
_decode_shuffled = block_decode(looked_up, 16, 4)


@njit(nogil=True)
def _decode_steps(bits, codes, out, lookup_planes, block, scale, zero):  # see block_decode
    if bits == 8:
        _decode8(codes, out, lookup_planes, block, scale, zero)
    elif bits == 4:
        _decode4(codes, out, lookup_planes, block, scale, zero)
    elif bits == 2:
        _decode2(codes, out, lookup_planes, block, scale, zero)
    elif bits == 3:
        _decode3(codes, out, lookup_planes, block, scale, zero)
    elif bits == 5:
        _decode5(codes, out, lookup_planes, block, scale, zero)
    elif bits == 6:
        _decode6(codes, out, lookup_planes, block, scale, zero)
    else:
        _decode7(codes, out, lookup_planes, block, scale, zero)


@njit(nogil=True, fastmath=_FAST)
def group_sums(x, groups):  # float32 [columns] -> float32 [groups]
    """Sum each group of x, to be multiplied by the group's zero."""
    sums, size = numpy.empty(groups, numpy.float32), len(x) // max(groups, 1)
    for group in range(groups):
        total = float32(0)
        for j in range(group * size, (group + 1) * size):
            total += x[j]
        sums[group] = total
    return sums


@njit(nogil=True, fastmath=_FAST)
def dot(a, b):  # float32 [columns], float32 [columns] -> float32
    total = float32(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@njit(nogil=True, fastmath=_FAST)
def decode_row(job, row, out):  # int64 [FIELDS], int64, float32 [columns]
    """Decode one row of a job's weight: by blocks, as far as its groups are whole blocks; the rest code by code."""
    columns, groups, bits, row_bytes = job[COLUMNS], job[GROUPS], job[BITS], job[ROW_BYTES]
    codes = carray(pointer(job[CODES] + row * row_bytes), row_bytes, numpy.uint8)
    scales = carray(pointer(job[SCALES] + 4 * row * groups), groups, numpy.float32)
    zeros = carray(pointer(job[ZEROS] + 4 * row * groups), groups if job[ZEROS] else 0, numpy.float32)
    size, decoder, first = job[GROUP_SIZE], job[DECODER], 0  # first: number of the first group to decode code by code
    if size % BLOCK == 0 and (decoder == EQUAL_STEPS or (decoder == TABLE_OF_16 and HAS_SHUFFLE)):
        lookup_planes, blocks = carray(pointer(job[LOOKUP_PLANES]), 128, numpy.uint8), size // BLOCK
        first = columns // size
        for group in range(first):
            zero = zeros[group] if len(zeros) else float32(0)
            for block in range(group * blocks, (group + 1) * blocks):
                if decoder == TABLE_OF_16:
                    _decode_shuffled(codes, out, lookup_planes, block, scales[group], zero)
                else:
                    _decode_steps(bits, codes, out, lookup_planes, block, scales[group], zero)
        if first == groups:
            return
        codes, out, columns = codes[first * size * bits // 8 :], out[first * size :], columns - first * size
    values = carray(pointer(job[VALUES]), 1 << bits, numpy.float32)
    if bits == 8:
        for j in range(columns):
            out[j] = values[codes[j]]
    elif bits == 4:
        for j in range(columns // 2):
            out[2 * j] = values[codes[j] & uint8(15)]
            out[2 * j + 1] = values[codes[j] >> uint8(4)]
        if columns % 2:
            out[columns - 1] = values[codes[columns // 2] & uint8(15)]
    else:
        mask = (1 << bits) - 1
        for eight in range((columns + 7) // 8):  # eight codes take `bits` bytes; the last ones of a row may take fewer
            stored, word = codes[eight * bits : (eight + 1) * bits], int64(0)
            for k in range(len(stored)):
                word |= int64(stored[k]) << (8 * k)
            some = out[8 * eight : 8 * eight + 8]
            for i in range(len(some)):
                some[i] = values[(word >> (bits * i)) & mask]
    for group in range(first, groups):
        part, scale = out[(group - first) * size : (group - first + 1) * size], scales[group]
        zero = zeros[group] if len(zeros) else float32(0)
        for j in range(len(part)):
            part[j] = part[j] * scale + zero


@njit(nogil=True, fastmath=_FAST)
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


@compiled_loop
def multiply_row(job_pointer):
    """Multiply one row of activations with a weight whose groups are whole blocks."""
    job = carray(job_pointer, FIELDS)
    rows, columns, groups, bits, height = job[ROWS], job[COLUMNS], job[GROUPS], job[BITS], job[HEIGHT]
    codes = carray(pointer(job[CODES]), (rows, job[ROW_BYTES]), numpy.uint8)  # the second argument is the shape
    scales = carray(pointer(job[SCALES]), (rows, groups), numpy.float32)
    zeros = carray(pointer(job[ZEROS]), (rows if job[ZEROS] else 0, groups), numpy.float32)
    values = carray(pointer(job[VALUES]), 16, numpy.float32)
    lookup_planes = carray(pointer(job[LOOKUP_PLANES]), 128, numpy.uint8)
    bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
    y = carray(pointer(job[Y]), rows, numpy.float32)
    other = carray(pointer(job[OTHER]), rows if job[OTHER] else 0, numpy.float32)
    x = carray(pointer(job[X]), columns, numpy.float32)
    sums = group_sums(x, groups if len(zeros) else 0)
    is_table, blocks = job[DECODER] != EQUAL_STEPS, columns // groups // BLOCK
    x, offsets = prepared(x, bits, is_table, blocks)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        end = min(rows, start + height)
        products(bits, is_table, codes, x, values, lookup_planes, offsets, scales, y, blocks, start, end)
        for row in range(start, end):
            total = y[row]
            if len(zeros):
                total += dot(zeros[row], sums)
            if len(bias):
                total += bias[row]
            y[row] = epilogue(total, job[THEN], other[row] if len(other) else float32(0))
        finish(job_pointer)


@compiled_loop
def multiply_rows(job_pointer):
    """Multiply a few rows of activations with any weight.

    Each row of the weight is decoded once, into a buffer that stays in the core's L1 cache, and serves all of them.
    """
    job = carray(job_pointer, FIELDS)
    count, rows, columns, height = job[COUNT], job[ROWS], job[COLUMNS], job[HEIGHT]
    x = carray(pointer(job[X]), (count, columns), numpy.float32)
    y = carray(pointer(job[Y]), (count, rows), numpy.float32)
    bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
    other = carray(pointer(job[OTHER]), (count if job[OTHER] else 0, rows), numpy.float32)
    buffer = numpy.empty(columns, numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            decode_row(job, row, buffer)
            for i in range(count):
                total = dot(x[i], buffer)
                if len(bias):
                    total += bias[row]
                y[i, row] = epilogue(total, job[THEN], other[i, row] if len(other) else float32(0))
        finish(job_pointer)


@compiled_loop
def decode(job_pointer):
    """Decode rows of the weight to floats: those listed at GATHERED, or the first ROWS in order."""
    job = carray(job_pointer, FIELDS)
    rows, columns, height = job[ROWS], job[COLUMNS], job[HEIGHT]
    y = carray(pointer(job[Y]), (rows, columns), numpy.float32)
    gathered = carray(pointer(job[GATHERED]), rows if job[GATHERED] else 0, numpy.int64)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            decode_row(job, gathered[row] if len(gathered) else row, y[row])
        finish(job_pointer)
