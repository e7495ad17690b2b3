"""The product for some tens of rows of activations, on the tensor cores: a tile's codes are decoded while it is multiplied.

A tile's weights are computed in float32 and rounded to the activations' dtype, as in the reference; the sums are float32. Equal
steps of a row that share one scale are multiplied as they are, and the sum by the scale: nothing is rounded. The weight is the
dot's left side, of which tensor cores take 64 rows at a time, and the activations its right, of which 8 are enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quant.kernels.cuda.decode import parameters_at, steps_at, weights_at


@triton.jit
def tile_product(
    x, codes, scales, zeros, table, bias, y, count, out_features, in_features, row_length, scale_stride, part, one,
    GROUP: tl.constexpr, PIECE: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr, WORDS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N outputs of ROWS rows of activations, PIECES * PIECE columns at a time, in `part` columns of a row.

    Program (n, s, m): the outputs from n * BLOCK_N in the columns from s * part, of the rows from m * ROWS. y as in few_rows.
    """
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    tokens = (tl.program_id(2) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    first = tl.program_id(1) * part
    values = None if table is None else tl.load(table + tl.arange(0, 1 << BITS))
    multipliers = weights_at(values is not None, WORDS, BITS, PIECE)
    IS_SCALED_AFTER: tl.constexpr = GROUP == 0 and zeros is None and table is None  # steps are small whole numbers: not rounded
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    for start in range(first, tl.minimum(first + part, in_features), PIECES * PIECE):
        columns = start + tl.arange(0, PIECES * PIECE)
        is_there = (tokens < count)[:, None] & (columns < in_features)[None, :]
        activations = tl.load(x + tokens[:, None] * in_features + columns[None, :], mask=is_there, other=0.0)
        steps = steps_at(codes, values, rows, start, out_features, row_length, one, BITS, OFFSET, WORDS, PIECES, PIECE)
        weights = steps * multipliers
        if not IS_SCALED_AFTER:
            scale = parameters_at(scales, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
            weights *= scale[:, :, None]
        if zeros is not None:
            lows = parameters_at(zeros, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
            weights += lows[:, :, None]
        weights = tl.reshape(weights, (BLOCK_N, PIECES * PIECE)).to(activations.dtype)
        total = tl.dot(weights, tl.trans(activations), total, input_precision="ieee")  # ieee: float32 stays float32
    if IS_SCALED_AFTER:
        scale = tl.load(scales + rows * scale_stride, mask=rows < out_features, other=0.0)
        total *= scale.to(tl.float32)[:, None]
    if bias is not None:
        total += tl.load(bias + rows, mask=rows < out_features, other=0.0).to(tl.float32)[:, None]
    is_there = (rows < out_features)[:, None] & (tokens < count)[None, :]
    places = y + tl.program_id(1).to(tl.int64) * count * out_features
    tl.store(places + tokens[None, :] * out_features + rows[:, None], total, mask=is_there)
