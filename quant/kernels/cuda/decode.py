"""Reads packed codes and turns them into numbers on the grid, for every kernel of this folder.

Codes come in pieces, runs of PIECE neighbouring codes of a row that one thread takes and that share a scale. There are two ways
to read them, which quant.kernels.cuda.matmul chooses:

    WORDS       pieces of 8 codes (16 of 2 bits, 4 of 5 to 7): one word of 32 bits, two of 8 bits, and of 3 and 5 to 7 bits the
                word in which the piece begins and its neighbour
    otherwise   one byte (8 bits) or two for each code: for rows, groups and addresses that words do not fit

A code is put into the low bits of the float 2**23, which is then subtracted, exactly: faster than a conversion. A code of a word
stays where it is. It then counts 2**shift times, for which `weights_at` makes up, so that not every code is shifted on its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

BASE = tl.constexpr(8388608.0)  # that float


@triton.jit
def steps_at(
    codes, values, rows, start, out_features, row_length, one, BITS: tl.constexpr, OFFSET: tl.constexpr, WORDS: tl.constexpr,
    PIECES: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Decode PIECES * PIECE codes from column `start` to their values on the grid, over `weights_at`: float32 [rows, PIECES,
    PIECE], finite past the end. codes: uint8; row_length: bytes of a row; values: of a table, or None; one: bits of 2.0**23."""
    lowest = OFFSET
    EACH: tl.constexpr = 32 // BITS if 32 % BITS == 0 else PIECE  # codes of the bits that `_words` returns
    if WORDS:
        words = codes.to(tl.pointer_type(tl.int32), bitcast=True)
        word = _words(words, rows, start, out_features, row_length // 4, BITS, PIECES, PIECE)
        number = tl.arange(0, PIECE)[None, None, :] % EACH
        half = tl.where(number < EACH // 2, word, word >> (EACH // 2 * BITS))  # known when compiling, as all that follows
        shift = number % (EACH // 2) * BITS
        if values is None:
            code = half & (((1 << BITS) - 1) << shift)
            lowest = OFFSET * (1 << shift).to(tl.float32)
        else:
            code = (half >> shift) & ((1 << BITS) - 1)
    else:
        places = codes + rows[:, None, None] * row_length
        is_row = (rows < out_features)[:, None, None]
        column = start + tl.arange(0, PIECES)[None, :, None] * PIECE + tl.arange(0, PIECE)[None, None, :]
        byte = column * BITS // 8
        code = tl.load(places + byte, mask=is_row & (byte < row_length), other=0).to(tl.int32)
        if BITS < 8:  # a code may end in the byte after the one where it begins
            second = tl.load(places + byte + 1, mask=is_row & (byte + 1 < row_length), other=0).to(tl.int32)
            code = ((code | (second << 8)) >> (column * BITS % 8)) & ((1 << BITS) - 1)
    if values is not None:
        # A gather, not a load: in the tiles' loop Triton would stage the load through shared memory, value by value.
        steps = tl.reshape(tl.gather(values, tl.reshape(code, (code.numel,)), 0), code.shape)
    else:
        steps = (code | one).to(tl.float32, bitcast=True) - (BASE + lowest)
    return steps


@triton.jit
def weights_at(IS_TABLE: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr, PIECE: tl.constexpr):
    """What a step of `steps_at` counts too often, inverted: float32 [1, 1, PIECE], powers of two, so that nothing is rounded."""
    EACH: tl.constexpr = 32 // BITS if 32 % BITS == 0 else PIECE
    shift = tl.zeros((1, 1, PIECE), tl.int32)
    if WORDS and not IS_TABLE:
        shift += tl.arange(0, PIECE)[None, None, :] % (EACH // 2) * BITS
    return ((127 - shift) << 23).to(tl.float32, bitcast=True)  # 127 - shift is the exponent


@triton.jit
def _words(codes, rows, start, out_features, row_length, BITS: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    """The bits that hold every code, int32 [rows, PIECES, PIECE] (of a piece in one or two words: its own bits, from bit 0)."""
    if 32 % BITS == 0:
        LENGTH: tl.constexpr = PIECE * BITS // 32
        word = start * BITS // 32 + tl.arange(0, PIECES)[None, :, None] * LENGTH + tl.arange(0, LENGTH)[None, None, :]
        is_there = (rows < out_features)[:, None, None] & (word < row_length)
        found = tl.load(codes + rows[:, None, None] * row_length + word, mask=is_there, other=0)
        found = tl.broadcast_to(found[:, :, :, None], (found.shape[0], PIECES, LENGTH, 32 // BITS))
        bits = tl.reshape(found, (found.shape[0], PIECES, PIECE))
    else:
        bit = (start + tl.arange(0, PIECES) * PIECE) * BITS
        word, shift = bit // 32, (bit % 32)[None, :]
        places = codes + rows[:, None] * row_length + word[None, :]
        is_row = (rows < out_features)[:, None]
        first = tl.load(places, mask=is_row & (word < row_length)[None, :], other=0).to(tl.uint32, bitcast=True)
        second = tl.load(places + 1, mask=is_row & (word + 1 < row_length)[None, :], other=0).to(tl.uint32, bitcast=True)
        # By 32, to 0, where the first word has it all.
        found = (first >> shift.to(tl.uint32)) | (second.to(tl.uint64) << (32 - shift).to(tl.uint64)).to(tl.uint32)
        bits = tl.broadcast_to(found.to(tl.int32, bitcast=True)[:, :, None], (found.shape[0], PIECES, PIECE))
    return bits


@triton.jit
def parameters_at(
    parameters, rows, start, out_features, in_features, stride, GROUP: tl.constexpr, PIECES: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """Load the scale or zero of every piece from column `start`, float32 [rows, PIECES]; 0 past the end."""
    column = start + tl.arange(0, PIECES) * PIECE
    group = column // GROUP if GROUP else column * 0
    is_there = (rows < out_features)[:, None] & (column < in_features)[None, :]
    return tl.load(parameters + rows[:, None] * stride + group[None, :], mask=is_there, other=0.0).to(tl.float32)
