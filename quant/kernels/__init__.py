"""Matrix products with quantized weights: one module per device, each equal to the plain-torch reference up to rounding.

On a CPU the loops are compiled by numba, run on torch's threads and take vectors as wide as the processor has (quant.compiled).
loops.py multiplies one row of activations; with AVX-512, the room `bands` several. Without it, or in bfloat16 (precision.py),
torch multiplies many rows (decode.py, panels.py, onednn.py). attention.py, norm.py and float_rows.py do the rest of a decoder
block. On a GPU the kernels are written in Triton (cuda). In a graph of torch.compile, a product is one operator (operator.py) of
tensors and numbers (operands.py).
"""

from __future__ import annotations

from typing import Protocol

import torch

from quant.kernels import reference
from quant.tensor.qtensor import QTensor


class Matmul(Protocol):
    """Matrix products with one quantized weight [out, in]."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] -> x W^T + bias, [..., out] in x's dtype."""

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight and read no others: int64 [n] -> float32 [n, in]."""


def matmul_of(weight: QTensor) -> Matmul:
    """Make the fastest kernel for the weight's device."""
    if weight.codes.device.type == "cpu":
        from quant.kernels import cpu  # here, because numba is slow to import and only a CPU needs it

        return cpu.Matmul(weight)
    if weight.codes.device.type == "cuda":
        from quant.kernels import cuda  # here, because it imports triton, which only a GPU needs

        return cuda.Matmul(weight)
    return reference.Matmul(weight)
