"""Writes some rows of a weight to the GPU's memory as floats, for torch's own product of many rows of activations."""

from __future__ import annotations

import triton
import triton.language as tl

from quant.kernels.cuda.decode import parameters_at, steps_at, weights_at


@triton.jit
def dequantize_rows(
    codes, scales, zeros, table, y, first, out_features, in_features, row_length, scale_stride, one,
    GROUP: tl.constexpr, PIECE: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr, WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_N rows from row `first` of the weight, up to out_features, PIECES * PIECE columns of each: y [rows, in]."""
    rows = (first + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    start = tl.program_id(1) * PIECES * PIECE
    values = None if table is None else tl.load(table + tl.arange(0, 1 << BITS))
    steps = steps_at(codes, values, rows, start, out_features, row_length, one, BITS, OFFSET, WORDS, PIECES, PIECE)
    scale = parameters_at(scales, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
    weights = steps * weights_at(values is not None, WORDS, BITS, PIECE) * scale[:, :, None]
    if zeros is not None:
        lows = parameters_at(zeros, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
        weights += lows[:, :, None]
    columns = start + tl.arange(0, PIECES)[None, :, None] * PIECE + tl.arange(0, PIECE)[None, None, :]
    is_there = (rows < out_features)[:, None, None] & (columns < in_features)
    tl.store(y + (rows - first)[:, None, None] * in_features + columns, weights, mask=is_there)
