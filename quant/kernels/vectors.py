"""Packed codes to vectors of floats, and their product with activations, in LLVM's vector instructions.

Compilers do not vectorize the unpacking of codes by themselves. Here a decoder emits the instructions for one block of codes,
and `row_dot` and `block_decode` build around it the functions that the loops call. The instructions run on every
processor, except one: a byte shuffle (x86: AVX2) that looks up 32 half-bytes in a table of 16 bytes at once. A table of 16
floats is stored as four such tables, one for each byte of a float; interleaving the four results yields 32 floats.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from quant.compiled.lanes import features
from quant.kernels.instructions import every, load, repeated, shuffled
from quant.kernels.prefetch import prefetch
from quant.kernels.windows import code_of, first_bit, window_start

BLOCK = 32  # codes decoded per step; only groups of whole blocks take this path

HAS_SHUFFLE = "avx2" in features()

_I8, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_EIGHT, _FLOATS = ir.VectorType(_I32, 8), ir.VectorType(_FLOAT, 8)


def _load(builder, address, offset, kind) -> ir.Value:
    return load(builder, builder.gep(address, [offset]), kind)


def equal_steps(bits: int, counted_from: int):
    """Make a decoder of 32 codes in equal steps, which yields four vectors of 8 floats; the code `counted_from` stands for 0.

    The floats come in the order of the codes, except at four bits: there, of every 16, those in the low half-bytes (the even
    ones) come first.
    """

    def floats(builder, whole):
        return builder.sitofp(builder.sub(whole, every(_EIGHT, counted_from)) if counted_from else whole, _FLOATS)

    def bytes_(builder, codes, place, lookup_planes):
        for k in range(4):
            eight = _load(builder, codes, builder.add(place, ir.Constant(_I64, 8 * k)), ir.VectorType(_I8, 8))
            yield floats(builder, builder.zext(eight, _EIGHT))

    def halves(builder, codes, place, lookup_planes):
        for k in range(2):
            eight = _load(builder, codes, builder.add(place, ir.Constant(_I64, 8 * k)), ir.VectorType(_I8, 8))
            eight = builder.zext(eight, _EIGHT)
            yield floats(builder, builder.and_(eight, every(_EIGHT, 15)))
            yield floats(builder, builder.lshr(eight, every(_EIGHT, 4)))

    def others(builder, codes, place, lookup_planes):
        size = 4 * bits  # bytes of 32 codes
        packed = _load(builder, codes, place, ir.VectorType(_I8, size))
        for k in range(4):
            first = [bits * (8 * k + lane) // 8 for lane in range(8)]  # a code lies in this byte and perhaps the next
            windows = [min(byte + i, size - 1) for byte in first for i in range(4)]
            eight = builder.bitcast(shuffled(builder, packed, packed, windows), _EIGHT)
            shifts = ir.Constant(_EIGHT, [bits * (8 * k + lane) % 8 for lane in range(8)])
            yield floats(builder, builder.and_(builder.lshr(eight, shifts), every(_EIGHT, 2**bits - 1)))

    return {8: bytes_, 4: halves}.get(bits, others)


def masked_steps(bits: int):
    """Make a decoder of 64 codes of 2, 3 or 4 bits in equal steps from 0: eight vectors of 8 floats, by the fewest instructions.

    A window of 32 bits holds 8 or 16 codes (quant.kernels.windows). Vector k keeps code k of each by a mask, without a shift. So
    it is 2 ** masked_bit times too large; quant.kernels.rows_of_8 divides the activations by that.
    """

    starts = [window_start(bits, code_of(bits, 2 * BLOCK, 8, 0, lane)) // 8 for lane in range(8)]

    def load_windows(builder, codes, place):
        if bits == 4:
            return _load(builder, codes, place, _EIGHT)
        kind, rest = ir.VectorType(_I8, 16), 8 * bits - 16  # two reads that overlap, or the same one twice
        first, second = (_load(builder, codes, builder.add(place, ir.Constant(_I64, start)), kind) for start in (0, rest))
        bytes_ = [min(start + i, 8 * bits - 1) for start in starts for i in range(4)]
        places = (byte if number < 16 else byte + 16 - rest for number, byte in enumerate(bytes_))  # lanes 4 to 7: of the second
        return builder.bitcast(shuffled(builder, first, second, places), _EIGHT)

    def decode(builder, codes, place, lookup_planes):
        windows = load_windows(builder, codes, place)
        for vector in range(8):
            down = first_bit(bits, code_of(bits, 2 * BLOCK, 8, vector, 7)) - masked_bit(bits, vector, 7)
            masks = ir.Constant(_EIGHT, [(2**bits - 1) << masked_bit(bits, vector, lane) for lane in range(8)])
            kept = builder.lshr(windows, every(_EIGHT, down)) if down else windows
            is_alone = down == 32 - bits  # nothing else is left
            yield builder.sitofp(kept if is_alone else builder.and_(kept, masks), _FLOATS)

    return decode


def masked_bit(bits: int, vector: int, lane: int) -> int:
    """Number of the first bit of a code where `masked_steps` masks it: that in its window, unless a code of the vector reaches
    the sign. Then all are moved down: by one bit, or to the lower end if all reach it."""
    places = [first_bit(bits, code_of(bits, 2 * BLOCK, 8, vector, other)) for other in range(8)]
    reach = [place + bits == 32 for place in places]
    return places[lane] - (32 - bits if all(reach) else int(any(reach)))


def looked_up(builder, codes, place, lookup_planes):
    """Decode 32 half-bytes through a table of 16 into four vectors of 8 floats; of every 8 codes the even ones come first."""
    bytes32, words16 = ir.VectorType(_I8, 32), ir.VectorType(ir.IntType(16), 16)
    shuffle = get_or_insert_function(builder.module, ir.FunctionType(bytes32, [bytes32] * 2), "llvm.x86.avx2.pshuf.b")
    packed = _load(builder, codes, place, ir.VectorType(_I8, 16))
    low, high = builder.and_(packed, every(packed.type, 15)), builder.lshr(packed, every(packed.type, 4))
    index = shuffled(builder, low, high, range(32))
    tables = (_load(builder, lookup_planes, ir.Constant(_I64, 32 * k), bytes32) for k in range(4))
    first, second, third, fourth = (builder.call(shuffle, [table, index]) for table in tables)

    def interleaved(a, b, upper: bool):
        """Interleave the lower or the upper halves of each 128-bit lane of a and b."""
        half, start = a.type.count // 2, a.type.count // 4 if upper else 0
        turns = [lane + start + i + other for lane in (0, half) for i in range(half // 2) for other in (0, 2 * half)]
        return shuffled(builder, a, b, turns)

    for upper in (False, True):
        low_words = builder.bitcast(interleaved(first, second, upper), words16)
        high_words = builder.bitcast(interleaved(third, fourth, upper), words16)
        for half in (False, True):
            yield builder.bitcast(interleaved(low_words, high_words, half), _FLOATS)


def row_dot(decoder, block_bytes: int, unrolled: int = 0, size: int = BLOCK):
    """Build the product of one row of packed codes with one row of activations; `decoder` decodes blocks of `size` codes.

    unrolled: blocks per group where the number is fixed, 1, 2 or 4; 0: any number, in a loop. The function built returns
    float32 and takes:
        codes          uint8 [groups * blocks * block_bytes]
        x              float32 [groups * blocks * size], in the decoder's order
        lookup_planes  uint8 [4, 32]: byte k of the table's 16 floats, twice
        offsets        float32 [groups, 8]: initial values of each group's eight partial sums
        scales         float32 [groups]
        groups, blocks integers: groups of a row, blocks of a group
    """

    @intrinsic
    def dot(typing, codes, x, lookup_planes, offsets, scales, groups, blocks):
        def generate(context, builder, signature, arguments):
            codes_at, x_at, lookup_at, offsets_at, scales_at = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(signature.args[:5], arguments[:5], strict=True)
            )
            codes_at, lookup_at = (builder.bitcast(address, _I8.as_pointer()) for address in (codes_at, lookup_at))
            multiply_add = get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fmuladd.v8f32")
            zero, one, nothing = ir.Constant(_I64, 0), ir.Constant(_I64, 1), every(_FLOATS, 0.0)

            def add_block(place, sums):
                """Add a block's products to the sums, round robin."""
                x_place, sums = builder.mul(place, ir.Constant(_I64, size)), list(sums)
                code_place = builder.mul(place, ir.Constant(_I64, block_bytes))
                prefetch(builder, builder.gep(codes_at, [code_place]))
                values = decoder(builder, codes_at, code_place, lookup_at)
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
            start = _load(builder, offsets_at, builder.mul(group, ir.Constant(_I64, 8)), _FLOATS)
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
            scale = repeated(builder, builder.load(builder.gep(scales_at, [group])), 8)
            next_total = builder.call(multiply_add, [scale, sums[0], total])
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

        return types.float32(codes, x, lookup_planes, offsets, scales, types.int64, types.int64), generate

    return dot


def block_decode(decoder, block_bytes: int, half: int):
    """Build the function that decodes 32 packed codes to floats, in order.

    half: number of even codes before the odd ones in the decoder's order; 1: it keeps the order. The function built takes:
        codes          uint8 [...]
        out            float32 [...]
        lookup_planes  uint8 [4, 32], as for row_dot
        block          integer: number of the block, in codes and out
        scale, zero    float32: of its group
    """

    def in_order(builder, vectors):
        if half == 8:  # a vector of even ones, one of odd ones
            for even, odd in zip(vectors[::2], vectors[1::2], strict=True):
                for start in (0, 4):
                    yield shuffled(builder, even, odd, [place for i in range(start, start + 4) for place in (i, i + 8)])
        else:
            for vector in vectors:
                yield vector if half == 1 else shuffled(builder, vector, vector, (0, 4, 1, 5, 2, 6, 3, 7))

    @intrinsic
    def decode(typing, codes, out, lookup_planes, block, scale, zero):
        def generate(context, builder, signature, arguments):
            codes_at, out_at, lookup_at = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
            )
            codes_at, lookup_at = (builder.bitcast(address, _I8.as_pointer()) for address in (codes_at, lookup_at))
            multiply_add = get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fmuladd.v8f32")
            scale, zero = (repeated(builder, number, 8) for number in arguments[4:])
            vectors = list(decoder(builder, codes_at, builder.mul(arguments[3], ir.Constant(_I64, block_bytes)), lookup_at))
            for k, vector in enumerate(in_order(builder, vectors)):
                place = builder.add(builder.mul(arguments[3], ir.Constant(_I64, BLOCK)), ir.Constant(_I64, 8 * k))
                address = builder.bitcast(builder.gep(out_at, [place]), _FLOATS.as_pointer())
                builder.store(builder.call(multiply_add, [vector, scale, zero]), address, align=4)
            return context.get_dummy_value()

        return types.void(codes, out, lookup_planes, types.int64, types.float32, types.float32), generate

    return decode
