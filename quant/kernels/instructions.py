"""Vectors in LLVM: what the modules that emit instructions share."""

from __future__ import annotations

from llvmlite import ir

_I32 = ir.IntType(32)


def load(builder, address, kind) -> ir.Value:
    """What lies at an address, on any boundary."""
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=1)


def every(kind: ir.VectorType, number) -> ir.Constant:
    """A constant vector of one number, in all lanes."""
    return ir.Constant(kind, [number] * kind.count)


def repeated(builder, number: ir.Value, lanes: int) -> ir.Value:
    """A vector of one number, in all lanes."""
    first = builder.insert_element(ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined), number, ir.Constant(_I32, 0))
    return shuffled(builder, first, first, [0] * lanes)


def shuffled(builder, a, b, places) -> ir.Value:
    """Elements of the vectors a and b in a new order; numbers from len(a) on stand for elements of b."""
    places = list(places)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(places)), places))


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
