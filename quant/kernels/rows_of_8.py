"""Products of rows of packed codes with one row of activations, in vectors of 8 floats."""

from __future__ import annotations

import numpy
from numba import float32, njit, uint8

from quant.kernels.vectors import BLOCK, HAS_SHUFFLE, equal_steps, looked_up, masked_bit, masked_steps, row_dot
from quant.kernels.widths import by_width
from quant.kernels.windows import code_of

LOOKUP_BITS = (4,)  # widths whose codes may be indices into a table; other tables are decoded code by code

_FAST = {"reassoc", "contract", "nsz"}

# The order of 64 activations and what they are multiplied with, a row for each width from 2 to 4 bits.
_ORDERS, _FACTORS = numpy.zeros((3, 2 * BLOCK), numpy.int64), numpy.zeros((3, 2 * BLOCK), numpy.float32)
for _bits in (2, 3, 4):
    for _place in range(2 * BLOCK):
        _vector, _lane = divmod(_place, 8)
        _ORDERS[_bits - 2, _place] = code_of(_bits, 2 * BLOCK, 8, _vector, _lane)
        _FACTORS[_bits - 2, _place] = 2.0 ** -masked_bit(_bits, _vector, _lane)
_dot_shuffled, _dot_shuffled_1, _dot_shuffled_2, _dot_shuffled_4 = (row_dot(looked_up, 16, blocks) for blocks in (0, 1, 2, 4))

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


def _steps_of(bits: int):
    """Make `row_dot` for one width. Codes of 4 bits, and narrower ones in groups of a multiple of 64, are counted from 0, and
    `offsets` subtract the middle: this saves an instruction."""
    plain = row_dot(equal_steps(bits, 0 if bits == 4 else 2 ** (bits - 1)), 4 * bits)
    if bits > 4:
        return plain
    any_masked, one_masked, two_masked = (row_dot(masked_steps(bits), 8 * bits, blocks, 2 * BLOCK) for blocks in (0, 1, 2))

    @njit(nogil=True)
    def dot_steps(codes, x, lookup_planes, offsets, scales, groups, blocks):
        if blocks % 2:
            return plain(codes, x, lookup_planes, offsets, scales, groups, blocks)
        if blocks == 2:
            return one_masked(codes, x, lookup_planes, offsets, scales, groups, 1)
        if blocks == 4:
            return two_masked(codes, x, lookup_planes, offsets, scales, groups, 2)
        return any_masked(codes, x, lookup_planes, offsets, scales, groups, blocks // 2)

    return dot_steps


dot_steps = by_width(_steps_of)  # see row_dot


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
def masked(x, bits):  # float32 [columns], int64 -> float32 [columns]
    """Reorder and scale x for `masked_steps`."""
    out, order, factors = numpy.empty_like(x), _ORDERS[bits - 2], _FACTORS[bits - 2]
    for start in range(0, len(x), 2 * BLOCK):
        for place in range(2 * BLOCK):
            out[start + place] = x[start + order[place]] * factors[place]
    return out


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


@njit(nogil=True)
def prepared(x, bits, is_table, blocks):
    """The activations in the order in which `products` takes them, and the initial sums of each group.

    x: float32 [columns]; bits: of a code; is_table: whether codes are indices into a table; blocks: of 32 codes, in a group.
    Returns float32 [columns] and float32 [groups * 8].
    """
    is_masked = not is_table and bits <= 4 and blocks % 2 == 0
    middle = 1 << (bits - 1) if is_masked or (bits == 4 and not is_table) else 0
    offsets = _group_offsets(x, len(x) // (BLOCK * blocks), middle)
    if is_masked:
        return masked(x, bits), offsets
    if bits == 4:
        return ordered(x, 4 if is_table else 8), offsets
    return x, offsets


@njit(nogil=True)
def products(bits, is_table, codes, x, values, lookup_planes, offsets, scales, y, blocks, first, last):
    """Multiply the rows from `first` to before `last` with activations, into the same elements of y.

    codes: uint8 [rows, row_bytes]; x, offsets: as `prepared` makes them; values: float32 [2 ** bits]; lookup_planes: uint8
    [4, 32], see row_dot; scales: float32 [rows, groups]; y: float32 [rows].
    """
    groups = scales.shape[1]
    for row in range(first, last):
        if is_table:
            y[row] = dot_table(codes[row], x, values, lookup_planes, offsets, scales[row], groups, blocks)
        else:
            y[row] = dot_steps(bits, codes[row], x, lookup_planes, offsets, scales[row], groups, blocks)
