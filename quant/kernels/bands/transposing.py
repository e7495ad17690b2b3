"""The shape of a band; activations by columns, and scales of a band's rows by groups."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quant.kernels.instructions import load, shuffled, transposed
from quant.kernels.prefetch import request
from quant.kernels.wide import LANES

SIZE = 64  # columns of a block
ROWS = 32  # of a band
HALVES = ROWS // LANES  # vectors that have a number of each row of a band

I8, I16, I32, I64, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, WORDS = ir.VectorType(I8, SIZE), ir.VectorType(I32, LANES)


def alternating(builder, rows: list[ir.Value]) -> list[ir.Value]:
    """Rows of 16 words, a power of two of them, to vectors with the first word of every row, then the second of every row..."""
    if len(rows) == 1:
        return rows
    pairs = zip(alternating(builder, rows[::2]), alternating(builder, rows[1::2]), strict=True)
    return [shuffled(builder, a, b, (place for word in range(8 * half, 8 * half + 8) for place in (word, word + LANES)))
            for a, b in pairs for half in range(2)]


def by_group_of(width: int):
    """Build the function that turns numbers of 16 rows, for 4 or 16 groups each, into vectors of a group. It takes integers:
        numbers    address of float32 [16, width]
        row_bytes  from each row to the next
        out        address of float32 [width, 32]: the first 16 of each are written
        ahead      bytes from the numbers to others, for which memory is asked
    """

    @intrinsic
    def by_group(typing, numbers, row_bytes, out, ahead):
        def generate(context, builder, signature, arguments):
            numbers, row_bytes, out, ahead = arguments
            rows = []
            for row in range(LANES):
                start = builder.add(numbers, builder.mul(row_bytes, ir.Constant(I64, row)))
                request(builder, builder.inttoptr(builder.add(start, ahead), I8.as_pointer()))
                rows.append(load(builder, builder.inttoptr(start, I8.as_pointer()), ir.VectorType(I32, width)))
            for group, vector in enumerate(transposed(builder, rows)):
                place = builder.inttoptr(builder.add(out, ir.Constant(I64, 4 * ROWS * group)), WORDS.as_pointer())
                builder.store(vector, place, align=64)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return by_group
