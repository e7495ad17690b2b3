"""Inner loops of products with quantized weights on a CPU, compiled by numba at the first import and cached on disk.

Decoding a token reads every code once, so the loops must keep up with memory. A loop divides the rows of a weight among the
threads and calls, for each row, the vector functions that quant.kernels.vectors builds.
"""

from __future__ import annotations

import math

import numpy
from numba import carray, float32, int64, njit, uint8

from quant.kernels.threads import FIRST, claim, compiled_loop, finish, pointer
from quant.kernels.vectors import BLOCK, HAS_SHUFFLE, block_decode, equal_steps, looked_up, row_dot, spread_halves

# Places in a job of quant.kernels.threads: addresses (0: none), and sizes.
(X, Y, BIAS, OTHER, THEN, GATHERED, COUNT, CODES, SCALES, ZEROS, VALUES, LOOKUP_PLANES, ROWS, COLUMNS, GROUPS, GROUP_SIZE,
 ROW_BYTES, BITS, DECODER, HEIGHT, FIELDS) = range(FIRST, FIRST + 21)
# THEN: the epilogue of an output; ADD and MULTIPLY take the same element of another vector (OTHER).
NOTHING, ADD, MULTIPLY, GELU, SILU = range(5)
# DECODER: codes are equal steps counted from the middle code, or indices into a table of 16 values or of another size.
EQUAL_STEPS, TABLE_OF_16, ANY_TABLE = range(3)

_FAST = {"reassoc", "contract", "nsz"}

# In a row's product, codes of 4 bits are counted from 0, and `offsets` subtract the middle: this saves an instruction.
_dot2, _dot3, _dot4, _dot5, _dot6, _dot7, _dot8 = (
    row_dot(equal_steps(bits, 0 if bits == 4 else 2 ** (bits - 1)), 4 * bits) for bits in range(2, 9)
)
_dot_spread, _dot_spread_1, _dot_spread_2 = (row_dot(spread_halves, 32, blocks, 2 * BLOCK) for blocks in (0, 1, 2))
_dot_shuffled, _dot_shuffled_1, _dot_shuffled_2, _dot_shuffled_4 = (row_dot(looked_up, 16, blocks) for blocks in (0, 1, 2, 4))
_decode2, _decode3, _decode4, _decode5, _decode6, _decode7, _decode8 = (
    block_decode(equal_steps(bits, 2 ** (bits - 1)), 4 * bits, 8 if bits == 4 else 1) for bits in range(2, 9)
)
_decode_shuffled = block_decode(looked_up, 16, 4)


@njit(nogil=True, fastmath=_FAST)
def dot_plain(codes, x, values, scales, groups, blocks):
    """The row product of `looked_up` without the byte shuffle, for processors that lack it.

    codes: uint8 [columns / 2]; x: float32 [columns], from `ordered(x, 4)`; values: float32 [16], the table;
    scales: float32 [groups].
    """
    total, size = float32(0), 16 * blocks
    for group in range(groups):
        c, a = codes[group * size : (group + 1) * size], x[2 * group * size : 2 * (group + 1) * size]
        dot = float32(0)
        for four in range(len(c) // 4):
            for i in range(4):
                code = c[4 * four + i]
                dot += a[8 * four + i] * values[code & uint8(15)] + a[8 * four + 4 + i] * values[code >> uint8(4)]
        total += dot * scales[group]
    return total


if HAS_SHUFFLE:

    @njit(nogil=True)
    def dot_table(codes, x, values, lookup_planes, offsets, scales, groups, blocks):  # see row_dot
        if blocks == 2:
            return _dot_shuffled_2(codes, x, lookup_planes, offsets, scales, groups, blocks)
        if blocks == 1:
            return _dot_shuffled_1(codes, x, lookup_planes, offsets, scales, groups, blocks)
        if blocks == 4:
            return _dot_shuffled_4(codes, x, lookup_planes, offsets, scales, groups, blocks)
        return _dot_shuffled(codes, x, lookup_planes, offsets, scales, groups, blocks)

else:

    @njit(nogil=True)
    def dot_table(codes, x, values, lookup_planes, offsets, scales, groups, blocks):
        return dot_plain(codes, x, values, scales, groups, blocks)


@njit(nogil=True)
def dot_steps(bits, codes, x, lookup_planes, offsets, scales, groups, blocks):  # see row_dot
    if bits == 8:
        return _dot8(codes, x, lookup_planes, offsets, scales, groups, blocks)
    if bits == 4:
        if blocks == 2:
            return _dot_spread_1(codes, x, lookup_planes, offsets, scales, groups, blocks // 2)
        if blocks == 4:
            return _dot_spread_2(codes, x, lookup_planes, offsets, scales, groups, blocks // 2)
        if blocks % 2 == 0:
            return _dot_spread(codes, x, lookup_planes, offsets, scales, groups, blocks // 2)
        return _dot4(codes, x, lookup_planes, offsets, scales, groups, blocks)
    if bits == 2:
        return _dot2(codes, x, lookup_planes, offsets, scales, groups, blocks)
    if bits == 3:
        return _dot3(codes, x, lookup_planes, offsets, scales, groups, blocks)
    if bits == 5:
        return _dot5(codes, x, lookup_planes, offsets, scales, groups, blocks)
    if bits == 6:
        return _dot6(codes, x, lookup_planes, offsets, scales, groups, blocks)
    return _dot7(codes, x, lookup_planes, offsets, scales, groups, blocks)


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
def ordered(x, half):  # float32 [columns] -> float32 [columns]
    """Copy x with the elements of even index before those of odd index, within every 2 * half; half 1: in order."""
    out = numpy.empty_like(x)
    for start in range(0, len(x), 2 * half):
        for i in range(half):
            out[start + i] = x[start + 2 * i]
            out[start + half + i] = x[start + 2 * i + 1]
    return out


@njit(nogil=True, fastmath=_FAST)
def spread(x):  # float32 [columns] -> float32 [columns]
    """Reorder x for spread_halves: in every 64, number 8 * i + k goes to 8 * k + i, scaled by 16 ** -k (k = 7: unscaled)."""
    out = numpy.empty_like(x)
    for start in range(0, len(x), 64):
        factor = float32(1)
        for k in range(8):
            for lane in range(8):
                out[start + 8 * k + lane] = x[start + 8 * lane + k] * factor
            factor = factor / float32(16) if k < 6 else float32(1)
    return out


@njit(nogil=True, fastmath=_FAST)
def _group_sums(x, groups):  # float32 [columns] -> float32 [groups]
    """Sum each group of x, to be multiplied by the group's zero."""
    sums, size = numpy.empty(groups, numpy.float32), len(x) // groups
    for group in range(groups):
        total = float32(0)
        for j in range(group * size, (group + 1) * size):
            total += x[j]
        sums[group] = total
    return sums


@njit(nogil=True, fastmath=_FAST)
def _group_offsets(x, groups, middle):  # float32 [columns] -> float32 [groups * 8]
    """Eight numbers per group, with the sum -middle * (sum of the group's activations)."""
    offsets, size = numpy.zeros(groups * 8, numpy.float32), len(x) // groups
    if middle:
        for group in range(groups):
            part, start = x[group * size : (group + 1) * size], offsets[group * 8 : group * 8 + 8]
            for eight in range(size // 8):
                for lane in range(8):
                    start[lane] -= float32(middle) * part[8 * eight + lane]
    return offsets


@njit(nogil=True, fastmath=_FAST)
def _dot(a, b):  # float32 [columns], float32 [columns] -> float32
    total = float32(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@njit(nogil=True, fastmath=_FAST)
def _decode_row(job, row, out):  # int64 [FIELDS], int64, float32 [columns]
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
def _epilogue(product, then, other):  # float32, int64, float32 -> float32
    """Finish one output: add or multiply the other vector's, or apply GELU (tanh formula) or SiLU."""
    if then == ADD:
        return product + other
    if then == MULTIPLY:
        return product * other
    if then == GELU:  # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
        u = float32(0.7978845608028654) * (product + float32(0.044715) * product * product * product)
        return product / (float32(1) + math.exp(float32(-2) * u))
    if then == SILU:
        return product / (float32(1) + math.exp(-product))
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
    sums = _group_sums(x, groups)
    is_table, blocks = job[DECODER] == TABLE_OF_16, columns // groups // BLOCK
    offsets = _group_offsets(x, groups, 8 if bits == 4 and not is_table else 0)
    if bits == 4 and not is_table and blocks % 2 == 0:
        x = spread(x)  # float32 [columns], whatever the order
    elif bits == 4:
        x = ordered(x, 4 if is_table else 8)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            if is_table:
                total = dot_table(codes[row], x, values, lookup_planes, offsets, scales[row], groups, blocks)
            else:
                total = dot_steps(bits, codes[row], x, lookup_planes, offsets, scales[row], groups, blocks)
            for group in range(groups if len(zeros) else 0):
                total += zeros[row, group] * sums[group]
            if len(bias):
                total += bias[row]
            y[row] = _epilogue(total, job[THEN], other[row] if len(other) else float32(0))
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
    other = carray(pointer(job[OTHER]), rows if job[OTHER] else 0, numpy.float32)
    buffer = numpy.empty(columns, numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            _decode_row(job, row, buffer)
            for i in range(count):
                dot = _dot(x[i], buffer)
                if len(bias):
                    dot += bias[row]
                y[i, row] = _epilogue(dot, job[THEN], other[row] if len(other) else float32(0))
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
            _decode_row(job, gathered[row] if len(gathered) else row, y[row])
        finish(job_pointer)
