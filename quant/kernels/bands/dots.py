"""Products of a band of codes with a few rows of activations: in 8 bits, or in floats.

In 8 bits, the processor's dot product of bytes (AVX-512 VNNI) adds four products to an integer in each lane. The sum over a block
of 64 columns is exact; then it becomes a float and is multiplied by the activations' scale. In floats, a code is looked up, or
converted, and multiplied at once. Both multiply a block's sum by the scale of the codes.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from quant.kernels.bands.decoding import STEPS, floats_of, word_codes, words_in_block
from quant.kernels.bands.transposing import FLOAT, HALVES, I8, I32, I64, ROWS, SIZE, WORDS
from quant.kernels.instructions import every, load, repeated
from quant.kernels.prefetch import request_lines
from quant.kernels.wide import FLOATS, LANES, tables_of

MOST_CODES = 8  # of a word that are multiplied in a row; with 16 of 2 bits, a product takes a sixth longer

_ZERO, _ONE = ir.Constant(I64, 0), ir.Constant(I64, 1)


def at(builder, address, *offsets) -> ir.Value:
    """Add values and numbers to an int64 address, and make it a pointer."""
    for offset in offsets:
        address = builder.add(address, offset if isinstance(offset, ir.Value) else ir.Constant(I64, offset))
    return builder.inttoptr(address, I8.as_pointer())


def times(builder, number, size: int) -> ir.Value:
    """An int64 value times a number."""
    return builder.mul(number, ir.Constant(I64, size))


def _number_at(builder, address, kind) -> ir.Value:
    """A vector of 16 times the number at an address."""
    return repeated(builder, builder.load(builder.bitcast(address, kind.as_pointer()), align=4), LANES)


def _vectors_at(builder, address, offset) -> list[ir.Value]:
    """Floats of all rows of a band."""
    return [load(builder, at(builder, address, offset, 4 * LANES * half), FLOATS) for half in range(HALVES)]


def _multiply_add(builder, *vectors) -> ir.Value:
    fma = get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), "llvm.fma.v16f32")
    return builder.call(fma, vectors)


def add_to(builder, address, *factors) -> None:
    """Add the product of two vectors to the floats at an address, which is on a boundary of 64 bytes."""
    place = builder.bitcast(address, FLOATS.as_pointer())
    builder.store(_multiply_add(builder, *factors, builder.load(place, align=64)), place, align=64)


def _chains(vectors: int) -> int:
    """Sums of each of some vectors that are built beside each other, so that no product waits for the last one's sum."""
    return max(1, 8 // vectors)


def _added(add, chains: list) -> list[list[ir.Value]]:
    """The sums of all chains."""
    first, *others = chains
    for other in others:
        first = [[add(a, b) for a, b in zip(*of_row, strict=True)] for of_row in zip(first, other, strict=True)]
    return first


def _add_blocks(builder, count: int, product, scales, totals, ahead, groups, blocks, lines) -> None:
    """Emit the loops over blocks: add their products, times the scale of their group, to the totals. product(block) emits a
    block's sums: for each row of activations, one vector for each half of the band's rows."""
    with cgutils.for_range_slice(builder, _ZERO, groups, _ONE, I64) as (group, _):
        of_group, start = _vectors_at(builder, scales, times(builder, group, 4 * ROWS)), builder.mul(group, blocks)
        with cgutils.for_range_slice(builder, start, builder.add(start, blocks), _ONE, I64) as (block, _):
            request_lines(builder, ahead, block, lines)
            found = product(block)
            for row in range(count):
                for half in range(HALVES):
                    add_to(builder, at(builder, totals, 4 * (ROWS * row + LANES * half)), found[row][half], of_group[half])


def sums_of_bytes(builder, codes, count: int, block, words, firsts, steps) -> list[list[ir.Value]]:
    """Multiply a block in 8 bits: for each row of activations, as many vectors of floats as each step has.

    codes: for each step, vectors of four columns of 16 rows of the weight; words, firsts, steps: as for `dot_of_bytes`.
    """
    kind = ir.FunctionType(WORDS, [WORDS] * 3)
    add_products = get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    of_block, chains, found = times(builder, block, 4 * count), [], []
    for step, vectors in enumerate(codes):
        if not chains:
            starts = [_number_at(builder, at(builder, firsts, of_block, 4 * row), I32) for row in range(count)]
            chains = [[[start] * len(vectors) for start in starts]]
            chains += [[[every(WORDS, 0)] * len(vectors) for _ in starts] for _ in range(_chains(len(vectors) * count) - 1)]
        sums = chains[step % len(chains)]
        for row in range(count):
            word = _number_at(builder, at(builder, words, times(builder, block, SIZE * count), 4 * (count * step + row)), I32)
            sums[row] = [builder.call(add_products, [old, code, word]) for old, code in zip(sums[row], vectors, strict=True)]
    for row, integers in enumerate(_added(builder.add, chains)):
        step = _number_at(builder, at(builder, steps, of_block, 4 * row), FLOAT)
        found.append([builder.fmul(builder.sitofp(vector, FLOATS), step) for vector in integers])
    return found


def dot_of_bytes(count: int):
    """Build the product of a band of bytes with `count` rows of activations. The function built takes integers, first of all
    addresses:
        band     uint8 [blocks, 16, 32, 4] (quant.kernels.bands.decoding)
        words    int8 [blocks, 16, count, 4]: the activations
        firsts   int32 [blocks, count]: what each sum begins with
        steps    float32 [blocks, count]: the activations' scales
        scales   float32 [groups, 32]: of the band's rows
        totals   float32 [count, 32], on a boundary of 64 bytes: the products are added to them
        ahead    memory to ask for meanwhile
        groups, blocks, lines    groups, blocks of each, and cache lines to ask for during a block
    """

    @intrinsic
    def dot(typing, band, words, firsts, steps, scales, totals, ahead, groups, blocks, lines):
        def generate(context, builder, signature, arguments):
            band, words, firsts, steps, *rest = arguments

            def product(block):
                inside = times(builder, block, SIZE * ROWS)
                codes = ([load(builder, at(builder, band, inside, 64 * (HALVES * step + half)), WORDS) for half in range(HALVES)]
                         for step in range(STEPS))
                return sums_of_bytes(builder, codes, count, block, words, firsts, steps)

            _add_blocks(builder, count, product, *rest)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return dot


def dot_of_floats(bits: int, count: int):
    """Build the product of a band of words with `count` rows of activations, for codes of some width. The function built takes
    integers, first of all addresses:
        band     uint32 [blocks, words, 32] (quant.kernels.bands.decoding)
        x        float32 [columns, count]: the activations
        values   float32 [16], at 5 bits [32]: what each code stands for, repeated up to this size; not read for wider codes
        scales, totals, ahead, groups, blocks, lines    as for `dot_of_bytes`
    """
    codes = min(word_codes(bits), MOST_CODES)  # of a word, at a time
    parts = word_codes(bits) // codes
    count_of_parts = parts * words_in_block(bits)

    @intrinsic
    def dot(typing, band, x, values, scales, totals, ahead, groups, blocks, lines):
        def generate(context, builder, signature, arguments):
            band, x, values, *rest = arguments
            tables = tables_of(builder, builder.inttoptr(values, FLOAT.as_pointer()), bits)
            chains = [[[cgutils.alloca_once(builder, FLOATS) for _ in range(HALVES)] for _ in range(count)]
                      for _ in range(_chains(HALVES * count))]
            places = [place for sums in chains for of_row in sums for place in of_row]

            def loaded():
                return [[[builder.load(place) for place in of_row] for of_row in sums] for sums in chains]

            def product(block):
                for place in places:
                    builder.store(every(FLOATS, 0.0), place)
                first = times(builder, block, count_of_parts)
                last = builder.add(first, ir.Constant(I64, count_of_parts))
                with cgutils.for_range_slice(builder, first, last, _ONE, I64) as (part, _):
                    found = loaded()
                    word = builder.udiv(part, ir.Constant(I64, parts))
                    halves = [load(builder, at(builder, band, times(builder, word, 64 * HALVES), 64 * half), WORDS)
                              for half in range(HALVES)]
                    if parts > 1:
                        down = times(builder, builder.urem(part, ir.Constant(I64, parts)), bits * codes)
                        halves = [builder.lshr(half, repeated(builder, builder.trunc(down, I32), LANES)) for half in halves]
                    columns = zip(*(floats_of(builder, half, bits, tables, codes) for half in halves), strict=True)
                    for number, weights in enumerate(columns):
                        column = times(builder, part, 4 * count * codes)
                        for row in range(count):
                            activation = _number_at(builder, at(builder, x, column, 4 * (count * number + row)), FLOAT)
                            sums = found[number % len(found)]
                            sums[row] = [_multiply_add(builder, weight, activation, old)
                                         for weight, old in zip(weights, sums[row], strict=True)]
                    vectors = (vector for sums in found for of_row in sums for vector in of_row)
                    for place, vector in zip(places, vectors, strict=True):
                        builder.store(vector, place)
                return _added(builder.fadd, loaded())

            _add_blocks(builder, count, product, *rest)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return dot
