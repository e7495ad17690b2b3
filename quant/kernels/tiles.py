"""Decodes tiles of a weight for the products of a prompt, to float32 or to bfloat16 (quant.kernels.prompts).

The decoder of a row's blocks is chosen once a row: chosen at every block, as for the rows that an embedding gathers
(quant.kernels.loops), it takes up to four times as long. Half-bytes are looked up in a table, linear steps too.
"""

from __future__ import annotations

import numpy
from numba import carray, float32, njit, uint16, uint32

from quant.kernels.loops import (
    BITS,
    CODES,
    COLUMNS,
    DECODER,
    EQUAL_STEPS,
    FIELDS,
    GROUP_SIZE,
    GROUPS,
    HEIGHT,
    LOOKUP_PLANES,
    ROW_BYTES,
    ROWS,
    SCALES,
    ZEROS,
    Y,
    decode_row,
)
from quant.kernels.threads import claim, compiled_loop, finish, pointer
from quant.kernels.vectors import BLOCK, HAS_SHUFFLE, block_decode, equal_steps, looked_up


def _decoder_of_rows(decode_block):
    @njit(nogil=True)
    def decode_row(job, row, out):  # int64 [FIELDS], int64, float32 [columns]
        groups, blocks = job[GROUPS], job[GROUP_SIZE] // BLOCK
        codes = carray(pointer(job[CODES] + row * job[ROW_BYTES]), job[ROW_BYTES], numpy.uint8)
        scales = carray(pointer(job[SCALES] + 4 * row * groups), groups, numpy.float32)
        zeros = carray(pointer(job[ZEROS] + 4 * row * groups), groups if job[ZEROS] else 0, numpy.float32)
        lookup_planes = carray(pointer(job[LOOKUP_PLANES]), 128, numpy.uint8)
        for group in range(groups):
            scale, zero = scales[group], zeros[group] if len(zeros) else float32(0)
            for block in range(group * blocks, (group + 1) * blocks):
                decode_block(codes, out, lookup_planes, block, scale, zero)

    return decode_row


_row2, _row3, _row5, _row6, _row7, _row8 = (
    _decoder_of_rows(block_decode(equal_steps(bits, 2 ** (bits - 1)), 4 * bits, 1)) for bits in (2, 3, 5, 6, 7, 8)
)
_row4 = _decoder_of_rows(block_decode(looked_up, 16, 4) if HAS_SHUFFLE else block_decode(equal_steps(4, 8), 16, 8))


@njit(nogil=True)
def _decode(job, row, out):  # int64 [FIELDS], int64, float32 [columns]
    """Decode one row of a job's weight."""
    bits, size, is_linear = job[BITS], job[GROUP_SIZE], job[DECODER] == EQUAL_STEPS
    if size % BLOCK or job[GROUPS] * size != job[COLUMNS] or not (is_linear or (bits == 4 and HAS_SHUFFLE)):
        decode_row(job, row, out)
    elif bits == 8:
        _row8(job, row, out)
    elif bits == 4:
        _row4(job, row, out)
    elif bits == 2:
        _row2(job, row, out)
    elif bits == 3:
        _row3(job, row, out)
    elif bits == 5:
        _row5(job, row, out)
    elif bits == 6:
        _row6(job, row, out)
    else:
        _row7(job, row, out)


@njit(nogil=True)
def _rounded(values, out):  # float32 [n], uint16 [n]
    """Round finite numbers to bfloat16: to nearest, ties to even."""
    bits = values.view(numpy.uint32)
    for j in range(len(out)):
        out[j] = uint16((bits[j] + uint32(0x7FFF) + ((bits[j] >> uint32(16)) & uint32(1))) >> uint32(16))


@compiled_loop
def to_float32(job_pointer):
    """Decode the first ROWS rows of a job's weight to float32, at Y."""
    job = carray(job_pointer, FIELDS)
    rows, height = job[ROWS], job[HEIGHT]
    y = carray(pointer(job[Y]), (rows, job[COLUMNS]), numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            _decode(job, row, y[row])
        finish(job_pointer)


@compiled_loop
def to_bfloat16(job_pointer):
    """Decode the first ROWS rows of a job's weight to bfloat16, at Y."""
    job = carray(job_pointer, FIELDS)
    rows, height = job[ROWS], job[HEIGHT]
    y = carray(pointer(job[Y]), (rows, job[COLUMNS]), numpy.uint16)
    buffer = numpy.empty(job[COLUMNS], numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            _decode(job, row, buffer)
            _rounded(buffer, y[row])
        finish(job_pointer)
