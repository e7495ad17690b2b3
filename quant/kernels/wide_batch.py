"""Products of rows of packed codes with a few rows of activations, in vectors of 16 floats (AVX-512), as LLVM instructions.

Every block of codes is decoded once and serves all rows of activations, each with a vector of sums. Two rows of codes at a time
share the reads of the activations, which may be more than a core's first cache holds.
"""

from __future__ import annotations

import itertools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from quant.kernels.prefetch import prefetch
from quant.kernels.wide import FLOATS, LANES, LOOKUP_BITS, decoded, load, load_block

SIZE = 64  # codes of a block
TOGETHER = 2  # rows of codes that are multiplied side by side

_I8, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


def batch_dot(bits: int, count: int):
    """Build the product of some rows of packed codes with `count` rows of activations. The function built takes:
        codes          uint8 [rows, row_bytes]
        x              float32 [count, columns], each block of 64 in the order of quant.kernels.windows
        values         float32 [16], at 5 bits [32]: the table, repeated up to this size; not read for wider codes
        scales         float32 [rows, groups]
        y              float32 [count, rows]: written from `first` to before `last`
        row_bytes, columns, rows, groups, blocks, first, last  integers; blocks: of 64 codes, in a group
    """

    @intrinsic
    def dot(typing, codes, x, values, scales, y, row_bytes, columns, rows, groups, blocks, first, last):
        def generate(context, builder, signature, arguments):
            codes_at, x_at, values_at, scales_at, y_at = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(signature.args[:5], arguments[:5], strict=True)
            )
            bytes_in_row, column_count, row_count, group_count, block_count, first_row, last_row = arguments[5:]
            codes_at = builder.bitcast(codes_at, _I8.as_pointer())
            multiply_add = get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), "llvm.fma.v16f32")
            add_up = get_or_insert_function(
                builder.module, ir.FunctionType(_FLOAT, [_FLOAT, FLOATS]), "llvm.vector.reduce.fadd.v16f32"
            )
            zero, one, nothing = ir.Constant(_I64, 0), ir.Constant(_I64, 1), ir.Constant(FLOATS, [0.0] * LANES)
            table_count = 1 + (bits == LOOKUP_BITS) if bits <= LOOKUP_BITS else 0
            tables = [load(builder, builder.gep(values_at, [ir.Constant(_I64, LANES * k)]), FLOATS) for k in range(table_count)]
            starts = [builder.mul(column_count, ir.Constant(_I64, number)) for number in range(count)]
            code_at, activation_at = (cgutils.alloca_once(builder, _I64) for _ in range(2))  # offsets of the next block
            total_at = [[cgutils.alloca_once(builder, FLOATS) for _ in range(count)] for _ in range(TOGETHER)]

            def scales_of(row, group, together):
                """The scale of a group of each row, in all lanes."""
                for number in range(together):
                    place = builder.mul(builder.add(row, ir.Constant(_I64, number)), group_count)
                    scale = builder.load(builder.gep(scales_at, [builder.add(place, group)]))
                    if bits == 8:
                        scale = builder.fmul(scale, ir.Constant(_FLOAT, 2.0**-24))
                    scale = builder.insert_element(nothing, scale, ir.Constant(_I32, 0))
                    yield builder.shuffle_vector(scale, nothing, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))

            def add_block(scales, totals):
                """Add a block's products to the totals of each row of codes and each row of activations."""
                place, x_place, vectors = builder.load(code_at), builder.load(activation_at), []
                for number in range(len(totals)):
                    offset = builder.add(place, builder.mul(bytes_in_row, ir.Constant(_I64, number)))
                    address = builder.gep(codes_at, [offset])
                    prefetch(builder, address)
                    vectors.append(decoded(builder, load_block(builder, address, bits * SIZE // 8), bits, SIZE, tables))
                for k, of_rows in enumerate(zip(*vectors, strict=True)):
                    weights = [builder.fmul(vector, scale) for vector, scale in zip(of_rows, scales, strict=True)]
                    inside = builder.add(x_place, ir.Constant(_I64, LANES * k))
                    for number, start in enumerate(starts):
                        activations = load(builder, builder.gep(x_at, [builder.add(start, inside)]), FLOATS)
                        for of_row, weight in zip(totals, weights, strict=True):
                            of_row[number] = builder.call(multiply_add, [weight, activations, of_row[number]])
                builder.store(builder.add(place, ir.Constant(_I64, bits * SIZE // 8)), code_at)
                builder.store(builder.add(x_place, ir.Constant(_I64, SIZE)), activation_at)

            def multiply(row, together):
                builder.store(builder.mul(row, bytes_in_row), code_at)
                builder.store(zero, activation_at)
                for address in itertools.chain(*total_at[:together]):
                    builder.store(nothing, address)
                with cgutils.for_range_slice(builder, zero, group_count, one, _I64) as (group, _):
                    scales = list(scales_of(row, group, together))
                    with cgutils.for_range_slice(builder, zero, block_count, one, _I64):
                        totals = [[builder.load(at) for at in of_row] for of_row in total_at[:together]]
                        add_block(scales, totals)
                        for at, total in zip(itertools.chain(*total_at[:together]), itertools.chain(*totals), strict=True):
                            builder.store(total, at)
                for number, of_row in enumerate(total_at[:together]):
                    for other, at in enumerate(of_row):
                        result = builder.call(add_up, [ir.Constant(_FLOAT, 0.0), builder.load(at)], fastmath=("reassoc", "nsz"))
                        place = builder.add(builder.mul(row_count, ir.Constant(_I64, other)), row)
                        builder.store(result, builder.gep(y_at, [builder.add(place, ir.Constant(_I64, number))]))

            rest = builder.srem(builder.sub(last_row, first_row), ir.Constant(_I64, TOGETHER))
            whole = builder.sub(last_row, rest)
            with cgutils.for_range_slice(builder, first_row, whole, ir.Constant(_I64, TOGETHER), _I64) as (row, _):
                multiply(row, TOGETHER)
            with cgutils.for_range_slice(builder, whole, last_row, one, _I64) as (row, _):
                multiply(row, 1)
            return context.get_dummy_value()

        return types.void(codes, x, values, scales, y, *[types.int64] * 7), generate

    return dot
