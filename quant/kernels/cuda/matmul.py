"""The product with one weight on a GPU: picks way and blocks by the number of rows, and starts the kernels.

What a launch needs of a weight's shape is worked out once for each number of rows and kept (`plan`); then a product is one call
of a kernel and, where a row's columns are divided, one more. Memory that a product needs beside its result is torch's, and free
again afterwards: at most Blocks.scratch bytes, or the float32 sums of the parts. So no tensor is kept from call to call, and both
CUDA graphs and torch.compile may hold a product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch._dynamo  # here, because it takes a second, which a first product should not
import triton
from torch.nn.functional import linear

from quant.kernels.cuda.blocks import DENSE, FEW, TABLE, Blocks, Entry, blocks_for
from quant.kernels.cuda.dequantize import dequantize_rows
from quant.kernels.cuda.few_rows import add_parts, few_rows_product
from quant.kernels.cuda.tiles import tile_product
from quant.kernels.operands import Operands
from quant.tensor.qtensor import QTensor

# The bits of the float 2**23, as an argument of every kernel: in a register, it is joined with a code by the instruction that
# masks the code's bits; as a constant, by one more.
ONE = 0x4B000000
MOST_FEW_ROWS = 16
BLOCK_OF_SUMS = 1024


class Matmul:
    """x W^T + b for one weight. Quantized scales and whole zeros are expanded; everything else is used in place."""

    def __init__(self, weight: QTensor):
        with torch.inference_mode(False):  # a graph that is traced outside it does not take tensors made within
            self.operands = Operands.of(weight)
        for tensor in self.operands.tensors():
            torch._dynamo.mark_static_address(tensor)  # else a CUDA graph of torch.compile copies the weight at every replay

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] of float32, float16 or bfloat16, on the weight's device -> [..., out] in x's dtype."""
        return multiply(x, bias, self.operands)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight and read no others: int64 [n] -> float32 [n, in]."""
        return self.operands.dequantize(rows)


@dataclass(frozen=True)
class Shape:
    """What a plan depends on. rows, columns, bits, offset and group: of Operands. is_words: every row of codes begins at a
    multiple of 4 bytes."""

    count: int
    rows: int
    columns: int
    bits: int
    offset: int
    group: int
    is_words: bool


@dataclass(frozen=True)
class Plan:
    """A launch that lacks only the tensors. part: columns of a program; parts: their number."""

    kernel: Callable
    grid: tuple[int, int, int]
    constants: dict[str, int]
    part: int
    parts: int


def multiply(x: torch.Tensor, bias: torch.Tensor | None, operands: Operands, blocks: Blocks | None = None) -> torch.Tensor:
    """x W^T + b: x [..., in] of float32, float16 or bfloat16 -> [..., out] in x's dtype. blocks: instead of the table's."""
    o = operands
    flat = x.reshape(-1, o.columns).contiguous()
    count = flat.shape[0]
    shape = (*x.shape[:-1], o.rows)
    if not count:
        return x.new_empty(shape)
    found = plan_for(blocks or generation(x.device), x.dtype == torch.float32, *_shape_of(o, count))
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():  # Triton launches on the current device
        with torch.cuda.device(x.device):
            return _multiply(flat, bias, o, found).view(shape)
    return _multiply(flat, bias, o, found).view(shape)


def _multiply(x: torch.Tensor, bias: torch.Tensor | None, o: Operands, found: Plan | Blocks) -> torch.Tensor:
    if isinstance(found, Blocks):
        return _dense(x, bias, o, found)
    count = x.shape[0]
    y = torch.empty((count, o.rows), dtype=x.dtype, device=x.device)
    if found.parts == 1:
        found.kernel[found.grid](*arguments(x, bias, y, o, found), **found.constants)
        return y
    sums = torch.empty((found.parts, count, o.rows), dtype=torch.float32, device=x.device)
    found.kernel[found.grid](*arguments(x, None, sums, o, found), **found.constants)
    grid = (triton.cdiv(y.numel(), BLOCK_OF_SUMS), 1, 1)
    add_parts[grid](sums, bias, y, y.numel(), o.rows, PARTS=found.parts, BLOCK=BLOCK_OF_SUMS)
    return y


def _dense(x: torch.Tensor, bias: torch.Tensor | None, o: Operands, blocks: Blocks) -> torch.Tensor:
    """Dequantize some rows at a time, as many as fit the scratch memory, and multiply with them."""
    bias = None if bias is None else bias.to(x.dtype)
    height = min(o.rows, max(1, blocks.scratch // (o.columns * x.element_size())))
    scratch = torch.empty((height, o.columns), dtype=x.dtype, device=x.device)
    y = None if height == o.rows else torch.empty((x.shape[0], o.rows), dtype=x.dtype, device=x.device)
    for first in range(0, o.rows, height):
        tile = scratch[: o.rows - first]
        kernel, grid, given, constants = dequantizing(o, first, tile, blocks)
        kernel[grid](*given, **constants)
        if y is None:
            return linear(x, tile, bias)
        torch.mm(x, tile.T, out=y[:, first : first + height])
    return y if bias is None else y.add_(bias)


def shape_of(o: Operands, count: int) -> Shape:
    """What the plan of a product with so many rows of activations depends on."""
    return Shape(*_shape_of(o, count))


def _shape_of(o: Operands, count: int) -> tuple:
    rows, length = o.codes.shape
    return count, rows, o.columns, o.bits, o.offset, o.group, length % 4 == 0 and o.codes.data_ptr() % 4 == 0


def arguments(x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, o: Operands, found: Plan) -> tuple:
    """Of a plan's kernel, in its order."""
    return (x, o.codes, o.scales, o.zeros, o.table, bias, y, x.shape[0], o.rows, o.columns, o.codes.shape[1],
            _scale_stride(o), found.part, ONE)


def dequantizing(o: Operands, first: int, y: torch.Tensor, blocks: Blocks) -> tuple[Callable, tuple, tuple, dict]:
    """The kernel that writes as many rows as y has, from row `first`: kernel, grid, arguments and constants."""
    constants, columns = _constants(shape_of(o, 1), blocks)
    stop = first + y.shape[0]
    given = (o.codes, o.scales, o.zeros, o.table, y, first, stop, o.columns, o.codes.shape[1], _scale_stride(o), ONE)
    return dequantize_rows, (triton.cdiv(y.shape[0], blocks.n), triton.cdiv(o.columns, columns), 1), given, constants


def _scale_stride(o: Operands) -> int:
    return 0 if o.scales.shape[0] == 1 else o.scales.shape[1]


@lru_cache(maxsize=4096)
def plan_for(chosen: Blocks | str, is_float32: bool, *shape: int) -> Plan | Blocks:
    """The plan of a shape, or the blocks themselves if they are DENSE. chosen: the blocks, or the generation whose table has
    them; shape: the fields of Shape."""
    blocks = blocks_for(chosen, shape[0], shape[3], is_float32) if isinstance(chosen, str) else chosen
    return blocks if blocks.way == DENSE else plan(Shape(*shape), blocks)


def use(generation: str, entry: Entry) -> None:
    """Take another entry of the table from now on."""
    TABLE[generation] = entry
    plan_for.cache_clear()


def plan(shape: Shape, blocks: Blocks) -> Plan:
    """The launch of the product of a shape, by FEW or TILES."""
    constants, columns = _constants(shape, blocks)
    is_few = blocks.way == FEW
    m = triton.next_power_of_2(shape.count) if is_few else blocks.m
    if is_few and shape.count > MOST_FEW_ROWS:
        raise ValueError(f"{shape.count} rows of activations for the way of few rows; expected at most {MOST_FEW_ROWS}")
    n = blocks.n
    while is_few and n > 1 and triton.cdiv(shape.rows, n) < blocks.programs:
        n //= 2
    programs, steps = triton.cdiv(shape.rows, n) * triton.cdiv(shape.count, m), triton.cdiv(shape.columns, columns)
    wanted = min(steps // 2, triton.cdiv(blocks.programs, programs))  # two steps at least: one would not repay its sum
    part = columns * triton.cdiv(steps, max(1, wanted))
    parts = triton.cdiv(shape.columns, part)
    grid = (triton.cdiv(shape.rows, n), parts, triton.cdiv(shape.count, m))
    return Plan(few_rows_product if is_few else tile_product, grid, {**constants, "BLOCK_N": n, "ROWS": m}, part, parts)


def _constants(shape: Shape, blocks: Blocks) -> tuple[dict[str, int], int]:
    """Constants of a kernel that reads codes, and the columns of a step."""
    smallest = {2: 16, 3: 8, 4: 8, 8: 8}.get(shape.bits, 4)  # codes of a piece of words; of 8 bits, two words
    group = shape.group or smallest
    words = shape.is_words and group % smallest == 0
    piece = smallest if words else min(16, group & -group)  # a power of two that divides the group
    columns = max(16, piece, min(blocks.columns, triton.next_power_of_2(shape.columns)))
    return {"GROUP": shape.group, "PIECE": piece, "BITS": shape.bits, "OFFSET": shape.offset, "WORDS": words, "BLOCK_N": blocks.n,
            "PIECES": columns // piece, "num_warps": blocks.warps, "num_stages": blocks.stages}, columns


@lru_cache(maxsize=64)
def generation(device: torch.device) -> str:
    """Of a GPU, such as sm_90; empty for another device."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device)) if device.type == "cuda" else ""
