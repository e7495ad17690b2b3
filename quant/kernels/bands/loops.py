"""The loops over bands, strips and batches that all products of bands share."""

from __future__ import annotations

import numpy
from numba import carray, njit

from quant.compiled.threads import claim, finish, pointer
from quant.kernels.bands.batches import BATCH, batches_of, rows_of, sums_of
from quant.kernels.bands.transposing import ROWS, SIZE, by_group_of
from quant.kernels.frame import (
    BETWEEN,
    BITS,
    CODES,
    COLUMNS,
    COUNT,
    FIELDS,
    GROUPS,
    PREPARED,
    ROW_BYTES,
    product_of,
    scales_and_zeros,
)
from quant.kernels.prefetch import LINE

STRIP = 256  # columns that are decoded at a time: a strip of a band stays in the core's first cache
_STRIP_BYTES = STRIP * ROWS  # in bytes, or in words of at most as many
_FLOATS_OF_ROWS = 4 * ROWS  # bytes of a float for each row of a band


@njit(nogil=True)
def _aligned(size):
    """Memory of so many bytes on a boundary of a cache line: its address, and what must be kept alive."""
    memory = numpy.empty(size + LINE, numpy.uint8)
    return (memory.ctypes.data + LINE - 1) // LINE * LINE, memory


@njit(nogil=True)
def lines_of_block(job):
    """Cache lines of the codes of a block, of all rows of a band."""
    return ROWS * job[BITS] * SIZE // 8 // LINE


@njit(nogil=True)
def totals_of(totals, batch):
    """Address of the totals of a batch."""
    return totals + _FLOATS_OF_ROWS * BATCH * batch


_by_16_groups, _by_4_groups = by_group_of(16), by_group_of(4)


@njit(nogil=True)
def _by_group(numbers, row, height, target):
    """Numbers of a band's rows, float32 [rows, groups], to an address, as float32 [groups, 32]: those of all rows together."""
    groups, done = numbers.shape[1], 0
    out, row_bytes = carray(pointer(target), (groups, ROWS), numpy.float32), 4 * groups
    while height == ROWS and done + 4 <= groups:
        width = 16 if done + 16 <= groups else 4
        for first in (0, ROWS // 2):
            start = numbers.ctypes.data + (row + first) * row_bytes + 4 * done
            if width == 16:
                _by_16_groups(start, row_bytes, target + _FLOATS_OF_ROWS * done + 4 * first, ROWS * row_bytes)
            else:
                _by_4_groups(start, row_bytes, target + _FLOATS_OF_ROWS * done + 4 * first, ROWS * row_bytes)
        done += width
    for group in range(done, groups):
        for place in range(ROWS):
            out[group, place] = numbers[row + place, group] if place < height else 0


def products_of(row_bytes_of, prepare_batch, multiply_strip):
    """Make the function that runs a job (quant.kernels.frame).

    row_bytes_of(columns): bytes of a row of activations in a batch, without sums. prepare_batch(job, batch, batches) writes one,
    where `batches` is the address of the first. multiply_strip(job, batches, strip, codes, scales, totals, ahead, first, groups,
    blocks) decodes the codes of a strip, which has `groups` of so many blocks from the column `first` on, and adds its products
    to the totals, float32 [rows of all batches, 32]; strip: scratch; scales: float32 [groups, 32]; ahead: codes to ask for.
    """

    @njit(nogil=True)
    def prepare(job):
        """The address of the batches, which another job may have prepared, that of scratch, and what must be kept alive."""
        count, batches, kept = batches_of(job), job[PREPARED], numpy.empty(0, numpy.uint8)
        if not batches:
            batches, kept = _aligned(count * BATCH * (row_bytes_of(job[COLUMNS]) + 4 * job[GROUPS]))
            for batch in range(count):
                prepare_batch(job, batch, batches)
        size = _STRIP_BYTES + _FLOATS_OF_ROWS * (2 * job[GROUPS] + BATCH * count) + ROWS * job[ROW_BYTES]
        scratch, memory = _aligned(size)
        return batches, scratch, kept, memory

    @njit(nogil=True)
    def add_zeros(job, batches, zeros, totals):
        """Add the zeros of a band's rows, float32 [groups, 32], times the sums of the activations."""
        for batch in range(batches_of(job)):
            sums = sums_of(job, batch, row_bytes_of(job[COLUMNS]), batches)
            for row in range(rows_of(job, batch)):
                total = totals[batch * BATCH + row]
                for group in range(len(zeros)):
                    of_rows, factor = zeros[group], sums[group, row]
                    for place in range(ROWS):
                        total[place] += of_rows[place] * factor

    @njit(nogil=True)
    def multiply(job, given, y, start, end):
        batches, strip = given[0], given[1]
        columns, groups, row_bytes, bits = job[COLUMNS], job[GROUPS], job[ROW_BYTES], job[BITS]
        size, of_scales, of_zeros = columns // groups, *scales_and_zeros(job)
        scales = strip + _STRIP_BYTES
        zeros = scales + _FLOATS_OF_ROWS * groups
        totals_at = zeros + _FLOATS_OF_ROWS * groups
        totals = carray(pointer(totals_at), (BATCH * batches_of(job), ROWS), numpy.float32)
        for row in range(start, end, ROWS):
            height, codes = min(ROWS, end - row), job[CODES] + row * row_bytes
            ahead = codes + (ROWS if row + ROWS < end else ROWS + job[BETWEEN]) * row_bytes
            if height < ROWS:  # nothing behind the codes may be read
                found = carray(pointer(codes), height * row_bytes, numpy.uint8)
                codes = totals_at + 4 * totals.size
                whole = carray(pointer(codes), ROWS * row_bytes, numpy.uint8)
                whole[: len(found)] = found
                whole[len(found) :] = 0
            _by_group(of_scales, row, height, scales)
            totals[:] = 0
            first = 0
            while first < columns:  # a strip has some whole groups, or a part of one
                group = first // size
                some = max(1, min(STRIP // size, groups - group))
                blocks = min(size, STRIP, (group + 1) * size - first) // SIZE
                multiply_strip(job, batches, strip, codes + first * bits // 8, scales + _FLOATS_OF_ROWS * group, totals_at,
                               ahead + ROWS * first * bits // 8, first, some, blocks)
                first += some * blocks * SIZE
            if len(of_zeros):
                _by_group(of_zeros, row, height, zeros)
                add_zeros(job, batches, carray(pointer(zeros), (groups, ROWS), numpy.float32), totals)
            for i in range(job[COUNT]):
                y[i, row : row + height] = totals[i, :height]

    return product_of(prepare, multiply)


def preparation_of(prepare_batch):
    """Make the function that runs a job which prepares the COUNT rows at X, to PREPARED; a part has a batch of rows."""

    @njit(nogil=True)
    def run(job_pointer):
        job = carray(job_pointer, FIELDS)
        while True:
            batch = claim(job_pointer)
            if batch >= batches_of(job):
                break
            prepare_batch(job, batch, job[PREPARED])
            finish(job_pointer)

    return run
