"""Products of rows of packed codes with one row of activations, in vectors of 16 floats (AVX-512)."""

from __future__ import annotations

import numpy
from numba import njit

from quant.kernels.vectors import BLOCK
from quant.kernels.wide import LANES, code_of, rows_dot

LOOKUP_BITS = (2, 3, 4, 5)  # widths whose codes may be indices into a table; other tables are decoded code by code

_FAST = {"reassoc", "contract", "nsz"}
# The order of a block's activations, in a row for each size of a block (32 codes, then 64) and each width from 2 bits.
_ORDERS = numpy.zeros((2, 7, 2 * BLOCK), numpy.int64)
for _large in (0, 1):
    for _bits in range(2, 9):
        for _place in range(BLOCK << _large):
            _ORDERS[_large, _bits - 2, _place] = code_of(_bits, BLOCK << _large, *divmod(_place, LANES))

# Three functions for each width: groups of 64 codes, of a multiple of 64, and of a multiple of 32.
_single2, _single3, _single4, _single5, _single6, _single7, _single8 = (rows_dot(bits, 64, True) for bits in range(2, 9))
_even2, _even3, _even4, _even5, _even6, _even7, _even8 = (rows_dot(bits, 64, False) for bits in range(2, 9))
_any2, _any3, _any4, _any5, _any6, _any7, _any8 = (rows_dot(bits, 32, False) for bits in range(2, 9))


@njit(nogil=True, fastmath=_FAST)
def prepared(x, bits, is_table, blocks):
    """The activations in the order in which `products` takes them, on a boundary of 64 bytes, and no sums to start with.

    x: float32 [columns]; bits: of a code; is_table: not used here; blocks: of 32 codes, in a group. Returns float32 [columns]
    and float32 [0].
    """
    buffer = numpy.empty(len(x) + LANES, numpy.float32)
    start = (-buffer.ctypes.data % 64) // 4  # a vector that crosses a cache line takes two reads
    out, large = buffer[start : start + len(x)], 1 if blocks % 2 == 0 else 0
    size, order = BLOCK << large, _ORDERS[large, bits - 2]
    for block in range(0, len(x), size):
        for place in range(size):
            out[block + place] = x[block + order[place]]
    return out, buffer[:0]


@njit(nogil=True)
def products(bits, is_table, codes, x, values, lookup_planes, offsets, scales, y, blocks, first, last):
    """Multiply the rows from `first` to before `last` with activations, into the same elements of y.

    codes: uint8 [rows, row_bytes]; x: as `prepared` makes it; values: float32 [16], at 5 bits [32]: what each code stands for,
    repeated; scales: float32 [rows, groups]; y: float32 [rows]; is_table, lookup_planes and offsets: not used here.
    """
    row_bytes, groups = codes.shape[1], scales.shape[1]
    if blocks == 2:
        if bits == 2:
            _single2(codes, x, values, scales, y, row_bytes, groups, 1, first, last)
        elif bits == 3:
            _single3(codes, x, values, scales, y, row_bytes, groups, 1, first, last)
        elif bits == 4:
            _single4(codes, x, values, scales, y, row_bytes, groups, 1, first, last)
        elif bits == 5:
            _single5(codes, x, values, scales, y, row_bytes, groups, 1, first, last)
        elif bits == 6:
            _single6(codes, x, values, scales, y, row_bytes, groups, 1, first, last)
        elif bits == 7:
            _single7(codes, x, values, scales, y, row_bytes, groups, 1, first, last)
        else:
            _single8(codes, x, values, scales, y, row_bytes, groups, 1, first, last)
    elif blocks % 2 == 0:
        if bits == 2:
            _even2(codes, x, values, scales, y, row_bytes, groups, blocks // 2, first, last)
        elif bits == 3:
            _even3(codes, x, values, scales, y, row_bytes, groups, blocks // 2, first, last)
        elif bits == 4:
            _even4(codes, x, values, scales, y, row_bytes, groups, blocks // 2, first, last)
        elif bits == 5:
            _even5(codes, x, values, scales, y, row_bytes, groups, blocks // 2, first, last)
        elif bits == 6:
            _even6(codes, x, values, scales, y, row_bytes, groups, blocks // 2, first, last)
        elif bits == 7:
            _even7(codes, x, values, scales, y, row_bytes, groups, blocks // 2, first, last)
        else:
            _even8(codes, x, values, scales, y, row_bytes, groups, blocks // 2, first, last)
    elif bits == 2:
        _any2(codes, x, values, scales, y, row_bytes, groups, blocks, first, last)
    elif bits == 3:
        _any3(codes, x, values, scales, y, row_bytes, groups, blocks, first, last)
    elif bits == 4:
        _any4(codes, x, values, scales, y, row_bytes, groups, blocks, first, last)
    elif bits == 5:
        _any5(codes, x, values, scales, y, row_bytes, groups, blocks, first, last)
    elif bits == 6:
        _any6(codes, x, values, scales, y, row_bytes, groups, blocks, first, last)
    elif bits == 7:
        _any7(codes, x, values, scales, y, row_bytes, groups, blocks, first, last)
    else:
        _any8(codes, x, values, scales, y, row_bytes, groups, blocks, first, last)
