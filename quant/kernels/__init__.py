"""Products with quantized weights: one file per device, all equal to the plain-torch reference."""

from __future__ import annotations

from typing import Protocol

import torch

from quant.kernels import reference
from quant.tensor.qtensor import QTensor


class Product(Protocol):
    """What is done with one quantized weight [out, in]."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] -> x W^T + bias, [..., out] in x's dtype."""

    def picked(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, int64 [n] -> float32 [n, in]; no others are read."""


def product_of(weight: QTensor) -> Product:
    """The fastest kernel for the device the weight lies on."""
    if weight.codes.device.type == "cpu":
        from quant.kernels import cpu  # here, because numba takes a while to import and nobody else needs it

        return cpu.Product(weight)
    if weight.codes.device.type == "cuda":
        from quant.kernels import cuda  # here, because it imports triton, which only a GPU needs

        return cuda.Product(weight)
    return reference.Product(weight)
