"""Matrix products on a CUDA GPU, in Triton, straight from the packed codes: decoded weights never reach the GPU's memory.

For one row of activations (decoding a token), each code is read once, and the activations from cache, so the least time is
out * in * bits / 8 bytes over the bandwidth of the GPU's memory: at 8 bits half of bfloat16's, at 4 a quarter, scales aside.
Everything is computed in float32, without tensor cores. Compiled for sm_90, the inner loop has 5.3 instructions per code at
8 bits and 6.4 at 4: a GPU with much bandwidth for its clock is then limited by its instruction rate, not by memory.

More rows are multiplied in tiles on the tensor cores: a tile's weights are computed in float32 and rounded to the activations'
dtype, as in the reference; the sums are float32. Float32 activations are multiplied as float32, never as TF32, without tensor
cores. A tile's codes are read again for every BLOCK_M rows of activations, mostly from the L2 cache.

The same two kernels serve every width, grid and group size. Codes of 8 bits are read as bytes and those of 4 as half-bytes;
any other width, and 4 bits in groups of an odd size, loads two bytes for each code, which costs many instructions. Values of
a table are looked up in shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from quant.errors import InputError
from quant.tensor.grids import LinearGrid, grid_of
from quant.tensor.qtensor import QTensor

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    raise InputError("a quantized weight lies on a CUDA device, and products there need triton, which is not installed; "
                     "pip install triton, or set device to cpu") from error

# Weights of a row that one thread takes: they share a scale, and their products are summed before it is applied. 16 codes are
# one load of 16 bytes at 8 bits, and of 8 bytes at 4.
PIECE = 16


@dataclass(frozen=True)
class Blocks:
    """Block of outputs of one program: m rows of activations by n rows of the weight, in steps of `columns` columns."""

    m: int
    n: int
    columns: int
    warps: int
    stages: int


# Derived from the code that Triton compiles for sm_80 and sm_90, not from measurements: no GPU was available.
# One row: 4 warps of threads with a PIECE each span 2048 columns; 4 rows of the weight share the activations they load and
# keep 4 loads per thread in flight. A weight of 4096 rows makes 1024 programs, several for each of a GPU's 100 or so SMs.
ONE_ROW = Blocks(m=1, n=4, columns=2048, warps=4, stages=1)
# Tiles by the largest number of activation rows they serve; the last serves any number. 16 rows are the smallest tile of tensor
# cores: it takes few rows of the weight, so that enough programs share the reading. More rows take larger tiles, because every
# tile decodes its own weights. All fit the 99 KiB of shared memory of GPUs such as the RTX 3090 and 4090.
TILES = {
    16: Blocks(m=16, n=32, columns=128, warps=4, stages=3),
    64: Blocks(m=64, n=64, columns=64, warps=4, stages=3),
    None: Blocks(m=128, n=128, columns=64, warps=8, stages=3),
}
FLOAT32_TILES = {  # without tensor cores; twice the bytes
    16: Blocks(m=16, n=32, columns=64, warps=4, stages=2),
    None: Blocks(m=64, n=64, columns=32, warps=8, stages=2),
}


class Matmul:
    """x W^T + b for one weight. The constructor expands quantized scales and whole zeros; everything else is used in place."""

    def __init__(self, weight: QTensor):
        scheme, grid = weight.scheme, grid_of(weight.scheme)
        self.weight = weight
        self.rows, self.columns = weight.shape
        self.codes = weight.codes.contiguous()
        self.scales = weight.scales.rows(slice(None)).contiguous()  # [out, groups], or [1, 1]
        is_expanded = scheme.zeros == "whole" or scheme.scale_dtype == "nested"
        zeros = weight.groups.zero_values() if is_expanded else weight.zeros
        self.zeros = None if zeros is None else zeros.contiguous()
        is_linear = isinstance(grid, LinearGrid)
        self.table = None if is_linear else pad(grid.values, (0, 2**scheme.bits - len(grid.values))).to(self.codes.device)
        scale_rows, groups = self.scales.shape
        size = scheme.columns_per_group(self.columns)
        self.scale_stride = 0 if scale_rows == 1 else groups
        self.constants = {
            "GROUP": 0 if groups == 1 else size,
            "PIECE": PIECE if groups == 1 else min(PIECE, size & -size),  # a power of two that divides the group
            "BITS": scheme.bits,
            "OFFSET": grid.offset if is_linear else 0,
        }

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] of float32, float16 or bfloat16, on the weight's device -> [..., out] in x's dtype."""
        flat = x.reshape(-1, self.columns).contiguous()
        y = torch.empty((len(flat), self.rows), dtype=x.dtype, device=x.device)
        if len(flat):
            kernel, grid, arguments = self.launch(flat, bias, y)
            with torch.cuda.device_of(flat):  # Triton launches on the current device
                kernel[grid](**arguments)
        return y.view(*x.shape[:-1], self.rows)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight and read no others: int64 [n] -> float32 [n, in]."""
        return self.weight.dequantize_rows(rows)

    def launch(self, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> tuple[triton.JITFunction, tuple, dict]:
        """Choose the kernel for x [rows, in]; returns it, its grid of programs and its arguments."""
        blocks = blocks_for(len(x), x.dtype)
        columns = min(blocks.columns, max(16, triton.next_power_of_2(self.columns)))
        arguments = {
            "x": x, "codes": self.codes, "scales": self.scales, "zeros": self.zeros, "table": self.table, "bias": bias, "y": y,
            "out_features": self.rows, "in_features": self.columns, "row_bytes": self.codes.shape[1],
            "scale_stride": self.scale_stride, **self.constants, "PIECES": columns // self.constants["PIECE"],
            "BLOCK_N": blocks.n, "num_warps": blocks.warps, "num_stages": blocks.stages,
        }  # fmt: skip
        parts = triton.cdiv(self.rows, blocks.n)
        if len(x) == 1:
            return one_row_product, (parts,), arguments
        # Programs that share a part of the weight are launched one after another, so they find its codes in the L2 cache.
        return tile_product, (triton.cdiv(len(x), blocks.m), parts), {**arguments, "count": len(x), "BLOCK_M": blocks.m}


def blocks_for(count: int, dtype: torch.dtype) -> Blocks:
    """The blocks for `count` rows of activations."""
    if count == 1:
        return ONE_ROW
    tiles = FLOAT32_TILES if dtype == torch.float32 else TILES
    return next(blocks for most, blocks in tiles.items() if most is None or count <= most)


@triton.jit
def one_row_product(
    x, codes, scales, zeros, table, bias, y, out_features, in_features, row_bytes, scale_stride,
    GROUP: tl.constexpr, PIECE: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr, BLOCK_N: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N outputs of one row of activations, PIECES * PIECE columns at a time."""
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    values = None if table is None else tl.load(table + tl.arange(0, 1 << BITS))
    total = tl.zeros((BLOCK_N, PIECES), tl.float32)
    for start in range(0, in_features, PIECES * PIECE):
        columns = start + tl.arange(0, PIECES)[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
        activations = tl.load(x + columns, mask=columns < in_features, other=0.0).to(tl.float32)
        steps = _steps(codes, values, rows, start, out_features, row_bytes, BITS, OFFSET, PIECES, PIECE)
        dots = tl.sum(steps * activations[None, :, :], axis=2)
        total += dots * _parameters(scales, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
        if zeros is not None:
            lows = _parameters(zeros, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
            total += lows * tl.sum(activations, axis=1)[None, :]
    sums = tl.sum(total, axis=1)
    if bias is not None:
        sums += tl.load(bias + rows, mask=rows < out_features, other=0.0).to(tl.float32)
    tl.store(y + rows, sums, mask=rows < out_features)


@triton.jit
def tile_product(
    x, codes, scales, zeros, table, bias, y, count, out_features, in_features, row_bytes, scale_stride,
    GROUP: tl.constexpr, PIECE: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_M by BLOCK_N outputs, PIECES * PIECE columns at a time."""
    tokens = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    rows = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    values = None if table is None else tl.load(table + tl.arange(0, 1 << BITS))
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, in_features, PIECES * PIECE):
        columns = start + tl.arange(0, PIECES * PIECE)
        is_there = (tokens < count)[:, None] & (columns < in_features)[None, :]
        activations = tl.load(x + tokens[:, None] * in_features + columns[None, :], mask=is_there, other=0.0)
        steps = _steps(codes, values, rows, start, out_features, row_bytes, BITS, OFFSET, PIECES, PIECE)
        scale = _parameters(scales, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
        weights = steps * scale[:, :, None]
        if zeros is not None:
            lows = _parameters(zeros, rows, start, out_features, in_features, scale_stride, GROUP, PIECES, PIECE)
            weights += lows[:, :, None]
        weights = tl.reshape(weights, (BLOCK_N, PIECES * PIECE)).to(activations.dtype)
        total = tl.dot(activations, tl.trans(weights), total, input_precision="ieee")  # ieee: float32 stays float32
    if bias is not None:
        total += tl.load(bias + rows, mask=rows < out_features, other=0.0).to(tl.float32)[None, :]
    is_there = (tokens < count)[:, None] & (rows < out_features)[None, :]
    tl.store(y + tokens[:, None] * out_features + rows[None, :], total, mask=is_there)


@triton.jit
def _steps(
    codes, values, rows, start, out_features, row_bytes, BITS: tl.constexpr, OFFSET: tl.constexpr, PIECES: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """Decode the codes from column `start` to their values on the grid, float32 [rows, PIECES, PIECE]; finite past the end."""
    places = codes + rows[:, None, None] * row_bytes
    is_row = (rows < out_features)[:, None, None]
    pieces = tl.arange(0, PIECES)[None, :, None]
    if BITS == 4 and PIECE > 1:
        byte = start // 2 + pieces * (PIECE // 2) + tl.arange(0, PIECE // 2)[None, None, :]
        pair = tl.load(places + byte, mask=is_row & (byte < row_bytes), other=0).to(tl.int32)
        code = tl.interleave(pair & 15, pair >> 4)
    elif BITS == 8:
        byte = start + pieces * PIECE + tl.arange(0, PIECE)[None, None, :]
        code = tl.load(places + byte, mask=is_row & (byte < row_bytes), other=0).to(tl.int32)
    else:  # a code may end in the byte after the one where it begins
        bit = (start + pieces * PIECE + tl.arange(0, PIECE)[None, None, :]) * BITS
        byte = bit // 8
        first = tl.load(places + byte, mask=is_row & (byte < row_bytes), other=0).to(tl.int32)
        second = tl.load(places + byte + 1, mask=is_row & (byte + 1 < row_bytes), other=0).to(tl.int32)
        code = ((first | (second << 8)) >> (bit % 8)) & ((1 << BITS) - 1)
    if values is not None:
        # A gather, not a load: in the tiles' loop Triton would stage the load through shared memory, value by value.
        flat = tl.gather(values, tl.reshape(code, (code.numel,)), 0)
        return tl.reshape(flat, code.shape)
    # The code is put into the low bits of the float 2**23, which is then subtracted, exactly: faster than a conversion.
    return (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + OFFSET)


@triton.jit
def _parameters(
    parameters, rows, start, out_features, in_features, stride, GROUP: tl.constexpr, PIECES: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """Load the scale or zero of every piece from column `start`, float32 [rows, PIECES]; 0 past the end."""
    column = start + tl.arange(0, PIECES) * PIECE
    group = column // GROUP if GROUP else column * 0
    is_there = (rows < out_features)[:, None] & (column < in_features)[None, :]
    return tl.load(parameters + rows[:, None] * stride + group[None, :], mask=is_there, other=0.0).to(tl.float32)
