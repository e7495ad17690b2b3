"""Which code lands in which lane of a vector, where a block of codes is cut into windows of 32 bits.

A window holds as many codes, a power of two, as fit 32 bits. Vector k of the block has code k of every window. Where a block has
fewer windows than a vector has lanes, several lanes share a window, each with its own codes.
"""

from __future__ import annotations


def held(bits: int) -> int:
    """Codes in a window."""
    return 1 << ((32 // bits).bit_length() - 1)


def code_of(bits: int, size: int, lanes: int, vector: int, lane: int) -> int:
    """Number, within a block of `size` codes, of the code that lands in a lane of a vector."""
    windows, vectors = size // held(bits), size // lanes
    return lane % windows * held(bits) + lane // windows * vectors + vector


def window_start(bits: int, code: int) -> int:
    """Number of the bit, within the block, with which the window of a code begins."""
    return code // held(bits) * held(bits) * bits


def first_bit(bits: int, code: int) -> int:
    """Number of the code's first bit, counted from the first byte of its window."""
    return code * bits - window_start(bits, code) // 8 * 8
