"""Batches of activations, as the products of bands take them: up to eight rows each.

A batch has eight rows, the last one 8, 4 or 2, of which some may repeat the last row given. In memory it is followed by the next.
Each ends with the sums of the activations of each group, float32 [groups, rows], which are written where the weight has zeros.
"""

from __future__ import annotations

import numpy
from numba import carray, njit

from quant.compiled.threads import pointer
from quant.kernels.frame import COLUMNS, COUNT, GROUPS, X, group_sums, scales_and_zeros

BATCH = 8  # rows that are multiplied together, at most


@njit(nogil=True)
def batches_of(job):
    """Number of batches."""
    return (job[COUNT] + BATCH - 1) // BATCH


@njit(nogil=True)
def rows_of(job, batch):
    """Rows of a batch, those that are repeated among them."""
    rest = job[COUNT] - batch * BATCH
    return 8 if rest > 4 else 4 if rest > 2 else 2


@njit(nogil=True)
def given_to(job, batch):
    """Address of the activations of a batch, and how many rows are given."""
    return job[X] + 4 * job[COLUMNS] * batch * BATCH, min(BATCH, job[COUNT] - batch * BATCH)


@njit(nogil=True)
def start_of(job, batch, row_bytes):
    """Where a batch begins, with row_bytes for each row beside the sums; the first begins at 0."""
    return batch * BATCH * (row_bytes + 4 * job[GROUPS])


@njit(nogil=True)
def sums_of(job, batch, row_bytes, batches):
    """The sums of a batch, float32 [groups, rows]. batches: address of the first."""
    address = batches + start_of(job, batch, row_bytes) + rows_of(job, batch) * row_bytes
    return carray(pointer(address), (job[GROUPS], rows_of(job, batch)), numpy.float32)


@njit(nogil=True)
def write_sums(job, batch, row_bytes, batches):
    """Write the sums of a batch, where the weight has zeros."""
    if len(scales_and_zeros(job)[1]):
        address, given = given_to(job, batch)
        x, out = carray(pointer(address), (given, job[COLUMNS]), numpy.float32), sums_of(job, batch, row_bytes, batches)
        for row in range(out.shape[1]):
            out[:, row] = group_sums(x[min(row, given - 1)], job[GROUPS])


def by_rows(make):
    """Make a function of (rows, *arguments) that calls make(rows), for the numbers of rows that a batch can have."""
    of_8, of_4, of_2 = (make(rows) for rows in (8, 4, 2))

    @njit(nogil=True)
    def chosen(rows, *arguments):
        if rows == 8:
            of_8(*arguments)
        elif rows == 4:
            of_4(*arguments)
        else:
            of_2(*arguments)

    return chosen
