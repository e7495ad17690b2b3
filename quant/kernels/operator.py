"""The product as an operator of torch, quant::multiply, which torch.compile takes into a graph without looking inside.

On a GPU it starts the Triton kernels of quant.kernels.cuda; elsewhere it is plain torch. It is a custom operator, not a
torch.library.triton_op, whose kernels inductor would start by itself: replayed from a CUDA graph, both cost the same, and here
the way depends on the number of rows, and a graph's kernels are those that run without one.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from quant.kernels.operands import Operands

TILE = 2**20  # weights dequantized at a time by plain torch


@torch.library.custom_op("quant::multiply", mutates_args=())
def multiply_operator(
    x: torch.Tensor, bias: torch.Tensor | None, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None,
    table: torch.Tensor | None, columns: int, bits: int, offset: int, group: int,
) -> torch.Tensor:  # fmt: skip
    """x W^T + b by plain torch: x [..., in] -> [..., out] in x's dtype. The other arguments are the fields of Operands."""
    operands = Operands(codes, scales, zeros, table, columns, bits, offset, group)
    height = max(1, TILE // columns)
    tiles = []
    for start in range(0, operands.rows, height):
        part = slice(start, start + height)
        own = None if bias is None else bias[part].to(x.dtype)
        tiles.append(linear(x, operands.dequantize(part).to(x.dtype), own))
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)


@multiply_operator.register_kernel("cuda")
def _on_a_gpu(x, bias, *fields):
    from quant.kernels.cuda.matmul import multiply  # here, because it imports triton, which only a GPU needs

    return multiply(x, bias, Operands(*fields))


@multiply_operator.register_fake
def _shape(x, bias, codes, *_):  # noqa: ARG001  by these names torch passes them
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def multiply(x: torch.Tensor, bias: torch.Tensor | None, operands: Operands) -> torch.Tensor:
    """x W^T + b by the operator: x [..., in] of float32, float16 or bfloat16 -> [..., out] in x's dtype."""
    o = operands
    return multiply_operator(x, bias, o.codes, o.scales, o.zeros, o.table, o.columns, o.bits, o.offset, o.group)
