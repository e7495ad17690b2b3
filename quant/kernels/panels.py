"""Decodes a weight to bfloat16 in the order in which oneDNN multiplies it, so that it need not copy the weight into that order.

A panel has 64 rows of the weight: for every two columns, the pairs of all its rows follow each other. Rows are decoded 16 at a
time, 32 columns of each into a vector of 16 pairs; these vectors are transposed in registers, and each of the results is one
cache line of the panel. Needs AVX-512 with BF16.
"""

from __future__ import annotations

import numpy
from llvmlite import ir
from numba import carray, njit, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from quant.compiled.threads import claim, compiled_loop, finish
from quant.kernels.frame import (
    BITS,
    CODES,
    COLUMNS,
    FIELDS,
    GROUP_SIZE,
    GROUPS,
    HEIGHT,
    ROW_BYTES,
    ROWS,
    SCALES,
    VALUES,
    ZEROS,
    Y,
)
from quant.kernels.instructions import every, load, repeated, shuffled, transposed
from quant.kernels.vectors import BLOCK
from quant.kernels.wide import FLOATS, LANES, decoded, load_block
from quant.kernels.widths import by_width
from quant.kernels.windows import code_of

ROWS_OF_PANEL = 64
AT_ONCE = 16  # rows that are transposed together
PAIR = 4  # bytes of two bfloat16

_I8, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_PAIRS, _WORDS = ir.VectorType(_I32, AT_ONCE), ir.VectorType(ir.IntType(16), BLOCK)


class _Bfloat16(ir.Type):
    """LLVM's type, for which llvmlite has no class."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other) -> bool:
        return isinstance(other, _Bfloat16)

    def __hash__(self) -> int:
        return hash(_Bfloat16)


def _block_of(bits: int):
    """Build the function that decodes 32 columns of 16 rows into a panel, for one width. It takes integers:
    codes, scales, zeros                  addresses: of the first row's codes, scale and zero
    row_bytes, scale_bytes, zero_bytes    from each to that of the next row
    values                                address of float32 [32]: what each code stands for, repeated; not read from 6 bits on
    out                                   address of the first row's first pair
    """
    found = [code_of(bits, BLOCK, LANES, *divmod(lane, LANES)) for lane in range(BLOCK)]
    order = [found.index(column) for column in range(BLOCK)]

    @intrinsic
    def decode_block(typing, codes, row_bytes, scales, scale_bytes, zeros, zero_bytes, values, out):
        def generate(context, builder, signature, arguments):
            codes, row_bytes, scales, scale_bytes, zeros, zero_bytes, values, out = arguments
            multiply_add = get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), "llvm.fma.v16f32")
            kind = ir.FunctionType(ir.VectorType(_Bfloat16(), BLOCK), [FLOATS] * 2)
            rounded = get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtne2ps2bf16.512")

            def at(address, stride, count):
                stride = stride if isinstance(stride, ir.Value) else ir.Constant(_I64, stride)
                return builder.inttoptr(builder.add(address, builder.mul(stride, ir.Constant(_I64, count))), _I8.as_pointer())

            tables = [load(builder, at(values, 4 * LANES, half), FLOATS) for half in (0, 1)]
            rows = []
            for row in range(AT_ONCE):
                scale, zero = (
                    repeated(builder, builder.load(builder.bitcast(at(*place, row), _FLOAT.as_pointer()), align=4), LANES)
                    for place in ((scales, scale_bytes), (zeros, zero_bytes))
                )
                if bits == 8:
                    scale = builder.fmul(scale, every(FLOATS, 2.0**-24))
                block = load_block(builder, at(codes, row_bytes, row), BLOCK * bits // 8)
                low, high = (builder.call(multiply_add, [vector, scale, zero])
                             for vector in decoded(builder, block, bits, BLOCK, tables))
                words = builder.bitcast(builder.call(rounded, [high, low]), _WORDS)
                rows.append(builder.bitcast(shuffled(builder, words, words, order), _PAIRS))
            for column, line in enumerate(transposed(builder, rows)):
                builder.store(line, builder.bitcast(at(out, PAIR * ROWS_OF_PANEL, column), _PAIRS.as_pointer()), align=PAIR)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return decode_block


def _rows_of(bits: int):
    """Make the function that decodes 16 rows into a panel, for one width."""
    decode_block = _block_of(bits)

    @njit(nogil=True)
    def decode_rows(job, row, nothing):  # int64 [FIELDS], int64, float32 [1]
        columns, size, row_bytes, group_bytes = job[COLUMNS], job[GROUP_SIZE], job[ROW_BYTES], 4 * job[GROUPS]
        within = row % ROWS_OF_PANEL
        out = job[Y] + PAIR * ((row - within) * columns // 2 + within)
        codes, scales = job[CODES] + row * row_bytes, job[SCALES] + row * group_bytes
        zeros = job[ZEROS] + row * group_bytes if job[ZEROS] else nothing.ctypes.data
        zero_bytes = group_bytes if job[ZEROS] else 0
        for block in range(columns // BLOCK):
            group = block * BLOCK // size
            decode_block(codes + block * BLOCK * bits // 8, row_bytes, scales + 4 * group, group_bytes,
                         zeros + (4 * group if zero_bytes else 0), zero_bytes, job[VALUES],
                         out + PAIR * block * BLOCK // 2 * ROWS_OF_PANEL)

    return decode_rows


_decode_rows = by_width(_rows_of)


@compiled_loop
def to_panels(job_pointer):
    """Decode the first ROWS rows of the weight, a multiple of 16, to panels at Y. Its groups are whole blocks, and HEIGHT is a
    multiple of 16."""
    job = carray(job_pointer, FIELDS)
    rows, height, nothing = job[ROWS], job[HEIGHT], numpy.zeros(1, numpy.float32)
    while True:
        start = claim(job_pointer) * height
        if start >= rows:
            break
        for row in range(start, min(rows, start + height), AT_ONCE):
            _decode_rows(job[BITS], job, row, nothing)
        finish(job_pointer)
