"""Faster bfloat16 models on processors without bfloat16 arithmetic, where torch multiplies many rows slowly.

The operands of a matrix product are widened to float32, exactly, and the result is rounded to bfloat16, as hardware with
float32 accumulators does. Weights and activations stay bfloat16.
"""

from __future__ import annotations

import torch
from torch import nn

from quant.kernels.precision import multiplies_bfloat16
from quant.tensor.products import cpuinfo

MAX_DIRECT_ROWS = 4  # torch is fast enough for this many rows of activations


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    return device.type != "cpu" or multiplies_bfloat16(cpuinfo())


def compute_in_float32(model: nn.Module) -> None:
    """Make the linear layers of a bfloat16 model multiply in float32."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = _WideMatmul(module, transposed=False)
        elif type(module).__name__ == "Conv1D":  # GPT-2 stores [in, out]
            module.forward = _WideMatmul(module, transposed=True)


class _WideMatmul:
    def __init__(self, module: nn.Module, transposed: bool):
        self._module, self._transposed = module, transposed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._module.weight, self._module.bias
        if self._transposed:
            weight = weight.T
        if x.numel() // x.shape[-1] <= MAX_DIRECT_ROWS:
            return nn.functional.linear(x, weight, bias)
        wide = nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return wide.to(x.dtype)
