"""The product for a few rows of activations, without tensor cores: each code is read once, decoded once, and serves all rows."""

from __future__ import annotations

import triton
import triton.language as tl

from quant.kernels.cuda.decode import parameters_at, steps_at, weights_at


@triton.jit
def few_rows_product(
    x, codes, scales, zeros, table, bias, y, count, out_features, in_features, row_length, scale_stride, part, one,
    GROUP: tl.constexpr, PIECE: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr, WORDS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N outputs of up to ROWS rows of activations, PIECES * PIECE columns at a time, in `part` columns of a row.

    Program (n, s): the outputs from n * BLOCK_N in the columns from s * part. y [count, out]; if there are several parts, float32
    [parts, count, out], and bias is None.
    """
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    first = tl.program_id(1) * part
    values = None if table is None else tl.load(table + tl.arange(0, 1 << BITS))
    weights = weights_at(values is not None, WORDS, BITS, PIECE)
    totals = ()
    for _ in tl.static_range(ROWS):
        totals = totals + (tl.zeros((BLOCK_N, PIECES), tl.float32),)  # noqa: RUF005  Triton has no starred expressions
    for start in range(first, tl.minimum(first + part, in_features), PIECES * PIECE):
        columns = start + tl.arange(0, PIECES)[None, :, None] * PIECE + tl.arange(0, PIECE)[None, None, :]
        steps = steps_at(codes, values, rows, start, out_features, row_length, one, BITS, OFFSET, WORDS, PIECES, PIECE)
        scale = parameters_at(scales, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
        if zeros is not None:
            lows = parameters_at(zeros, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
        sums = ()
        for m in tl.static_range(ROWS):
            is_there = (columns < in_features) & (m < count)
            activations = tl.load(x + m * in_features + columns, mask=is_there, other=0.0).to(tl.float32)
            total = totals[m] + tl.sum(steps * (activations * weights), axis=2) * scale
            if zeros is not None:
                total += lows * tl.sum(activations, axis=2)
            sums = sums + (total,)  # noqa: RUF005
        totals = sums
    places = y + tl.program_id(1).to(tl.int64) * count * out_features + rows
    for m in tl.static_range(ROWS):
        outputs = tl.sum(totals[m], axis=1)
        if bias is not None:
            outputs += tl.load(bias + rows, mask=rows < out_features, other=0.0).to(tl.float32)
        tl.store(places + m * out_features, outputs, mask=(rows < out_features) & (m < count))


@triton.jit
def add_parts(parts, bias, y, size, out_features, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Add the sums of all parts of a row, float32 [PARTS, size], always in the same order, and the bias; y: [size]."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in tl.static_range(PARTS):
        total += tl.load(parts + number * size + places, mask=places < size, other=0.0)
    if bias is not None:
        total += tl.load(bias + places % out_features, mask=places < size, other=0.0).to(tl.float32)
    tl.store(y + places, total, mask=places < size)
