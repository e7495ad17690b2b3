"""The inner loops of products with quantized weights, compiled by numba when first used and kept on disk.

Decoding a token reads every code once, so the loops must be as fast as memory gives the codes. No compiler finds by itself
how to turn packed codes into vectors of floats; `_row_dot` writes that step in LLVM's own vector instructions, which every
processor has, but for one: a byte shuffle (x86: AVX2) looks up 32 half-bytes in a table of 16 bytes at once. A table of 16
floats is four such tables, one for each byte of a float; interleaving what they give yields 32 floats.

All in one file, because numba's copy on disk is renewed when the file it was compiled from changes, and only that one.
"""

from __future__ import annotations

import math

import llvmlite.binding
import numpy
from llvmlite import ir
from numba import carray, cfunc, float32, int64, njit, types, uint8
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from quant.kernels.threads import FIRST, LOOP, done, pointer, take

BLOCK = 32  # codes that a step of a row's product decodes; groups are of whole blocks

# Places in a job of quant.kernels.threads: addresses and sizes. An address that is 0: there are none of these.
(X, Y, BIAS, OTHER, THEN, PICKED, COUNT, CODES, SCALES, ZEROS, VALUES, PLANES, ROWS, COLUMNS, GROUPS, ROW_BYTES, BITS, WAY,
 HEIGHT, FIELDS) = range(FIRST, FIRST + 20)
# What becomes of a row's product, THEN: OTHER is added, or multiplied with it, or it goes through an activation function.
NOTHING, ADD, MULTIPLY, GELU, SILU = range(5)
# How codes are decoded: in equal steps counted from the middle one, by a table of 16, or by any other table.
STEPS, TABLE, ANY = range(3)

_FEATURES = llvmlite.binding.get_host_cpu_features()
HAS_SHUFFLE = bool(_FEATURES.get("avx2"))

_FAST = {"reassoc", "contract", "nsz"}
_I8, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_EIGHT, _FLOATS = ir.VectorType(_I32, 8), ir.VectorType(_FLOAT, 8)


def _all(kind: ir.VectorType, number) -> ir.Constant:
    return ir.Constant(kind, [number] * kind.count)


def _picked(builder, a, b, places) -> ir.Value:
    """Elements of the vectors a and b, counted on from a to b, in a new order."""
    places = list(places)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(places)), places))


def _load(builder, address, offset, kind) -> ir.Value:
    return builder.load(builder.bitcast(builder.gep(address, [offset]), kind.as_pointer()), align=1)


def _steps(bits: int, counted_from: int):
    """Decoder of 32 codes in equal steps, as four vectors of 8 floats; the code `counted_from` stands for 0.

    Four bits: within every 16 codes the even ones come first, as the halves of a byte lie. Other widths: in order.
    """

    def floats(builder, whole):
        return builder.sitofp(builder.sub(whole, _all(_EIGHT, counted_from)) if counted_from else whole, _FLOATS)

    def bytes_(builder, codes, place, planes):
        for k in range(4):
            eight = _load(builder, codes, builder.add(place, ir.Constant(_I64, 8 * k)), ir.VectorType(_I8, 8))
            yield floats(builder, builder.zext(eight, _EIGHT))

    def halves(builder, codes, place, planes):
        for k in range(2):
            eight = _load(builder, codes, builder.add(place, ir.Constant(_I64, 8 * k)), ir.VectorType(_I8, 8))
            eight = builder.zext(eight, _EIGHT)
            yield floats(builder, builder.and_(eight, _all(_EIGHT, 15)))
            yield floats(builder, builder.lshr(eight, _all(_EIGHT, 4)))

    def others(builder, codes, place, planes):
        size = 4 * bits  # bytes of 32 codes
        packed = _load(builder, codes, place, ir.VectorType(_I8, size))
        for k in range(4):
            first = [bits * (8 * k + lane) // 8 for lane in range(8)]  # a code lies in this byte and perhaps the next
            windows = [min(byte + i, size - 1) for byte in first for i in range(4)]
            eight = builder.bitcast(_picked(builder, packed, packed, windows), _EIGHT)
            shifts = ir.Constant(_EIGHT, [bits * (8 * k + lane) % 8 for lane in range(8)])
            yield floats(builder, builder.and_(builder.lshr(eight, shifts), _all(_EIGHT, 2**bits - 1)))

    return {8: bytes_, 4: halves}.get(bits, others)


def _spread(builder, codes, place, planes):
    """Decoder of 64 half-bytes in equal steps from 0, as eight vectors of 8 floats, with the least work.

    Eight numbers of 32 bits hold 8 codes each; vector k takes code k of each, where it stands, as 16 ** k times its value:
    `spread` divides the activations by that. The last has the sign's bit in it and is shifted down.
    """
    eights = _load(builder, codes, place, _EIGHT)
    for k in range(7):
        yield builder.sitofp(builder.and_(eights, _all(_EIGHT, 15 << (4 * k))), _FLOATS)
    yield builder.sitofp(builder.lshr(eights, _all(_EIGHT, 28)), _FLOATS)


def _looked_up(builder, codes, place, planes):
    """Decoder of 32 half-bytes by table, as four vectors of 8 floats; within every 8 codes the even ones come first."""
    bytes32, words16 = ir.VectorType(_I8, 32), ir.VectorType(ir.IntType(16), 16)
    shuffle = get_or_insert_function(builder.module, ir.FunctionType(bytes32, [bytes32] * 2), "llvm.x86.avx2.pshuf.b")
    packed = _load(builder, codes, place, ir.VectorType(_I8, 16))
    low, high = builder.and_(packed, _all(packed.type, 15)), builder.lshr(packed, _all(packed.type, 4))
    index = _picked(builder, low, high, range(32))
    tables = (_load(builder, planes, ir.Constant(_I64, 32 * k), bytes32) for k in range(4))
    first, second, third, fourth = (builder.call(shuffle, [table, index]) for table in tables)

    def interleaved(a, b, upper: bool):
        """Elements of a and b in turn, of the lower or upper half of each 128 bits."""
        half, start = a.type.count // 2, a.type.count // 4 if upper else 0
        turns = [lane + start + i + other for lane in (0, half) for i in range(half // 2) for other in (0, 2 * half)]
        return _picked(builder, a, b, turns)

    for upper in (False, True):
        low_words = builder.bitcast(interleaved(first, second, upper), words16)
        high_words = builder.bitcast(interleaved(third, fourth, upper), words16)
        for half in (False, True):
            yield builder.bitcast(interleaved(low_words, high_words, half), _FLOATS)


def _row_dot(decoder, block_bytes: int, unrolled: int = 0, size: int = BLOCK):
    """The product of one row of packed codes and one row of activations, with `decoder` for each block of `size` codes.

    unrolled: blocks of a group, 1, 2 or 4, where they are known; 0: any number, in a loop.
    (codes uint8 [groups * blocks * block_bytes], x float32 [groups * blocks * size] in the decoder's order, planes uint8
    [4 * 32]: byte k of 16 values, twice; starts float32 [groups * 8], whose eights are added to each group's products;
    scales float32 [groups]; groups; blocks: of a group) -> float32
    """

    @intrinsic
    def row_dot(typing, codes, x, planes, starts, scales, groups, blocks):
        def generate(context, builder, signature, arguments):
            codes_at, x_at, planes_at, starts_at, scales_at = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(signature.args[:5], arguments[:5], strict=True)
            )
            codes_at, planes_at = (builder.bitcast(address, _I8.as_pointer()) for address in (codes_at, planes_at))
            multiply_add = get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fmuladd.v8f32")
            zero, one, nothing = ir.Constant(_I64, 0), ir.Constant(_I64, 1), _all(_FLOATS, 0.0)

            def add_block(place, sums):
                """Products of a block, added to sums in turn."""
                x_place, sums = builder.mul(place, ir.Constant(_I64, size)), list(sums)
                values = decoder(builder, codes_at, builder.mul(place, ir.Constant(_I64, block_bytes)), planes_at)
                for k, value in enumerate(values):
                    activations = _load(builder, x_at, builder.add(x_place, ir.Constant(_I64, 8 * k)), _FLOATS)
                    sums[k % len(sums)] = builder.call(multiply_add, [value, activations, sums[k % len(sums)]])
                return sums

            entry = builder.basic_block
            group_head, group_body, group_end, end = (
                builder.append_basic_block(name) for name in ("group", "group_body", "group_end", "end")
            )
            builder.branch(group_head)
            builder.position_at_end(group_head)
            group, total, group_place = builder.phi(_I64), builder.phi(_FLOATS), builder.phi(_I64)
            builder.cbranch(builder.icmp_signed("<", group, arguments[5]), group_body, end)

            builder.position_at_end(group_body)
            start = _load(builder, starts_at, builder.mul(group, ir.Constant(_I64, 8)), _FLOATS)
            if unrolled:
                sums = [start, nothing]
                for block in range(unrolled):
                    sums = add_block(builder.add(group_place, ir.Constant(_I64, block)), sums)
                next_place = builder.add(group_place, ir.Constant(_I64, unrolled))
                builder.branch(group_end)
                builder.position_at_end(group_end)
            else:
                block_head, block_body = builder.append_basic_block("block"), builder.append_basic_block("block_body")
                builder.branch(block_head)
                builder.position_at_end(block_head)
                block, next_place = builder.phi(_I64), builder.phi(_I64)  # next_place: number of the block in the row
                sums = [builder.phi(_FLOATS) for _ in range(4)]
                builder.cbranch(builder.icmp_signed("<", block, arguments[6]), block_body, group_end)
                builder.position_at_end(block_body)
                following = [builder.add(block, one), builder.add(next_place, one), *add_block(next_place, sums)]
                builder.branch(block_head)
                firsts = [zero, group_place, start, nothing, nothing, nothing]
                for phi, first, later in zip([block, next_place, *sums], firsts, following, strict=True):
                    phi.add_incoming(first, group_body)
                    phi.add_incoming(later, block_body)
                builder.position_at_end(group_end)
            while len(sums) > 1:
                sums = [builder.fadd(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
            scale = builder.insert_element(nothing, builder.load(builder.gep(scales_at, [group])), ir.Constant(_I32, 0))
            next_total = builder.call(multiply_add, [_picked(builder, scale, nothing, [0] * 8), sums[0], total])
            next_group = builder.add(group, one)
            builder.branch(group_head)
            firsts, laters = [zero, nothing, zero], [next_group, next_total, next_place]
            for phi, first, later in zip([group, total, group_place], firsts, laters, strict=True):
                phi.add_incoming(first, entry)
                phi.add_incoming(later, group_end)

            builder.position_at_end(end)
            lanes = [builder.extract_element(total, ir.Constant(_I32, lane)) for lane in range(8)]
            while len(lanes) > 1:
                lanes = [builder.fadd(a, b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
            return lanes[0]

        return types.float32(codes, x, planes, starts, scales, types.int64, types.int64), generate

    return row_dot


def _block_decode(decoder, block_bytes: int, half: int):
    """32 packed codes as floats, in order. half: of the decoder's order, as in `ordered`.

    (codes uint8 [...], out float32 [...], planes as for _row_dot, number of the block in both, scale, zero)
    """

    def in_order(builder, vectors):
        if half == 8:  # a vector of even ones, one of odd ones
            for even, odd in zip(vectors[::2], vectors[1::2], strict=True):
                for start in (0, 4):
                    yield _picked(builder, even, odd, [place for i in range(start, start + 4) for place in (i, i + 8)])
        else:
            for vector in vectors:
                yield vector if half == 1 else _picked(builder, vector, vector, (0, 4, 1, 5, 2, 6, 3, 7))

    @intrinsic
    def block_decode(typing, codes, out, planes, block, scale, zero):
        def generate(context, builder, signature, arguments):
            codes_at, out_at, planes_at = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
            )
            codes_at, planes_at = (builder.bitcast(address, _I8.as_pointer()) for address in (codes_at, planes_at))
            multiply_add = get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fmuladd.v8f32")
            nothing = _all(_FLOATS, 0.0)
            scale, zero = (
                _picked(builder, builder.insert_element(nothing, number, ir.Constant(_I32, 0)), nothing, [0] * 8)
                for number in arguments[4:]
            )
            vectors = list(decoder(builder, codes_at, builder.mul(arguments[3], ir.Constant(_I64, block_bytes)), planes_at))
            for k, vector in enumerate(in_order(builder, vectors)):
                place = builder.add(builder.mul(arguments[3], ir.Constant(_I64, BLOCK)), ir.Constant(_I64, 8 * k))
                address = builder.bitcast(builder.gep(out_at, [place]), _FLOATS.as_pointer())
                builder.store(builder.call(multiply_add, [vector, scale, zero]), address, align=4)
            return context.get_dummy_value()

        return types.void(codes, out, planes, types.int64, types.float32, types.float32), generate

    return block_decode


# Codes of 4 bits are counted from 0 in a row's product, and the middle is taken off by `starts`: an instruction less.
_dot2, _dot3, _dot4, _dot5, _dot6, _dot7, _dot8 = (
    _row_dot(_steps(bits, 0 if bits == 4 else 2 ** (bits - 1)), 4 * bits) for bits in range(2, 9)
)
_dot_spread, _dot_spread_1, _dot_spread_2 = (_row_dot(_spread, 32, blocks, 2 * BLOCK) for blocks in (0, 1, 2))
_dot_shuffled, _dot_shuffled_1, _dot_shuffled_2, _dot_shuffled_4 = (_row_dot(_looked_up, 16, blocks) for blocks in (0, 1, 2, 4))
_decode2, _decode3, _decode4, _decode5, _decode6, _decode7, _decode8 = (
    _block_decode(_steps(bits, 2 ** (bits - 1)), 4 * bits, 8 if bits == 4 else 1) for bits in range(2, 9)
)
_decode_shuffled = _block_decode(_looked_up, 16, 4)


@njit(nogil=True, fastmath=_FAST)
def dot_plain(codes, x, values, scales, groups, blocks):
    """_looked_up's row product for processors that lack the byte shuffle; takes the values instead of their bytes."""
    total, size = float32(0), 16 * blocks
    for group in range(groups):
        c, a = codes[group * size : (group + 1) * size], x[2 * group * size : 2 * (group + 1) * size]
        dot = float32(0)
        for four in range(len(c) // 4):
            for i in range(4):
                code = c[4 * four + i]
                dot += a[8 * four + i] * values[code & uint8(15)] + a[8 * four + 4 + i] * values[code >> uint8(4)]
        total += dot * scales[group]
    return total


if HAS_SHUFFLE:

    @njit(nogil=True)
    def dot_table(codes, x, values, planes, starts, scales, groups, blocks):
        if blocks == 2:
            return _dot_shuffled_2(codes, x, planes, starts, scales, groups, blocks)
        if blocks == 1:
            return _dot_shuffled_1(codes, x, planes, starts, scales, groups, blocks)
        if blocks == 4:
            return _dot_shuffled_4(codes, x, planes, starts, scales, groups, blocks)
        return _dot_shuffled(codes, x, planes, starts, scales, groups, blocks)

else:

    @njit(nogil=True)
    def dot_table(codes, x, values, planes, starts, scales, groups, blocks):
        return dot_plain(codes, x, values, scales, groups, blocks)


@njit(nogil=True)
def dot_steps(bits, codes, x, planes, starts, scales, groups, blocks):
    if bits == 8:
        return _dot8(codes, x, planes, starts, scales, groups, blocks)
    if bits == 4:
        if blocks == 2:
            return _dot_spread_1(codes, x, planes, starts, scales, groups, blocks // 2)
        if blocks == 4:
            return _dot_spread_2(codes, x, planes, starts, scales, groups, blocks // 2)
        if blocks % 2 == 0:
            return _dot_spread(codes, x, planes, starts, scales, groups, blocks // 2)
        return _dot4(codes, x, planes, starts, scales, groups, blocks)
    if bits == 2:
        return _dot2(codes, x, planes, starts, scales, groups, blocks)
    if bits == 3:
        return _dot3(codes, x, planes, starts, scales, groups, blocks)
    if bits == 5:
        return _dot5(codes, x, planes, starts, scales, groups, blocks)
    if bits == 6:
        return _dot6(codes, x, planes, starts, scales, groups, blocks)
    return _dot7(codes, x, planes, starts, scales, groups, blocks)


@njit(nogil=True)
def _decode_steps(bits, codes, out, planes, block, scale, zero):
    if bits == 8:
        _decode8(codes, out, planes, block, scale, zero)
    elif bits == 4:
        _decode4(codes, out, planes, block, scale, zero)
    elif bits == 2:
        _decode2(codes, out, planes, block, scale, zero)
    elif bits == 3:
        _decode3(codes, out, planes, block, scale, zero)
    elif bits == 5:
        _decode5(codes, out, planes, block, scale, zero)
    elif bits == 6:
        _decode6(codes, out, planes, block, scale, zero)
    else:
        _decode7(codes, out, planes, block, scale, zero)


@njit(nogil=True, fastmath=_FAST)
def ordered(x, half):
    """x, with the even ones before the odd ones within every 2 * half; half 1: as it is."""
    out = numpy.empty_like(x)
    for start in range(0, len(x), 2 * half):
        for i in range(half):
            out[start + i] = x[start + 2 * i]
            out[start + half + i] = x[start + 2 * i + 1]
    return out


@njit(nogil=True, fastmath=_FAST)
def spread(x):
    """x in the order of _spread: within every 64, those that are k after a multiple of 8, divided by 16 ** k, for each k."""
    out = numpy.empty_like(x)
    for start in range(0, len(x), 64):
        factor = float32(1)
        for k in range(8):
            for lane in range(8):
                out[start + 8 * k + lane] = x[start + 8 * lane + k] * factor
            factor = factor / float32(16) if k < 6 else float32(1)
    return out


@njit(nogil=True, fastmath=_FAST)
def _group_sums(x, groups):
    """float32 [groups]: what a group's zero is multiplied with."""
    sums, size = numpy.empty(groups, numpy.float32), len(x) // groups
    for group in range(groups):
        total = float32(0)
        for j in range(group * size, (group + 1) * size):
            total += x[j]
        sums[group] = total
    return sums


@njit(nogil=True, fastmath=_FAST)
def _starts(x, groups, middle):
    """float32 [groups * 8]: eight numbers a group, which sum to -middle times its activations."""
    starts, size = numpy.zeros(groups * 8, numpy.float32), len(x) // groups
    if middle:
        for group in range(groups):
            part, start = x[group * size : (group + 1) * size], starts[group * 8 : group * 8 + 8]
            for eight in range(size // 8):
                for lane in range(8):
                    start[lane] -= float32(middle) * part[8 * eight + lane]
    return starts


@njit(nogil=True, fastmath=_FAST)
def _dot(a, b):
    total = float32(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@njit(nogil=True, fastmath=_FAST)
def _decode_row(job, row, out):
    """One row of the weight that a job names, as float32 [columns]."""
    columns, groups, bits, row_bytes = job[COLUMNS], job[GROUPS], job[BITS], job[ROW_BYTES]
    codes = carray(pointer(job[CODES] + row * row_bytes), row_bytes, numpy.uint8)
    scales = carray(pointer(job[SCALES] + 4 * row * groups), groups, numpy.float32)
    zeros = carray(pointer(job[ZEROS] + 4 * row * groups), groups if job[ZEROS] else 0, numpy.float32)
    size, way = columns // groups, job[WAY]
    if size % BLOCK == 0 and (way == STEPS or (way == TABLE and HAS_SHUFFLE)):
        planes, blocks = carray(pointer(job[PLANES]), 128, numpy.uint8), size // BLOCK
        for group in range(groups):
            zero = zeros[group] if len(zeros) else float32(0)
            for block in range(group * blocks, (group + 1) * blocks):
                if way == TABLE:
                    _decode_shuffled(codes, out, planes, block, scales[group], zero)
                else:
                    _decode_steps(bits, codes, out, planes, block, scales[group], zero)
        return
    values = carray(pointer(job[VALUES]), 1 << bits, numpy.float32)
    if bits == 8:
        for j in range(columns):
            out[j] = values[codes[j]]
    elif bits == 4:
        for j in range(columns // 2):
            out[2 * j] = values[codes[j] & uint8(15)]
            out[2 * j + 1] = values[codes[j] >> uint8(4)]
        if columns % 2:
            out[columns - 1] = values[codes[columns // 2] & uint8(15)]
    else:
        mask = (1 << bits) - 1
        for eight in range((columns + 7) // 8):  # eight codes are `bits` bytes, of which a row's end may lack some
            stored, word = codes[eight * bits : (eight + 1) * bits], int64(0)
            for k in range(len(stored)):
                word |= int64(stored[k]) << (8 * k)
            some = out[8 * eight : 8 * eight + 8]
            for i in range(len(some)):
                some[i] = values[(word >> (bits * i)) & mask]
    for group in range(groups):
        part, scale = out[group * size : (group + 1) * size], scales[group]
        zero = zeros[group] if len(zeros) else float32(0)
        for j in range(size):
            part[j] = part[j] * scale + zero


@njit(nogil=True, fastmath=_FAST)
def _finished(product, then, other):
    """A row's product after its activation function (GELU by its tanh formula), or with a number of another vector."""
    if then == ADD:
        return product + other
    if then == MULTIPLY:
        return product * other
    if then == GELU:  # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
        u = float32(0.7978845608028654) * (product + float32(0.044715) * product * product * product)
        return product / (float32(1) + math.exp(float32(-2) * u))
    if then == SILU:
        return product / (float32(1) + math.exp(-product))
    return product


@cfunc(LOOP, cache=True)
def multiply_row(job_pointer):
    """One row of activations, float32 [columns], with a weight whose groups are whole blocks -> y float32 [rows]."""
    job = carray(job_pointer, FIELDS)
    rows, columns, groups, bits, height = job[ROWS], job[COLUMNS], job[GROUPS], job[BITS], job[HEIGHT]
    codes = carray(pointer(job[CODES]), (rows, job[ROW_BYTES]), numpy.uint8)
    scales = carray(pointer(job[SCALES]), (rows, groups), numpy.float32)
    zeros = carray(pointer(job[ZEROS]), (rows if job[ZEROS] else 0, groups), numpy.float32)
    values = carray(pointer(job[VALUES]), 16, numpy.float32)
    planes = carray(pointer(job[PLANES]), 128, numpy.uint8)
    bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
    y = carray(pointer(job[Y]), rows, numpy.float32)
    other = carray(pointer(job[OTHER]), rows if job[OTHER] else 0, numpy.float32)
    x = carray(pointer(job[X]), columns, numpy.float32)
    sums = _group_sums(x, groups)
    is_table, blocks = job[WAY] == TABLE, columns // groups // BLOCK
    starts = _starts(x, groups, 8 if bits == 4 and not is_table else 0)
    if bits == 4 and not is_table and blocks % 2 == 0:
        x = spread(x)
    elif bits == 4:
        x = ordered(x, 4 if is_table else 8)
    while True:
        start = take(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            if is_table:
                total = dot_table(codes[row], x, values, planes, starts, scales[row], groups, blocks)
            else:
                total = dot_steps(bits, codes[row], x, planes, starts, scales[row], groups, blocks)
            for group in range(groups if len(zeros) else 0):
                total += zeros[row, group] * sums[group]
            if len(bias):
                total += bias[row]
            y[row] = _finished(total, job[THEN], other[row] if len(other) else float32(0))
        done(job_pointer)


@cfunc(LOOP, cache=True)
def multiply_rows(job_pointer):
    """A few rows of activations, float32 [count, columns], with any weight -> y float32 [count, rows].

    Each row of the weight is decoded into a buffer that stays in the core's first cache, and used for all.
    """
    job = carray(job_pointer, FIELDS)
    count, rows, columns, height = job[COUNT], job[ROWS], job[COLUMNS], job[HEIGHT]
    x = carray(pointer(job[X]), (count, columns), numpy.float32)
    y = carray(pointer(job[Y]), (count, rows), numpy.float32)
    bias = carray(pointer(job[BIAS]), rows if job[BIAS] else 0, numpy.float32)
    other = carray(pointer(job[OTHER]), rows if job[OTHER] else 0, numpy.float32)
    buffer = numpy.empty(columns, numpy.float32)
    while True:
        start = take(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            _decode_row(job, row, buffer)
            for i in range(count):
                dot = _dot(x[i], buffer)
                if len(bias):
                    dot += bias[row]
                y[i, row] = _finished(dot, job[THEN], other[row] if len(other) else float32(0))
        done(job_pointer)


@cfunc(LOOP, cache=True)
def decode(job_pointer):
    """Rows of packed codes, those that PICKED names (int64 [rows]) or all in order -> float32 [rows, columns], at Y."""
    job = carray(job_pointer, FIELDS)
    rows, columns, height = job[ROWS], job[COLUMNS], job[HEIGHT]
    y = carray(pointer(job[Y]), (rows, columns), numpy.float32)
    picked = carray(pointer(job[PICKED]), rows if job[PICKED] else 0, numpy.int64)
    while True:
        start = take(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height)):
            _decode_row(job, picked[row] if len(picked) else row, y[row])
        done(job_pointer)
