"""Products of rows of packed codes with one row of activations in vectors of 16 floats (AVX-512), as LLVM instructions.

A block of codes is loaded at once and cut into windows, one for each of 16 lanes (quant.kernels.windows). Up to 5 bits, a
permutation looks the floats up in a table of 16 or 32: it ignores the higher bits of an index, so that shifting a code down is
all it needs, whatever the grid. Wider codes, always in equal steps, become integers with a sign, then floats.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from quant.kernels.instructions import every, load, shuffled
from quant.kernels.prefetch import prefetch
from quant.kernels.windows import code_of, first_bit, window_start

LANES = 16
LOOKUP_BITS = 5  # widest codes that are looked up

_I8, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _WORDS, FLOATS = ir.VectorType(_I8, 64), ir.VectorType(_I32, LANES), ir.VectorType(_FLOAT, LANES)


def _constants(kind: ir.VectorType, numbers) -> ir.Constant:
    return ir.Constant(kind, list(numbers))


def load_block(builder, address, size: int) -> ir.Value:
    """The `size` bytes at an address as the first of 64; nothing behind them is read."""
    if size & (size - 1) == 0:
        block = load(builder, address, ir.VectorType(_I8, size))
        return shuffled(builder, block, block, (i % size for i in range(64)))
    half = 1 << (size.bit_length() - 1)  # two reads that overlap; a masked read takes several times as long from memory
    first, second = (
        load(builder, builder.gep(address, [ir.Constant(_I64, start)]), ir.VectorType(_I8, half)) for start in (0, size - half)
    )
    return shuffled(builder, first, second, (i if i < half else min(i, size - 1) + 2 * half - size for i in range(64)))


def load_behind(builder, address, size: int) -> ir.Value:
    """Like `load_block`, in one read: for a block behind another one, the end of which is read too."""
    width = 1 << (size - 1).bit_length()
    whole = load(builder, builder.gep(address, [ir.Constant(_I64, size - width)]), ir.VectorType(_I8, width))
    return shuffled(builder, whole, whole, (min(width - size + i, width - 1) for i in range(64)))


def tables_of(builder, values, bits: int) -> list[ir.Value]:
    """The tables that codes are looked up in, one of 16 floats or two; none for wider codes. values: their address."""
    count = 0 if bits > LOOKUP_BITS else 1 + (bits == LOOKUP_BITS)
    return [load(builder, builder.gep(values, [ir.Constant(_I64, LANES * k)]), FLOATS) for k in range(count)]


def looked_up(builder, tables: list[ir.Value], index: ir.Value) -> ir.Value:
    """16 floats of a table of 16 or 32, by the lower bits of 16 words."""
    table, *others = tables
    name = "llvm.x86.avx512.vpermi2var.ps.512" if others else "llvm.x86.avx512.permvar.sf.512"
    kind = ir.FunctionType(FLOATS, [FLOATS, _WORDS, *(other.type for other in others)])
    return builder.call(get_or_insert_function(builder.module, kind, name), [table, index, *others])


def decoded(builder, block, bits: int, size: int, tables: list[ir.Value]):
    """Decode a block of codes into size / 16 vectors of floats; at 8 bits they are 2**24 times too large."""
    bytes_ = bits * size // 8
    vectors = [[code_of(bits, size, LANES, k, lane) for lane in range(LANES)] for k in range(size // LANES)]
    if bits == 8:
        signed = builder.xor(block, every(_BYTES, 128))
        for codes in vectors:  # 64: a zero byte
            places = [place for code in codes for place in (64, 64, 64, code)]
            yield builder.sitofp(builder.bitcast(shuffled(builder, signed, every(_BYTES, 0), places), _WORDS), FLOATS)
        return
    places = [min(window_start(bits, code) // 8 + i, bytes_ - 1) for code in vectors[0] for i in range(4)]
    windows = builder.bitcast(shuffled(builder, block, block, places), _WORDS)
    shifts = [[first_bit(bits, code) for code in codes] for codes in vectors]
    if bits <= LOOKUP_BITS:
        for down in shifts:
            yield looked_up(builder, tables, builder.lshr(windows, _constants(_WORDS, down)) if any(down) else windows)
        return
    signs = [sum(1 << (down[lane] + bits - 1) for down in shifts) for lane in range(LANES)]  # a code's upper bit is its sign
    windows = builder.xor(windows, _constants(_WORDS, signs))
    for down in shifts:
        top = builder.shl(windows, _constants(_WORDS, (32 - bits - shift for shift in down)))
        yield builder.sitofp(builder.ashr(top, every(_WORDS, 32 - bits)), FLOATS)


def rows_dot(bits: int, size: int, unrolled: int, parts: int = 1):
    """Build the product of some rows of packed codes with one row of activations.

    bits: of a code; size: codes of a block; unrolled: blocks per group where the number is fixed; 0: any number, in a loop.
    parts: groups of a block that has several of them; below, these count as one group. The function built takes:
        codes          uint8 [rows, row_bytes]
        x              float32 [columns], each block in the order of quant.kernels.windows
        values         float32 [16], at 5 bits [32]: the table, repeated up to this size; not read for wider codes
        scales         float32 [rows, groups, parts]
        y              float32 [rows]: written from `first` to before `last`
        row_bytes, groups, blocks, first, last  integers; blocks: of a group
    """

    @intrinsic
    def dot(typing, codes, x, values, scales, y, row_bytes, groups, blocks, first, last):
        def generate(context, builder, signature, arguments):
            codes_at, x_at, values_at, scales_at, y_at = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(signature.args[:5], arguments[:5], strict=True)
            )
            bytes_in_row, group_count, block_count, first_row, last_row = arguments[5:]
            codes_at = builder.bitcast(codes_at, _I8.as_pointer())
            multiply_add = get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), "llvm.fma.v16f32")
            add_up = get_or_insert_function(
                builder.module, ir.FunctionType(_FLOAT, [_FLOAT, FLOATS]), "llvm.vector.reduce.fadd.v16f32"
            )
            zero, one, nothing = ir.Constant(_I64, 0), ir.Constant(_I64, 1), every(FLOATS, 0.0)
            is_one_read = (bits * size // 8).bit_count() == 1  # of a block, wherever it lies
            tables = tables_of(builder, values_at, bits)
            total_at = cgutils.alloca_once(builder, FLOATS)
            code_at, activation_at = (cgutils.alloca_once(builder, _I64) for _ in range(2))  # offsets of the next block
            partial_at = [cgutils.alloca_once(builder, FLOATS) for _ in range(size // LANES)]

            def products(sums, read):
                """Add a block's products to partial sums, and step to the next block."""
                place, x_place = builder.load(code_at), builder.load(activation_at)
                address = builder.gep(codes_at, [place])
                prefetch(builder, address)
                block = read(builder, address, bits * size // 8)
                for k, vector in enumerate(decoded(builder, block, bits, size, tables)):
                    x_address = builder.gep(x_at, [builder.add(x_place, ir.Constant(_I64, LANES * k))])
                    some = k % len(sums)
                    sums[some] = builder.call(multiply_add, [vector, load(builder, x_address, FLOATS), sums[some]])
                builder.store(builder.add(place, ir.Constant(_I64, bits * size // 8)), code_at)
                builder.store(builder.add(x_place, ir.Constant(_I64, size)), activation_at)
                return sums

            def add_group(group, read_first):
                """Add a group's products, times its scale, to the total. read_first: reads its first block."""
                if unrolled:
                    sums = products([nothing, nothing], read_first)
                    for _ in range(1, unrolled):
                        sums = products(sums, load_behind)
                else:
                    before = [nothing] * len(partial_at)
                    for value, address in zip(before if is_one_read else products(before, read_first), partial_at, strict=True):
                        builder.store(value, address)
                    with cgutils.for_range_slice(builder, zero if is_one_read else one, block_count, one, _I64):
                        sums = products([builder.load(address) for address in partial_at], load_behind)
                        for value, address in zip(sums, partial_at, strict=True):
                            builder.store(value, address)
                    sums = [builder.load(address) for address in partial_at]
                while len(sums) > 1:
                    sums = [builder.fadd(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
                place = builder.mul(builder.add(scale_place, group), ir.Constant(_I64, parts))
                scale = load(builder, builder.gep(scales_at, [place]), ir.VectorType(_FLOAT, parts))
                scale = shuffled(builder, scale, scale, (lane * parts // LANES for lane in range(LANES)))
                builder.store(builder.call(multiply_add, [scale, sums[0], builder.load(total_at)]), total_at)

            with cgutils.for_range_slice(builder, first_row, last_row, one, _I64) as (row, _):
                builder.store(builder.mul(row, bytes_in_row), code_at)
                builder.store(zero, activation_at)
                builder.store(nothing, total_at)
                scale_place = builder.mul(row, group_count)
                if not is_one_read:
                    add_group(zero, load_block)  # nothing before the first row may be read
                with cgutils.for_range_slice(builder, zero if is_one_read else one, group_count, one, _I64) as (group, _):
                    add_group(group, load_behind)
                result = builder.call(add_up, [ir.Constant(_FLOAT, 0.0), builder.load(total_at)], fastmath=("reassoc", "nsz"))
                if bits == 8:
                    result = builder.fmul(result, ir.Constant(_FLOAT, 2.0**-24))
                builder.store(result, builder.gep(y_at, [row]))
            return context.get_dummy_value()

        integers = [types.int64] * 5
        return types.void(codes, x, values, scales, y, *integers), generate

    return dot
