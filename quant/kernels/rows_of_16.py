"""Products of rows of packed codes with one row of activations, in vectors of 16 floats (AVX-512)."""

from __future__ import annotations

import numpy
from numba import njit

from quant.kernels.vectors import BLOCK
from quant.kernels.wide import LANES, rows_dot
from quant.kernels.widths import by_width
from quant.kernels.windows import code_of

LOOKUP_BITS = (2, 3, 4, 5)  # widths whose codes may be indices into a table; other tables are decoded code by code

_FAST = {"reassoc", "contract", "nsz"}
# The order of a block's activations, in a row for each size of a block (32 codes, then 64) and each width from 2 bits.
_ORDERS = numpy.zeros((2, 7, 2 * BLOCK), numpy.int64)
for _large in (0, 1):
    for _bits in range(2, 9):
        for _place in range(BLOCK << _large):
            _ORDERS[_large, _bits - 2, _place] = code_of(_bits, BLOCK << _large, LANES, *divmod(_place, LANES))


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


def _products_of(bits: int):
    """Make `products` for one width: for groups of 32 codes, of 64, of 128, of another multiple of 64, and of another of 32."""
    of_32, of_64, of_128, of_even, of_any = (rows_dot(bits, *how) for how in ((32, 1), (64, 1), (64, 2), (64, 0), (32, 0)))

    @njit(nogil=True)
    def products(codes, x, values, scales, y, blocks, first, last):
        row_bytes, groups = codes.shape[1], scales.shape[1]
        if blocks == 1:
            of_32(codes, x, values, scales, y, row_bytes, groups, 1, first, last)
        elif blocks == 2:
            of_64(codes, x, values, scales, y, row_bytes, groups, 1, first, last)
        elif blocks == 4:
            of_128(codes, x, values, scales, y, row_bytes, groups, 2, first, last)
        elif blocks % 2 == 0:
            of_even(codes, x, values, scales, y, row_bytes, groups, blocks // 2, first, last)
        else:
            of_any(codes, x, values, scales, y, row_bytes, groups, blocks, first, last)

    return products


_products = by_width(_products_of)


@njit(nogil=True)
def products(bits, is_table, codes, x, values, lookup_planes, offsets, scales, y, blocks, first, last):
    """Multiply the rows from `first` to before `last` with activations, into the same elements of y.

    codes: uint8 [rows, row_bytes]; x: as `prepared` makes it; values: float32 [16], at 5 bits [32]: what each code stands for,
    repeated; scales: float32 [rows, groups]; y: float32 [rows]; is_table, lookup_planes and offsets: not used here.
    """
    _products(bits, codes, x, values, scales, y, blocks, first, last)
