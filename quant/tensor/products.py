"""Products of float32 matrices on a CPU, by the faster of the two libraries that torch has for them.

torch itself takes MKL, which has loops for AVX-512 but runs them on Intel's processors only: on those of AMD it keeps to AVX2,
half the speed. oneDNN, in the same torch, uses what the processor has. Both sum in float32, in another order, so their results
differ by rounding; each gives the same bytes again for the same number of threads.

The environment variable QUANT_PRODUCTS chooses one, so that one machine can test both.
"""

from __future__ import annotations

import os
from contextlib import ContextDecorator
from pathlib import Path

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from quant.errors import InputError

VARIABLE = "QUANT_PRODUCTS"
LIBRARIES = ("torch", "onednn")
LEAST = 8  # rows, columns and outputs of a product from which oneDNN is faster; below, the call costs more than it saves


def chosen(wanted: str | None, cpuinfo: str, has_onednn: bool) -> str:
    """The library to multiply with: the faster one on the processor that `cpuinfo` describes, as Linux does, or the one `wanted`.

    Raises InputError for another name, and for oneDNN where torch was built without it.
    """
    if wanted and wanted not in LIBRARIES:
        raise InputError(f"{VARIABLE} is {wanted!r}; expected {' or '.join(LIBRARIES)}, or nothing for the faster one")
    if wanted == "onednn" and not has_onednn:
        raise InputError(f"{VARIABLE} is onednn, but this torch was built without it; unset it or choose torch")
    is_slow = "AuthenticAMD" in cpuinfo and "avx512f" in cpuinfo
    return wanted or ("onednn" if is_slow and has_onednn else "torch")


def cpuinfo() -> str:
    """Linux's description of the processor; empty on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


LIBRARY = chosen(os.environ.get(VARIABLE), cpuinfo(), torch.backends.mkldnn.is_available())


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + bias: [..., in], [out, in], [out] -> [..., out]. oneDNN takes matrices of float32 on the CPU that need no gradient,
    in any layout; all others are torch's."""
    if LIBRARY == "onednn" and _suits(x, weight, bias):
        if not (weight.is_contiguous() or weight.T.is_contiguous()):  # a part of a matrix: thousands of times slower than a copy
            weight = weight.contiguous()
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b of two matrices, as `linear` computes it."""
    return linear(a, b.T)


def _suits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    operands = (x, weight) if bias is None else (x, weight, bias)
    if weight.ndim != 2 or x.ndim < 2 or x.shape[-1] != weight.shape[1]:
        return False
    if bias is not None and bias.shape != weight.shape[:1]:
        return False
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in operands):
        return False
    if min(*weight.shape, x.numel() // max(x.shape[-1], 1)) < LEAST:
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in operands))


class FastProducts(TorchFunctionMode, ContextDecorator):
    """Within it, or in a function that it decorates, the products of a model's layers are those of `linear`, in the thread that
    entered it: linear layers, GPT-2's Conv1D, and whatever is multiplied with a matrix. The model stays as it is.

    Not for timing a model of others: it would be timed as nobody runs it.
    """

    def __torch_function__(self, function, kinds, arguments=(), named=None):
        if function is functional.linear:
            return linear(*arguments, **(named or {}))
        if not named:
            if function is torch.addmm and arguments[0].ndim == 1:
                bias, x, weight = arguments
                return linear(x, weight.T, bias)
            if function in _MATMULS and arguments[1].ndim == 2:
                return product(*arguments)
        return function(*arguments, **(named or {}))


_MATMULS = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)
