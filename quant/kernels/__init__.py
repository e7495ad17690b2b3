"""Products with quantized weights: one file per device, all equal to the plain-torch reference."""

from __future__ import annotations

from collections.abc import Callable

import torch

from quant.kernels import reference
from quant.qtensor import QTensor

Product = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def product_of(weight: QTensor) -> Product:
    """x, bias -> x W^T + bias, by the fastest kernel for the device the weight lies on."""
    if weight.codes.device.type == "cpu":
        from quant.kernels import cpu  # here, because numba takes a while to import and nobody else needs it

        return cpu.Product(weight)
    if weight.codes.device.type == "cuda":
        from quant.kernels import cuda  # here, because it imports triton, which only a GPU needs

        return cuda.Product(weight)
    return reference.Product(weight)
