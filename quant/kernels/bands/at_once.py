"""Products of a band with a single batch of activations in 8 bits: decoded in registers and multiplied at once.

A single batch needs every code once. So nothing is gained by keeping a strip of decoded bytes, which takes as many writes and
reads as the processor has time for. Here 16 rows of packed codes are transposed, and each vector of bytes is multiplied with all
rows of activations as soon as it is cut out.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quant.kernels.bands.decoding import STEPS, by_lines, bytes_of, lookup, words_of
from quant.kernels.bands.dots import add_to, at, sums_of_bytes, times
from quant.kernels.bands.transposing import HALVES, I8, I32, I64, ROWS, SIZE, WORDS
from quant.kernels.instructions import load
from quant.kernels.prefetch import LINE, request
from quant.kernels.wide import FLOATS, LANES, load_block

WIDTHS = (8, 4, 3, 2)  # for which the product is built: others are rare, and compiling each takes seconds


def dot_of_codes(bits: int, is_table: bool, count: int):
    """Build the product of 32 rows of packed codes with `count` rows of activations. The function built takes integers:
        codes      address of the first row's codes
        row_bytes  from each row to the next
        table      address of uint8 [16]: what each code becomes, if is_table
        words, firsts, steps, scales, totals, ahead, groups, blocks  as for quant.kernels.bands.dots.dot_of_bytes
    """

    @intrinsic
    def dot(typing, codes, row_bytes, table, words, firsts, steps, scales, totals, ahead, groups, blocks):
        def generate(context, builder, signature, arguments):
            codes, row_bytes, table, words, firsts, steps, scales, totals, ahead, groups, blocks = arguments
            starts = [builder.add(codes, builder.mul(row_bytes, ir.Constant(I64, row))) for row in range(ROWS)]
            looked_up = lookup(builder, builder.inttoptr(table, I8.as_pointer()), is_table)

            def vectors_of(block, some: int, half: int):
                """The bytes of consecutive blocks of 16 rows, step by step; on the way, memory is asked for as many codes."""
                place, size = times(builder, block, bits * SIZE // 8), bits * some * SIZE // 8
                some_starts = starts[LANES * half : LANES * (half + 1)]
                rows = [load_block(builder, at(builder, start, place), size) for start in some_starts]
                of_rows = bytes_of(builder, words_of(builder, rows, bits, some), bits, looked_up)
                line, lines, asked = times(builder, block, bits * SIZE * ROWS // 8), size * LANES // LINE, 0
                for step, vector in enumerate(of_rows):
                    while asked * some * STEPS < lines * (step + 1):
                        request(builder, at(builder, ahead, line, LINE * (lines * half + asked)))
                        asked += 1
                    yield [builder.bitcast(vector, WORDS)]

            def add_blocks(block, some: int):
                """Add the products of consecutive blocks to the totals."""
                for half in range(HALVES):  # not a loop of the compiled code: it would take an eighth longer at 8 bits
                    vectors = vectors_of(block, some, half)
                    for number in range(some):
                        this = builder.add(block, ir.Constant(I64, number))
                        of_block = (next(vectors) for _ in range(STEPS))
                        found = sums_of_bytes(builder, of_block, count, this, words, firsts, steps)
                        group = builder.udiv(*(builder.trunc(number, I32) for number in (this, blocks)))  # 64 bits take a branch
                        of_group = times(builder, builder.zext(group, I64), 4 * ROWS)
                        scale = load(builder, at(builder, scales, of_group, 4 * LANES * half), FLOATS)
                        for row, (vector,) in enumerate(found):
                            add_to(builder, at(builder, totals, 4 * (ROWS * row + LANES * half)), vector, scale)

            by_lines(builder, bits, builder.mul(groups, blocks), add_blocks)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return dot
