"""Decodes rows of a weight to floats: those that an embedding gathers, and tiles for the products of a prompt.

The decoder of a row's blocks is chosen once a row: chosen at every block, it takes up to four times as long. Half-bytes are
looked up in a table, linear steps too. Vectors hold 8 floats on every processor.
"""

from __future__ import annotations

import numpy
from numba import carray, float32, int64, njit, uint8, uint16, uint32

from quant.compiled.threads import claim, compiled_loop, finish, pointer
from quant.kernels.frame import (
    BITS,
    CODES,
    COLUMNS,
    DECODER,
    EQUAL_STEPS,
    FAST,
    FIELDS,
    GATHERED,
    GROUP_SIZE,
    GROUPS,
    HEIGHT,
    LOOKUP_PLANES,
    ROW_BYTES,
    ROWS,
    TABLE_OF_16,
    VALUES,
    Y,
    scales_and_zeros,
)
from quant.kernels.vectors import BLOCK, HAS_SHUFFLE, block_decode, equal_steps, looked_up
from quant.kernels.widths import by_width


@njit(nogil=True)
def decode_row(job, row, out):  # int64 [FIELDS], int64, float32 [columns]
    """Decode one row of a job's weight: by blocks, as far as its groups are whole blocks; the rest code by code."""
    size, decoder, whole = job[GROUP_SIZE], job[DECODER], 0  # whole: groups to decode by blocks
    if size % BLOCK == 0 and (decoder == EQUAL_STEPS or (decoder == TABLE_OF_16 and HAS_SHUFFLE)):
        whole = job[COLUMNS] // size
        _decode_groups(job[BITS], job, row, whole, out)
    if whole < job[GROUPS]:
        _decode_codes(job, row, whole, out)


def _groups_of(bits: int):
    """Make a function that decodes the first groups of a row by blocks, for one width."""
    if bits == 4:
        decode_block = block_decode(looked_up, 16, 4) if HAS_SHUFFLE else block_decode(equal_steps(4, 8), 16, 8)
    else:
        decode_block = block_decode(equal_steps(bits, 2 ** (bits - 1)), 4 * bits, 1)

    @njit(nogil=True)
    def decode_groups(job, row, whole, out):
        blocks = job[GROUP_SIZE] // BLOCK
        codes = carray(pointer(job[CODES] + row * job[ROW_BYTES]), job[ROW_BYTES], numpy.uint8)
        lookup_planes = carray(pointer(job[LOOKUP_PLANES]), 128, numpy.uint8)
        scales, zeros = scales_and_zeros(job)
        for group in range(whole):
            scale, zero = scales[row, group], zeros[row, group] if len(zeros) else float32(0)
            for block in range(group * blocks, (group + 1) * blocks):
                decode_block(codes, out, lookup_planes, block, scale, zero)

    return decode_groups


_decode_groups = by_width(_groups_of)


@njit(nogil=True, fastmath=FAST)
def _decode_codes(job, row, first, out):
    """Decode the groups of a row from `first` on, code by code."""
    size, bits, groups, done = job[GROUP_SIZE], job[BITS], job[GROUPS], first * job[GROUP_SIZE]
    codes = carray(pointer(job[CODES] + row * job[ROW_BYTES]), job[ROW_BYTES], numpy.uint8)[done * bits // 8 :]
    values = carray(pointer(job[VALUES]), 1 << bits, numpy.float32)
    scales, zeros = scales_and_zeros(job)
    out, columns = out[done:], job[COLUMNS] - done
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
        part, scale = out[(group - first) * size : (group - first + 1) * size], scales[row, group]
        zero = zeros[row, group] if len(zeros) else float32(0)
        for j in range(len(part)):
            part[j] = part[j] * scale + zero


@njit(nogil=True)
def _rounded(values, out):  # float32 [n], uint16 [n]
    """Round finite numbers to bfloat16: to nearest, ties to even."""
    bits = values.view(numpy.uint32)
    for j in range(len(out)):
        out[j] = uint16((bits[j] + uint32(0x7FFF) + ((bits[j] >> uint32(16)) & uint32(1))) >> uint32(16))


@compiled_loop
def to_float32(job_pointer):
    """Decode rows of the weight to float32, at Y: those listed at GATHERED, or the first ROWS in order."""
    job = carray(job_pointer, FIELDS)
    rows, height = job[ROWS], job[HEIGHT]
    y = carray(pointer(job[Y]), (rows, job[COLUMNS]), numpy.float32)
    gathered = carray(pointer(job[GATHERED]), rows if job[GATHERED] else 0, numpy.int64)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            decode_row(job, gathered[row] if len(gathered) else row, y[row])
        finish(job_pointer)


@compiled_loop
def to_bfloat16(job_pointer):
    """Decode the first ROWS rows of the weight to bfloat16, at Y."""
    job = carray(job_pointer, FIELDS)
    rows, height = job[ROWS], job[HEIGHT]
    y = carray(pointer(job[Y]), (rows, job[COLUMNS]), numpy.uint16)
    buffer = numpy.empty(job[COLUMNS], numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            decode_row(job, row, buffer)
            _rounded(buffer, y[row])
        finish(job_pointer)
