"""A table of floats as bytes: for codes that are indices into a table, such as NF4's, multiplied in 8 bits."""

from __future__ import annotations

import torch

MIDDLE = 128  # the byte that stands for 0
_LARGEST = 127


def bytes_of(values: torch.Tensor) -> tuple[torch.Tensor, float]:
    """float32 [n] -> uint8 [n], and the factor by which the bytes, less MIDDLE, are larger: the one, between half and all of the
    range of 8 bits, with the smallest squared error."""
    largest = float(values.abs().max())
    if not largest:
        return torch.full_like(values, MIDDLE, dtype=torch.uint8), 1.0
    factors = torch.linspace(_LARGEST / 2, _LARGEST, 512, dtype=torch.float64) / largest
    levels = (values.double() * factors[:, None]).round()
    errors = (levels / factors[:, None] - values.double()).square().sum(1)
    best = int(errors.argmin())
    return (levels[best] + MIDDLE).to(torch.uint8), float(factors[best])
