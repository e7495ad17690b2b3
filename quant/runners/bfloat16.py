"""bfloat16 models on processors without bfloat16 arithmetic, where torch multiplies many rows several times slower.

There the operands of such a product are widened to float32, exactly, and its result is rounded to bfloat16: what hardware
with float32 accumulators does. Weights and activations are bfloat16 all the same, and so are the numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

FEW_ROWS = 4  # torch multiplies so few rows fast, without widening


def has_bfloat16(device: torch.device) -> bool:
    if device.type != "cpu":
        return True
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16", "bf16 "))


def compute_in_float32(model: nn.Module) -> None:
    """Replace the products of a bfloat16 model's linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = _Product(module, transposed=False)
        elif type(module).__name__ == "Conv1D":  # GPT-2 stores [in, out]
            module.forward = _Product(module, transposed=True)


class _Product:
    def __init__(self, module: nn.Module, transposed: bool):
        self._module, self._transposed = module, transposed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._module.weight, self._module.bias
        if self._transposed:
            weight = weight.T
        if x.numel() // x.shape[-1] <= FEW_ROWS:
            return nn.functional.linear(x, weight, bias)
        wide = nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return wide.to(x.dtype)
