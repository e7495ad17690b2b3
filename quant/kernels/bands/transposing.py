"""Turns numbers of 16 rows into vectors that have one number of every row: packed codes in words of 32 bits, and scales."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quant.kernels.prefetch import request
from quant.kernels.wide import LANES, load

SIZE = 64  # columns of a block
ROWS = 32  # of a band
HALVES = ROWS // LANES  # vectors that have a number of each row of a band

I8, I16, I32, I64, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, WORDS = ir.VectorType(I8, SIZE), ir.VectorType(I32, LANES)


def shuffled(builder, a, b, places) -> ir.Value:
    """Elements of the vectors a and b in a new order; numbers from len(a) on stand for elements of b."""
    places = list(places)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(places)), places))


def repeated(builder, number: ir.Value, lanes: int = LANES) -> ir.Value:
    """A vector of a number, many times."""
    first = builder.insert_element(ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined), number, ir.Constant(I32, 0))
    return shuffled(builder, first, first, [0] * lanes)


def every(kind: ir.VectorType, number) -> ir.Constant:
    """A constant vector of a number, many times."""
    return ir.Constant(kind, [number] * kind.count)


def joined(builder, vectors: list[ir.Value]) -> ir.Value:
    """Vectors of equal length, a power of two of them, one behind the other."""
    while len(vectors) > 1:
        count = 2 * vectors[0].type.count
        vectors = [shuffled(builder, a, b, range(count)) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _quarters(builder, rows: list[ir.Value]) -> list[ir.Value]:
    """Four rows of 4, 8 or 16 words to as many vectors as a row has quarters of a vector: each has that quarter of all rows."""
    count = rows[0].type.count // 4
    if count == 1:
        return [joined(builder, rows)]
    if count == 2:
        halves = [joined(builder, rows[:2]), joined(builder, rows[2:])]
        return [shuffled(builder, *halves, (8 * row + 4 * part + word for row in range(4) for word in range(4)))
                for part in range(2)]
    found = []
    for half in range(2):  # of two rows, two quarters each
        taken = [16 * row + 8 * half + word for row in range(2) for word in range(8)]
        first, second = shuffled(builder, *rows[:2], taken), shuffled(builder, *rows[2:], taken)
        found += [shuffled(builder, first, second, (8 * row + 4 * part + word for row in range(4) for word in range(4)))
                  for part in range(2)]
    return found


def transposed(builder, rows: list[ir.Value]) -> list[ir.Value]:
    """16 rows of 4, 8 or 16 words to that many vectors, each with one word of all rows."""
    parts = [_quarters(builder, [rows[4 * quarter + place] for quarter in range(4)]) for place in range(4)]
    low = [4 * quarter + place for quarter in range(4) for place in (0, 16, 1, 17)]  # words 0 and 1 of each, alternately
    pairs = [4 * quarter + place for quarter in range(4) for place in (0, 1, 16, 17)]
    found = []
    for a, b, c, d in zip(*parts, strict=True):
        for start in (0, 2):
            first, second = (shuffled(builder, *two, (place + start for place in low)) for two in ((a, b), (c, d)))
            found += [shuffled(builder, first, second, (place + other for place in pairs)) for other in (0, 2)]
    return found


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
