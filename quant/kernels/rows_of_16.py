"""Products of rows of packed codes with one row of activations, in vectors of 16 floats (AVX-512)."""

from __future__ import annotations

import numpy
from numba import njit

from quant.kernels.vectors import BLOCK
from quant.kernels.wide import LANES, rows_dot
from quant.kernels.widths import by_number, by_width
from quant.kernels.windows import code_of, held

LOOKUP_BITS = (2, 3, 4, 5)  # widths whose codes may be indices into a table; other tables are decoded code by code

_FAST = {"reassoc", "contract", "nsz"}
_SIZES = (32, 64, 128, 256)  # of a block, in codes
# The order of a block's activations, in a row for each of these sizes and each width from 2 bits.
_ORDERS = numpy.zeros((len(_SIZES), 7, _SIZES[-1]), numpy.int64)
_LARGEST = numpy.array([0, 0, *(LANES * held(bits) for bits in range(2, 9))])  # codes of a block with a window for each lane
for _row, _size in enumerate(_SIZES):
    for _bits in range(2, 9):
        if _size <= _LARGEST[_bits]:
            for _place in range(_size):
                _ORDERS[_row, _bits - 2, _place] = code_of(_bits, _size, LANES, *divmod(_place, LANES))


@njit(nogil=True)
def _block_size(bits, columns, group):
    """Codes of a block. The largest takes up to a quarter less time, so it is taken where a row has whole blocks, and a group
    has whole blocks or a block whole groups. group: columns of a group, a multiple of 32."""
    largest = _LARGEST[bits]
    if columns % largest == 0 and (group % largest == 0 or largest % group == 0):
        return largest
    return 64 if group % 64 == 0 else 32


@njit(nogil=True, fastmath=_FAST)
def prepared(x, bits, is_table, blocks):
    """The activations in the order in which `products` takes them, on a boundary of 64 bytes, and no sums to start with.

    x: float32 [columns]; bits: of a code; is_table: not used here; blocks: of 32 codes, in a group. Returns float32 [columns]
    and float32 [0].
    """
    buffer = numpy.empty(len(x) + LANES, numpy.float32)
    start = (-buffer.ctypes.data % 64) // 4  # a vector that crosses a cache line takes two reads
    out, size = buffer[start : start + len(x)], _block_size(bits, len(x), BLOCK * blocks)
    order = _ORDERS[0, bits - 2]
    for row in range(1, len(_SIZES)):
        if size == _SIZES[row]:
            order = _ORDERS[row, bits - 2]
    for block in range(0, len(x), size):
        for place in range(size):
            out[block + place] = x[block + order[place]]
    return out, buffer[:0]


def _products_of(bits: int):
    """Make `products` for one width: by smaller blocks, and by the largest, in groups of some or with some groups in each."""
    largest = int(_LARGEST[bits])
    of_size = by_number(lambda size: rows_dot(bits, size, 0), [size for size in (64, 32) if size < largest])
    of_blocks = by_number(lambda blocks: rows_dot(bits, largest, blocks), (1, 2, 0))
    of_parts = by_number(lambda parts: rows_dot(bits, largest, 1, parts), [n for n in (2, 4, 8) if n * BLOCK <= largest])

    @njit(nogil=True)
    def products(codes, x, values, scales, y, blocks, first, last):
        row_bytes, groups, group = codes.shape[1], scales.shape[1], BLOCK * blocks
        size = _block_size(bits, len(x), group)
        if size < largest:
            of_size(size, codes, x, values, scales, y, row_bytes, groups, group // size, first, last)
        elif group < largest:
            parts = largest // group
            of_parts(parts, codes, x, values, scales, y, row_bytes, groups // parts, 1, first, last)
        else:
            some = group // largest
            of_blocks(some if some <= 2 else 0, codes, x, values, scales, y, row_bytes, groups, some, first, last)

    return products


_products = by_width(_products_of)


@njit(nogil=True)
def products(bits, is_table, codes, x, values, lookup_planes, offsets, scales, y, blocks, first, last):
    """Multiply the rows from `first` to before `last` with activations, into the same elements of y.

    codes: uint8 [rows, row_bytes]; x: as `prepared` makes it; values: float32 [16], at 5 bits [32]: what each code stands for,
    repeated; scales: float32 [rows, groups]; y: float32 [rows]; is_table, lookup_planes and offsets: not used here.
    """
    _products(bits, codes, x, values, scales, y, blocks, first, last)
