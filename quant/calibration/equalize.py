"""Equalization: scales the inputs of layers that follow a norm, so that important columns are rounded more finely.

A column of the weight is multiplied by s and the norm's output divided by it, which changes nothing before rounding. s is the
root of the column's mean squared input to the power alpha, and alpha the best of ALPHAS by the error of the layers' outputs under
rounding to nearest. After AWQ (Lin et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme

ALPHAS = tuple(i / 10 for i in range(11))
SMALLEST = 1e-4  # of the largest root mean square: a floor for inputs that are hardly used


def column_factors(parts: list[tuple[torch.Tensor, Scheme]], second: torch.Tensor) -> torch.Tensor | None:
    """The factor of each column, float32 [columns]; None where no choice is better than leaving the weights as they are.

    parts: rows that share their inputs, float32 [rows, columns], with their schemes. second: E[x x^T], float64.
    """
    size = second.diagonal().clamp(min=0).sqrt()
    size = size.clamp(min=float(size.max()) * SMALLEST)
    best, found = None, None
    for alpha in ALPHAS:
        factors = size**alpha
        factors = (factors / (factors.max() * factors.min()).sqrt()).float()
        cost = sum(_cost(rows, scheme, factors, second) for rows, scheme in parts)
        if best is None or cost < best:
            best, found = cost, None if alpha == 0 else factors
    return found


def fold(norm: nn.Module, factors: torch.Tensor, run: Callable[[nn.Module], torch.Tensor]) -> bool:
    """Divide a norm's output by the factors, in its weight and bias; False, and nothing is changed, where that is not how the
    norm uses its weight. run: gives the norm's output for a sample."""
    parameters = [getattr(norm, name) for name in ("weight", "bias") if getattr(norm, name, None) is not None]
    before, expected = [parameter.data for parameter in parameters], run(norm) / factors
    for parameter in parameters:
        parameter.data = parameter.data / factors
    if torch.allclose(run(norm), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())):
        return True
    for parameter, value in zip(parameters, before, strict=True):
        parameter.data = value
    return False


def _cost(rows: torch.Tensor, scheme: Scheme, factors: torch.Tensor, second: torch.Tensor) -> float:
    error = (dequantize(quantize(rows * factors, scheme)) / factors - rows).double()
    return float(((error @ second) * error).sum())
