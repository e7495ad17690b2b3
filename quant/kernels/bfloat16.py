"""Decodes rows of a weight to bfloat16, for products that round (quant.kernels.prompts)."""

from __future__ import annotations

import numpy
from numba import carray, njit, uint16, uint32

from quant.kernels.loops import COLUMNS, FIELDS, HEIGHT, ROWS, Y, decode_row
from quant.kernels.threads import claim, compiled_loop, finish, pointer


@njit(nogil=True)
def _rounded(values, out):  # float32 [n], uint16 [n]
    """Round finite numbers to nearest, ties to even."""
    bits = values.view(numpy.uint32)
    for j in range(len(out)):
        out[j] = uint16((bits[j] + uint32(0x7FFF) + ((bits[j] >> uint32(16)) & uint32(1))) >> uint32(16))


@compiled_loop
def decode(job_pointer):
    """Decode the first ROWS rows of a job's weight to bfloat16, at Y."""
    job = carray(job_pointer, FIELDS)
    rows, columns, height = job[ROWS], job[COLUMNS], job[HEIGHT]
    y = carray(pointer(job[Y]), (rows, columns), numpy.uint16)
    buffer = numpy.empty(columns, numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            decode_row(job, row, buffer)
            _rounded(buffer, y[row])
        finish(job_pointer)
