"""Reads 32 rows of packed codes, some columns of them, for the products of quant.kernels.bands.dots: a band.

The 16 lanes of a vector are rows, so that no product needs a sum over lanes. The packed codes of 16 rows are transposed as they
are, in words of 32 bits, and cut into single codes only then. For products in floats a band has these words; for products in 8
bits it has bytes, four columns of a row in a word. Needs AVX-512.
"""

from __future__ import annotations

from functools import partial

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from quant.kernels.bands.transposing import BYTES, HALVES, I8, I16, I64, ROWS, SIZE, WORDS
from quant.kernels.instructions import every, joined, load, shuffled, transposed
from quant.kernels.wide import FLOATS, LANES, LOOKUP_BITS, load_block, looked_up

STEPS = 16  # of a block of bytes: four columns each
WHOLE = (2, 4, 8)  # widths of which a byte holds whole codes
TOGETHER = {4: 2, 2: 4}  # blocks that are decoded together: a cache line of codes, which is read once
TABLE_OF_BYTES_BITS = 4  # widest codes that a table turns into bytes


def columns_of(bits: int) -> list[int]:
    """The columns of a block in the order of a band of bytes: four for each step."""
    if bits not in WHOLE:
        return list(range(SIZE))
    codes = 8 // bits  # in a byte
    return [(4 * word + byte) * codes + code for word in range(STEPS // codes) for code in range(codes) for byte in range(4)]


def word_codes(bits: int) -> int:
    """Codes in a word of a band of words."""
    return 32 // bits if bits in WHOLE else 4


def words_in_block(bits: int) -> int:
    """Words of a row in a block of a band of words."""
    return SIZE // word_codes(bits)


def _as_bytes(builder, block: ir.Value, bits: int) -> ir.Value:
    """Cut a block of codes, of which a byte holds no whole number, into 64 bytes."""
    size = bits * SIZE // 8
    together = 2 if 2 * bits + 6 <= 16 else 1  # codes that are cut out of one window of 16 bits
    kind, parts = ir.VectorType(I16, SIZE // 2), []
    for start in range(0, SIZE, together * kind.count):
        firsts = [bits * (start + together * window) for window in range(kind.count)]
        places = [min(first // 8 + byte, size - 1) for first in firsts for byte in range(2)]
        windows = builder.bitcast(shuffled(builder, block, block, places), kind)
        parts.append(builder.lshr(windows, ir.Constant(kind, [first % 8 for first in firsts])))
    mask = 2**bits - 1
    if together == 1:
        kept = [builder.trunc(builder.and_(part, every(kind, mask)), ir.VectorType(I8, kind.count)) for part in parts]
        return joined(builder, kept)
    second = builder.and_(builder.shl(parts[0], every(kind, 8 - bits)), every(kind, mask << 8))
    return builder.bitcast(builder.or_(builder.and_(parts[0], every(kind, mask)), second), BYTES)


def words_of(builder, rows: list[ir.Value], bits: int, blocks: int) -> list[ir.Value]:
    """Codes of 16 rows, as `load_block` loads some blocks of each: vectors of a word of every row. A word has as many codes as
    fit, or four, each in a byte, where a byte holds no whole codes."""
    if bits in WHOLE:
        words = [builder.bitcast(row, WORDS) for row in rows]
        return transposed(builder, [shuffled(builder, word, word, range(bits * SIZE // 32 * blocks)) for word in words])
    return transposed(builder, [builder.bitcast(_as_bytes(builder, row, bits), WORDS) for row in rows])


def bytes_of(builder, words: list[ir.Value], bits: int, looked_up):
    """Vectors of 64 bytes: four columns of 16 rows each. looked_up: turns codes in bytes into other bytes."""
    for word in words:
        for code in range(8 // bits if bits in WHOLE else 1):
            down = builder.bitcast(builder.lshr(word, every(WORDS, code * bits)) if code else word, BYTES)
            is_alone = bits not in WHOLE or bits == 8
            yield looked_up(down if is_alone else builder.and_(down, every(BYTES, 2**bits - 1)))


def lookup(builder, table, is_table: bool):
    """Make what turns a vector of 64 codes into other bytes: by a table at an address, uint8 [16], or not at all."""
    if not is_table:
        return lambda vector: vector
    sixteen = load(builder, table, ir.VectorType(I8, 16))
    repeated_table = shuffled(builder, sixteen, sixteen, (place % 16 for place in range(SIZE)))
    kind = ir.FunctionType(BYTES, [BYTES] * 2)
    shuffle = get_or_insert_function(builder.module, kind, "llvm.x86.avx512.pshuf.b.512")
    return lambda vector: builder.call(shuffle, [repeated_table, vector])


def floats_of(builder, word: ir.Value, bits: int, tables: list[ir.Value], count: int):
    """Cut the first codes of a word of 16 rows out of it, as floats: a vector of 16 rows for each column."""
    if bits > LOOKUP_BITS:  # equal steps
        word = builder.bitcast(builder.sub(builder.bitcast(word, BYTES), every(BYTES, 2 ** (bits - 1))), WORDS)
    width = 32 // word_codes(bits)
    for first in range(0, count * width, width):
        if bits > LOOKUP_BITS:
            up = builder.shl(word, every(WORDS, 24 - first)) if first < 24 else word
            yield builder.sitofp(builder.ashr(up, every(WORDS, 24)), FLOATS)
        else:
            yield looked_up(builder, tables, builder.lshr(word, every(WORDS, first)) if first else word)


def by_lines(builder, bits: int, blocks: ir.Value, emit) -> None:
    """Emit the loops over blocks: emit(block, count) for as many as a cache line of codes has, and for each of the rest."""
    count, one = TOGETHER.get(bits, 1), ir.Constant(I64, 1)
    whole = builder.sub(blocks, builder.urem(blocks, ir.Constant(I64, count)))
    with cgutils.for_range_slice(builder, ir.Constant(I64, 0), whole, ir.Constant(I64, count), I64) as (block, _):
        emit(block, count)
    if count > 1:
        with cgutils.for_range_slice(builder, whole, blocks, one, I64) as (block, _):
            emit(block, 1)


def _band_of(bits: int, prepare, vectors_of):
    """Build a function that decodes a band. It takes integers:
        codes      address of the first row's codes
        row_bytes  from each row to the next
        blocks     to decode, of each row
        table      address that `prepare` gets
        out        address of the band, on a boundary of 64 bytes

    prepare(builder, address) is called outside the loop; vectors_of(builder, words, prepared) yields the vectors of 16 rows.
    """

    @intrinsic
    def decode_band(typing, codes, row_bytes, blocks, table, out):
        def generate(context, builder, signature, arguments):
            codes, row_bytes, blocks, table, out = arguments

            def at(address, offset, kind):
                return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

            starts = [builder.add(codes, builder.mul(row_bytes, ir.Constant(I64, row))) for row in range(ROWS)]
            prepared = prepare(builder, builder.inttoptr(table, I8.as_pointer()))

            def decode(block, count):
                place = builder.mul(block, ir.Constant(I64, bits * SIZE // 8))
                for half in range(HALVES):
                    some = starts[LANES * half : LANES * (half + 1)]
                    rows = [load_block(builder, at(start, place, I8), count * bits * SIZE // 8) for start in some]
                    vectors = list(vectors_of(builder, words_of(builder, rows, bits, count), prepared))
                    target = builder.mul(block, ir.Constant(I64, 64 * HALVES * len(vectors) // count))
                    for number, vector in enumerate(vectors):
                        inside = builder.add(target, ir.Constant(I64, 64 * (HALVES * number + half)))
                        builder.store(vector, at(out, inside, vector.type), align=64)

            by_lines(builder, bits, blocks, decode)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return decode_band


def band_of_bytes(bits: int, is_table: bool):
    """Build the function that decodes to bytes, uint8 [blocks, 16, 32, 4] (`_band_of`): the codes themselves, or what a table,
    uint8 [16], has for them."""

    prepare = partial(lookup, is_table=is_table)
    return _band_of(bits, prepare, lambda builder, words, looked_up: bytes_of(builder, words, bits, looked_up))


def band_of_words(bits: int):
    """Build the function that transposes words, uint32 [blocks, words_in_block, 32] (`_band_of`); the table is not read."""
    return _band_of(bits, lambda *_: None, lambda _, words, __: words)
