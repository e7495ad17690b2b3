"""Grids: the real number that each code stands for, before the scale.

A grid knows the value of each code (`decode`), the code nearest to a value (`encode`), and its `limit`, the value onto which
the scale maps the end of a group's range. Linear steps and tables of values differ only in these three.
Half-way between two values, linear steps round to the even code (IEEE) and tables to the lower value; ggml's types round halves
up or away from zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from quant.tensor.codebooks import CODEBOOKS
from quant.tensor.scheme import Scheme


@dataclass(frozen=True)
class LinearGrid:
    """Equal steps: code c stands for c - offset, and codes run from `lowest` to `highest`.

    A narrow symmetric grid leaves code 0 unused, so that it has as many steps below zero as above.
    """

    lowest: int
    highest: int
    offset: int

    @property
    def limit(self) -> float:
        return float(self.highest - self.offset)

    def encode(self, steps: torch.Tensor) -> torch.Tensor:
        """Round `steps` (weight / scale), float32 of any shape, to the nearest codes, uint8 of that shape."""
        return steps.round().add_(self.offset).clamp_(self.lowest, self.highest).to(torch.uint8)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """uint8 codes -> float32 values of the same shape."""
        return codes.to(torch.float32).sub_(self.offset)


class FullGrid(LinearGrid):
    """All codes around zero: the scale, which has a sign, maps a weight, sign included, onto the lowest value."""

    @property
    def limit(self) -> float:
        return float(self.lowest - self.offset)


class HalvesUpGrid(LinearGrid):
    """The steps of ggml's Q4_1 and Q5_1: halves go up."""

    def encode(self, steps: torch.Tensor) -> torch.Tensor:
        steps = (steps + (self.offset + 0.5)).trunc()  # one sum, as in ggml: two would round differently
        return steps.clamp(self.lowest, self.highest).to(torch.uint8)


class FullHalvesUpGrid(HalvesUpGrid, FullGrid):
    """The steps of ggml's Q4_0 and Q5_0."""


class HalvesAwayGrid(LinearGrid):
    """The steps of ggml's Q8_0: halves go away from zero."""

    def encode(self, steps: torch.Tensor) -> torch.Tensor:
        size = steps.abs()
        whole = size.floor()
        steps = steps.sign() * (whole + (2 * (size - whole)).floor()) + self.offset
        return steps.clamp(self.lowest, self.highest).to(torch.uint8)


class TableGrid:
    """Any table of values, in any order. ordered: the values, ascending; codes: of these; boundaries: half-way between them."""

    def __init__(self, values: tuple[float, ...]):
        self.values = torch.tensor(values, dtype=torch.float32)
        self.ordered, codes = self.values.sort(stable=True)
        self.codes = codes.to(torch.uint8)
        self.boundaries = (self.ordered[1:] + self.ordered[:-1]) / 2
        self.limit = float(self.values.abs().max())

    def encode(self, steps: torch.Tensor) -> torch.Tensor:
        """Round `steps` (weight / scale), float32 of any shape, to the nearest codes, uint8 of that shape."""
        return self.codes[torch.bucketize(steps.contiguous(), self.boundaries)]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """uint8 codes -> float32 values of the same shape."""
        values = self.values.to(codes.device)
        return values.index_select(0, codes.reshape(-1).int()).view(codes.shape)  # several times faster than values[codes]


Grid = LinearGrid | TableGrid


@cache
def grid_of(scheme: Scheme) -> Grid:
    """The grid of a scheme. Linear: codes 0 to 2^b - 1, around 2^(b-1) if symmetric; code 0 is left out of narrow symmetric
    grids, except in those of ggml."""
    if not scheme.is_linear:
        return TableGrid(scheme.codebook if isinstance(scheme.codebook, tuple) else CODEBOOKS[scheme.codebook].values)
    highest, offset = 2**scheme.bits - 1, 2 ** (scheme.bits - 1) if scheme.symmetric else 0
    if scheme.fit == "ggml":
        kind = HalvesAwayGrid if scheme.bits == 8 else FullHalvesUpGrid if scheme.symmetric else HalvesUpGrid
        return kind(0, highest, offset)
    if scheme.levels == "full":
        return FullGrid(0, highest, offset)
    return LinearGrid(1 if scheme.symmetric else 0, highest, offset)
