"""Products with quantized weights: one file per device, all equal to the plain-torch reference but for rounding.

A CPU's loops are compiled by numba (loops.py, vectors.py, attention.py, norm.py) and run on torch's threads (threads.py); a GPU's
kernels are Triton's (cuda.py).
"""

from __future__ import annotations

from typing import Protocol

import torch

from quant.kernels import reference
from quant.tensor.qtensor import QTensor


class Matmul(Protocol):
    """Products with one quantized weight [out, in]."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] -> x W^T + bias, [..., out] in x's dtype."""

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight and read no others: int64 [n] -> float32 [n, in]."""


def matmul_of(weight: QTensor) -> Matmul:
    """The fastest kernel for the device the weight lies on."""
    if weight.codes.device.type == "cpu":
        from quant.kernels import cpu  # here, because numba takes a while to import and nobody else needs it

        return cpu.Matmul(weight)
    if weight.codes.device.type == "cuda":
        from quant.kernels import cuda  # here, because it imports triton, which only a GPU needs

        return cuda.Matmul(weight)
    return reference.Matmul(weight)
