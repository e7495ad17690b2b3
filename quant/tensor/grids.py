"""Grids: which real number each code stands for, before the scale.

A grid knows three things: the value of each code, the code nearest to a value, and the largest magnitude
it reaches, which the scale maps a group's largest weight onto. Linear grids and tables differ in nothing else.
Rounding is to the nearest value; half way between two, linear steps take the even code (IEEE), tables the lower value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from quant.tensor.codebooks import CODEBOOKS
from quant.tensor.scheme import Scheme


@dataclass(frozen=True)
class LinearGrid:
    """Equal steps. Code c stands for c - offset; a symmetric grid leaves code 0 unused, so that it has as many steps
    below zero as above."""

    lowest: int
    highest: int
    offset: int

    @property
    def limit(self) -> float:
        return float(self.highest - self.offset)

    def encode(self, steps: torch.Tensor) -> torch.Tensor:
        """Nearest code of `steps` (weight / scale), float32 of any shape -> uint8 of that shape."""
        return steps.round().add_(self.offset).clamp_(self.lowest, self.highest).to(torch.uint8)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(torch.float32).sub_(self.offset)


class TableGrid:
    """Any table of values, in any order."""

    def __init__(self, values: tuple[float, ...]):
        self.values = torch.tensor(values, dtype=torch.float32)
        ordered, self._codes = self.values.sort(stable=True)
        self._codes = self._codes.to(torch.uint8)
        self._boundaries = (ordered[1:] + ordered[:-1]) / 2
        self.limit = float(ordered.abs().max())

    def encode(self, steps: torch.Tensor) -> torch.Tensor:
        """Nearest code of `steps` (weight / scale)."""
        return self._codes[torch.bucketize(steps.contiguous(), self._boundaries)]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        values = self.values.to(codes.device)
        return values.index_select(0, codes.reshape(-1).int()).view(codes.shape)  # several times faster than values[codes]


@cache
def grid_of(scheme: Scheme) -> LinearGrid | TableGrid:
    """The grid of a scheme. Symmetric: codes 1 to 2^b - 1 around 2^(b-1); asymmetric: codes 0 to 2^b - 1 upwards."""
    if not scheme.is_linear:
        return TableGrid(scheme.codebook if isinstance(scheme.codebook, tuple) else CODEBOOKS[scheme.codebook].values)
    highest = 2**scheme.bits - 1
    if scheme.symmetric:
        return LinearGrid(lowest=1, highest=highest, offset=2 ** (scheme.bits - 1))
    return LinearGrid(lowest=0, highest=highest, offset=0)
