"""Activations in the order in which dots.py multiplies them: as they are, or rounded to 8 bits with a scale for every 64 columns.

The largest number of a block becomes 127. Where it is infinite, or is no number, so are the results.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from quant.kernels.bands.decoding import columns_of
from quant.kernels.bands.transposing import FLOAT, I8, I32, I64, SIZE, WORDS, alternating
from quant.kernels.instructions import every, joined, load, repeated, shuffled
from quant.kernels.wide import FLOATS, LANES

LARGEST = 127
_TO_WHOLE = 1.5 * 2**23  # added to a number below 2**22, it leaves the nearest whole number in the lowest bits



def _row_starts(builder, x, row_bytes, given, count: int) -> list[ir.Value]:
    """Addresses of `count` rows; the last of the given ones takes the place of those that are missing."""
    last, starts = builder.sub(given, ir.Constant(I64, 1)), []
    for row in range(count):
        number = ir.Constant(I64, row)
        number = builder.select(builder.icmp_signed("<", number, last), number, last)
        starts.append(builder.add(x, builder.mul(number, row_bytes)))
    return starts


def order_rows_of(count: int):
    """Build the function that copies `count` rows of activations by columns. The function built takes integers:
        x          address of float32 [given, columns]
        row_bytes  from each row to the next
        given      1 to count: the last of these rows takes the place of those that are missing
        blocks     of 64 columns, of a row
        out        address of float32 [columns, count], written
    """

    @intrinsic
    def order_rows(typing, x, row_bytes, given, blocks, out):
        def generate(context, builder, signature, arguments):
            x, row_bytes, given, blocks, out = arguments
            starts, one = _row_starts(builder, x, row_bytes, given, count), ir.Constant(I64, 1)
            parts = builder.mul(blocks, ir.Constant(I64, SIZE // LANES))
            with cgutils.for_range_slice(builder, ir.Constant(I64, 0), parts, one, I64) as (part, _):
                place = builder.mul(part, ir.Constant(I64, 64))
                rows = [load(builder, builder.inttoptr(builder.add(start, place), I8.as_pointer()), WORDS) for start in starts]
                for number, vector in enumerate(alternating(builder, rows)):
                    inside = builder.add(builder.mul(part, ir.Constant(I64, 64 * count)), ir.Constant(I64, 64 * number))
                    builder.store(vector, builder.inttoptr(builder.add(out, inside), WORDS.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return order_rows


def round_rows_of(bits: int, count: int):
    """Build the function that rounds `count` rows of activations for codes of some width. The function built takes integers:
        x          address of float32 [given, columns]
        row_bytes  from each row to the next
        given      1 to count: the last of these rows takes the place of those that are missing
        blocks     of a row
        middle     the code that stands for 0
        factor     address of float32: by which the codes are too large
        words      address of int8 [blocks, 16, count, 4], written
        firsts     address of int32 [blocks, count], written: minus the middle times the sum of the rounded activations
        steps      address of float32 [blocks, count], written: the scales, divided by the factor
    """
    order = columns_of(bits)

    @intrinsic
    def round_rows(typing, x, row_bytes, given, blocks, middle, factor, words, firsts, steps):
        def generate(context, builder, signature, arguments):
            x, row_bytes, given, blocks, middle, factor, words, firsts, steps = arguments
            largest_of = get_or_insert_function(builder.module, ir.FunctionType(I32, [WORDS]), "llvm.vector.reduce.umax.v16i32")
            sum_of = get_or_insert_function(builder.module, ir.FunctionType(I32, [WORDS]), "llvm.vector.reduce.add.v16i32")
            add_products = get_or_insert_function(
                builder.module, ir.FunctionType(WORDS, [WORDS] * 3), "llvm.x86.avx512.vpdpbusd.512"
            )
            zero, one = ir.Constant(I64, 0), ir.Constant(I64, 1)
            nothing, ones = every(WORDS, 0), every(WORDS, 0x01010101)

            def at(address, offset, kind):
                return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

            def rounded(start, place):
                """A block of one row: its bytes in order, their sum, and its scale."""
                parts = [load(builder, at(start, builder.add(place, ir.Constant(I64, 4 * LANES * part)), I8), FLOATS)
                         for part in range(SIZE // LANES)]
                sizes = [builder.and_(builder.bitcast(part, WORDS), every(WORDS, 0x7FFFFFFF)) for part in parts]
                while len(sizes) > 1:  # compared as integers, infinity and what is no number are the largest
                    sizes = [builder.select(builder.icmp_unsigned(">", a, b), a, b)
                             for a, b in zip(sizes[::2], sizes[1::2], strict=True)]
                largest = builder.bitcast(builder.call(largest_of, [sizes[0]]), FLOAT)
                is_zero = builder.fcmp_ordered("==", largest, ir.Constant(FLOAT, 0.0))
                inverse = builder.select(is_zero, ir.Constant(FLOAT, 0.0), builder.fdiv(ir.Constant(FLOAT, LARGEST), largest))
                bytes_ = []
                for part in parts:
                    moved = builder.fadd(builder.fmul(part, repeated(builder, inverse, LANES)), every(FLOATS, _TO_WHOLE))
                    bytes_.append(builder.trunc(builder.bitcast(moved, WORDS), ir.VectorType(I8, LANES)))
                whole = joined(builder, bytes_)
                found = builder.bitcast(shuffled(builder, whole, whole, order), WORDS)
                return found, builder.call(sum_of, [builder.call(add_products, [nothing, ones, found])]), largest

            divisor = builder.fmul(ir.Constant(FLOAT, LARGEST), builder.load(builder.inttoptr(factor, FLOAT.as_pointer())))
            middle = builder.trunc(middle, I32)
            starts = _row_starts(builder, x, row_bytes, given, count)
            with cgutils.for_range_slice(builder, zero, blocks, one, I64) as (block, _):
                place, found = builder.mul(block, ir.Constant(I64, 4 * SIZE)), []
                for row, start in enumerate(starts):
                    bytes_, total, largest = rounded(start, place)
                    found.append(bytes_)
                    inside = builder.add(builder.mul(block, ir.Constant(I64, 4 * count)), ir.Constant(I64, 4 * row))
                    first = builder.sub(ir.Constant(I32, 0), builder.mul(middle, total))
                    builder.store(first, at(firsts, inside, I32), align=4)
                    builder.store(builder.fdiv(largest, divisor), at(steps, inside, FLOAT), align=4)
                for number, vector in enumerate(alternating(builder, found)):
                    inside = builder.add(builder.mul(block, ir.Constant(I64, SIZE * count)), ir.Constant(I64, 64 * number))
                    builder.store(vector, at(words, inside, WORDS), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return round_rows
