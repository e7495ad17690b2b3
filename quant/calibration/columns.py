"""Compiled loops that round the columns of a block in turn, and carry each change over to the columns of the block after it.

Rows do not depend on each other: a thread takes a strip of rows through all columns, so that what is carried stays in its core's
cache. Codes and values are computed as the grid's `encode` and dequantizing compute them, operation by operation: they are the
same to the bit.
"""

from __future__ import annotations

import numpy
import torch
from numba import carray, float32, int32, njit, uint8

from quant.compiled.threads import FIRST, Job, claim, compiled_loop, finish, pointer, run
from quant.tensor.grids import Grid, HalvesAwayGrid, HalvesUpGrid, TableGrid

STRIP = 64  # rows
HALVES_EVEN, HALVES_UP, HALVES_AWAY, TABLE = range(4)  # how linear steps are rounded, or that values are those of a table

# Places in a job of quant.compiled.threads: addresses (0: none), and sizes. ENTRIES: of the table.
(LEFT, COUPLING, CHANGES, CODES, VALUES, PLACES, GROUP_OF, SCALES, INVERSES, ZEROS, TABLE_VALUES, TABLE_CODES, BOUNDARIES, COUNT,
 ROWS, GROUPS, COLUMNS, ROUNDING, LOWEST, HIGHEST, OFFSET, ENTRIES, FIELDS) = range(FIRST, FIRST + 23)


def round_in_turn(left: torch.Tensor, coupling: torch.Tensor, places: torch.Tensor, columns: Columns, codes: torch.Tensor,
                  values: torch.Tensor | None = None) -> torch.Tensor:
    """Visit the columns of a block in turn and round each; what it changes by is carried over to those after it by `coupling`.

    left: [n, rows], changed in place; coupling: [n, n]; places: int64 [n], the number of each column; codes: uint8 [columns,
    rows], written. All contiguous but for the coupling.
    Without `values`, left holds weights in float64, and the change is (rounded - weight) / coupling[j, j]. With them, float32
    [columns, rows], left is a pull in float32: each value moves by left / coupling[j, j] before it is rounded, and the change is
    that from the new value to the old one.
    Returns all changes, [n, rows], of left's dtype.
    """
    changes, coupling = torch.empty_like(left), coupling.contiguous()
    job = Job.from_buffer_copy(columns.job)
    addresses = (left, coupling, changes, codes, values, places)
    for place, tensor in enumerate(addresses, LEFT):
        job[place] = 0 if tensor is None else tensor.data_ptr()
    job[COUNT] = len(left)
    run(_FEEDBACK if values is None else _DESCENT, job)
    return changes


class Columns:
    """A grid and the scales of a weight's columns, as the loops read them. scales, inverses: 1 / scales, and zeros, if any:
    float32 [groups, rows], contiguous; group_of: the group of every column."""

    def __init__(self, grid: Grid, scales: torch.Tensor, inverses: torch.Tensor, zeros: torch.Tensor | None, group_of: list[int]):
        table = (grid.ordered, grid.codes, grid.boundaries) if isinstance(grid, TableGrid) else (None, None, None)
        self._held = torch.tensor(group_of), scales, inverses, zeros, *table  # kept alive: a job has only their addresses
        job = Job()
        for place, tensor in enumerate(self._held, GROUP_OF):
            job[place] = 0 if tensor is None else tensor.data_ptr()
        (job[GROUPS], job[ROWS]), job[COLUMNS] = scales.shape, len(group_of)
        if isinstance(grid, TableGrid):
            job[ROUNDING], job[ENTRIES] = TABLE, len(grid.ordered)
        else:
            job[ROUNDING] = HALVES_UP if isinstance(grid, HalvesUpGrid) else HALVES_AWAY if isinstance(grid, HalvesAwayGrid) \
                else HALVES_EVEN
            job[LOWEST], job[HIGHEST], job[OFFSET] = grid.lowest, grid.highest, grid.offset
        self.job = bytes(job)


@njit(nogil=True)
def _round(job, steps, codes):  # int64 [FIELDS], float32 [n], uint8 [n]
    """Round weights in steps of their scale to the nearest codes, and replace the steps by the values of the codes."""
    rounding, lowest, highest, offset = job[ROUNDING], float32(job[LOWEST]), float32(job[HIGHEST]), float32(job[OFFSET])
    if rounding == TABLE:
        entries = job[ENTRIES]
        ordered = carray(pointer(job[TABLE_VALUES]), entries, numpy.float32)
        code_of = carray(pointer(job[TABLE_CODES]), entries, numpy.uint8)
        boundaries = carray(pointer(job[BOUNDARIES]), entries - 1, numpy.float32)
        below = numpy.zeros(STRIP, numpy.int32)
        for boundary in boundaries:
            for i in range(len(steps)):
                below[i] += int32(boundary < steps[i])
        for i in range(len(steps)):
            codes[i], steps[i] = code_of[below[i]], ordered[below[i]]
        return
    if rounding == HALVES_EVEN:
        for i in range(len(steps)):
            steps[i] = numpy.rint(steps[i]) + offset
    elif rounding == HALVES_UP:
        for i in range(len(steps)):
            steps[i] = numpy.trunc(steps[i] + (offset + float32(0.5)))
    else:
        for i in range(len(steps)):
            size = abs(steps[i])
            whole = numpy.floor(size)
            steps[i] = numpy.copysign(whole + numpy.floor(float32(2) * (size - whole)), steps[i]) + offset
    for i in range(len(steps)):
        level = min(max(steps[i], lowest), highest)
        codes[i], steps[i] = uint8(level), level - offset


@njit(nogil=True, error_model="numpy")  # Python's would look for a division by 0 at every step
def _visit(job_pointer, job, left, coupling, changes):
    """See round_in_turn. left, changes: [COUNT, ROWS], coupling: [COUNT, COUNT], of one dtype."""
    count, rows = left.shape
    codes = carray(pointer(job[CODES]), (job[COLUMNS], rows), numpy.uint8)
    values = carray(pointer(job[VALUES]), (job[COLUMNS] if job[VALUES] else 0, rows), numpy.float32)
    places = carray(pointer(job[PLACES]), count, numpy.int64)
    group_of = carray(pointer(job[GROUP_OF]), job[COLUMNS], numpy.int64)
    scales = carray(pointer(job[SCALES]), (job[GROUPS], rows), numpy.float32)
    inverses = carray(pointer(job[INVERSES]), (job[GROUPS], rows), numpy.float32)
    zeros = carray(pointer(job[ZEROS]), (job[GROUPS] if job[ZEROS] else 0, rows), numpy.float32)
    buffer = numpy.empty(STRIP, numpy.float32)
    while True:
        start = claim(job_pointer) * STRIP
        if start >= rows:
            break
        width = min(rows, start + STRIP) - start
        steps = buffer[:width]
        for j in range(count):
            column, weights, change = places[j], left[j, start : start + width], changes[j, start : start + width]
            group, diagonal = group_of[column], coupling[j, j]
            scale, inverse = scales[group, start : start + width], inverses[group, start : start + width]
            if len(values):
                old = values[column, start : start + width]
                for i in range(width):
                    steps[i] = old[i] + weights[i] / diagonal if diagonal else old[i]  # 0: no input, nothing pulls
            else:
                for i in range(width):
                    steps[i] = float32(weights[i])
            if len(zeros):
                zero = zeros[group, start : start + width]
                for i in range(width):
                    steps[i] = (steps[i] - zero[i]) * inverse[i]
            else:
                for i in range(width):
                    steps[i] *= inverse[i]
            _round(job, steps, codes[column, start : start + width])
            for i in range(width):
                steps[i] *= scale[i]
            if len(zeros):
                zero = zeros[group, start : start + width]
                for i in range(width):
                    steps[i] += zero[i]
            if len(values):
                old = values[column, start : start + width]
                for i in range(width):
                    change[i] = old[i] - steps[i]
                    old[i] = steps[i]
            else:
                for i in range(width):
                    change[i] = (steps[i] - weights[i]) / diagonal
            for k in range(j + 1, count):
                later, factor = left[k, start : start + width], coupling[j, k]
                for i in range(width):
                    later[i] += factor * change[i]
        finish(job_pointer)


@compiled_loop
def _feedback(job_pointer):
    """Round weights with feedback, in float64."""
    job = carray(job_pointer, FIELDS)
    count, rows = job[COUNT], job[ROWS]
    left = carray(pointer(job[LEFT]), (count, rows), numpy.float64)
    coupling = carray(pointer(job[COUPLING]), (count, count), numpy.float64)
    _visit(job_pointer, job, left, coupling, carray(pointer(job[CHANGES]), (count, rows), numpy.float64))


@compiled_loop
def _descend(job_pointer):
    """Move values by what pulls them and round them, in float32."""
    job = carray(job_pointer, FIELDS)
    count, rows = job[COUNT], job[ROWS]
    left = carray(pointer(job[LEFT]), (count, rows), numpy.float32)
    coupling = carray(pointer(job[COUPLING]), (count, count), numpy.float32)
    _visit(job_pointer, job, left, coupling, carray(pointer(job[CHANGES]), (count, rows), numpy.float32))


_FEEDBACK, _DESCENT = _feedback.address, _descend.address
