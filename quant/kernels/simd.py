"""The step of a 4-bit product that no compiler finds by itself: 32 table look-ups in four instructions.

A byte shuffle (x86: AVX2) looks up 32 half-bytes in a table of 16 bytes at once. A table of 16 floats is four such tables,
one for each byte of a float; interleaving what they give yields 32 floats. It takes the two halves of 16 bytes as they
lie, so within every eight weights the even ones come before the odd ones: the activations are put in that order first.
On other processors `row_dot` is a plain loop over the same order.
"""

from __future__ import annotations

import llvmlite.binding
from llvmlite import ir
from numba import float32, njit, types, uint8
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

BLOCK = 32  # weights of a step, which lie in 16 bytes
_FEATURES = llvmlite.binding.get_host_cpu_features()
HAS_SHUFFLE = bool(_FEATURES.get("avx2") and _FEATURES.get("fma"))

_I8, _I64, _FLOAT = ir.IntType(8), ir.IntType(64), ir.FloatType()
_BYTES, _WORDS, _FLOATS = ir.VectorType(_I8, 32), ir.VectorType(ir.IntType(16), 16), ir.VectorType(_FLOAT, 8)
_HALF = ir.VectorType(_I8, 16)


def _mask(numbers) -> ir.Constant:
    numbers = list(numbers)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _interleave(builder, a, b, count: int, upper: bool):
    """unpack low or high: within each 128-bit half, elements of a and b in turn; count: elements of a vector."""
    half = count // 2
    order = []
    for lane in (0, half):
        for i in range(half // 2):
            place = lane + i + (half // 2 if upper else 0)
            order += [place, place + count]
    return builder.shuffle_vector(a, b, _mask(order))


@intrinsic
def _shuffled_dot(typing, codes, x, planes, scales, groups, blocks):
    """sum over groups of scales[group] * sum over its `blocks` of x * value[code], float32.

    codes uint8 [groups * blocks * 16]; x float32 [groups * blocks * 32] in the order above; planes uint8 [4 * 32], byte k of the
    16 values, twice; scales float32 [groups].
    """

    def generate(context, builder, signature, arguments):
        code_data, x_data, plane_data, scale_data = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:4], arguments[:4], strict=True)
        )
        group_count, block_count = arguments[4:]
        shuffle = get_or_insert_function(builder.module, ir.FunctionType(_BYTES, [_BYTES, _BYTES]), "llvm.x86.avx2.pshuf.b")
        multiply_add = get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fma.v8f32")
        nothing = ir.Constant(_FLOATS, [0.0] * 8)

        def load(pointer, index, kind):
            return builder.load(builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer()), align=1)

        tables = [load(plane_data, ir.Constant(_I64, 32 * k), _BYTES) for k in range(4)]

        def values_of(place):
            """32 floats of the 16 bytes at `place`, as four vectors."""
            packed = load(code_data, place, _HALF)
            low = builder.and_(packed, ir.Constant(_HALF, [15] * 16))
            high = builder.lshr(packed, ir.Constant(_HALF, [4] * 16))
            index = builder.shuffle_vector(low, high, _mask(range(32)))
            first, second, third, fourth = (builder.call(shuffle, [table, index]) for table in tables)
            vectors = []
            for upper in (False, True):
                low_words = builder.bitcast(_interleave(builder, first, second, 32, upper), _WORDS)
                high_words = builder.bitcast(_interleave(builder, third, fourth, 32, upper), _WORDS)
                for half in (False, True):
                    vectors.append(builder.bitcast(_interleave(builder, low_words, high_words, 16, half), _FLOATS))
            return vectors

        entry = builder.basic_block
        group_head, group_start, block_head, block_body, group_end, end = (
            builder.append_basic_block(name) for name in ("group", "group_start", "block", "block_body", "group_end", "end")
        )
        builder.branch(group_head)

        builder.position_at_end(group_head)
        group, total, group_place = builder.phi(_I64), builder.phi(_FLOATS), builder.phi(_I64)
        builder.cbranch(builder.icmp_signed("<", group, group_count), group_start, end)

        builder.position_at_end(group_start)
        builder.branch(block_head)

        builder.position_at_end(block_head)
        block, place = builder.phi(_I64), builder.phi(_I64)
        sums = [builder.phi(_FLOATS) for _ in range(4)]
        builder.cbranch(builder.icmp_signed("<", block, block_count), block_body, group_end)

        builder.position_at_end(block_body)
        x_place = builder.mul(place, ir.Constant(_I64, 2))
        following = []
        for k, values in enumerate(values_of(place)):
            activations = load(x_data, builder.add(x_place, ir.Constant(_I64, 8 * k)), _FLOATS)
            following.append(builder.call(multiply_add, [values, activations, sums[k]]))
        next_block = builder.add(block, ir.Constant(_I64, 1))
        next_place = builder.add(place, ir.Constant(_I64, 16))
        builder.branch(block_head)
        for phi, first, later in [(block, ir.Constant(_I64, 0), next_block), (place, group_place, next_place),
                                  *((s, nothing, f) for s, f in zip(sums, following, strict=True))]:
            phi.add_incoming(first, group_start)
            phi.add_incoming(later, block_body)

        builder.position_at_end(group_end)
        both = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
        scale = builder.load(builder.gep(scale_data, [group]))
        one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), scale, ir.Constant(ir.IntType(32), 0))
        scale = builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), _mask([0] * 8))
        next_total = builder.call(multiply_add, [scale, both, total])
        next_group = builder.add(group, ir.Constant(_I64, 1))
        builder.branch(group_head)
        for phi, first, later in ((group, ir.Constant(_I64, 0), next_group), (total, nothing, next_total),
                                  (group_place, ir.Constant(_I64, 0), place)):
            phi.add_incoming(first, entry)
            phi.add_incoming(later, group_end)

        builder.position_at_end(end)
        lanes = [builder.extract_element(total, ir.Constant(ir.IntType(32), lane)) for lane in range(8)]
        while len(lanes) > 1:
            lanes = [builder.fadd(a, b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
        return lanes[0]

    return types.float32(codes, x, planes, scales, types.int64, types.int64), generate


@njit(nogil=True)
def row_dot_shuffled(codes, x, values, planes, scales, blocks):
    return _shuffled_dot(codes, x, planes, scales, len(scales), blocks)


@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def row_dot_plain(codes, x, values, planes, scales, blocks):
    total, size = float32(0), 16 * blocks
    for group in range(len(scales)):
        c, a = codes[group * size : (group + 1) * size], x[2 * group * size : 2 * (group + 1) * size]
        dot = float32(0)
        for four in range(len(c) // 4):
            for i in range(4):
                code = c[4 * four + i]
                dot += a[8 * four + i] * values[code & uint8(15)] + a[8 * four + 4 + i] * values[code >> uint8(4)]
        total += dot * scales[group]
    return total


row_dot = row_dot_shuffled if HAS_SHUFFLE else row_dot_plain
