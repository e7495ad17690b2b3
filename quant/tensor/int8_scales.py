"""Scales as whole numbers of 8 bits, each times one float16 number of its row.

At 64 weights a group, 32-bit scales cost 0.5 bit per weight and these 0.125, with a step of 1/127 of the row's largest scale.
They are signed, as the scales of full levels are. The weights are rounded under the scales as they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LARGEST = 127  # -128 is left out: as many numbers below zero as above


@dataclass(frozen=True)
class Int8Scales:
    """Scales [rows, groups]: scale_codes, int8 [rows, groups], times row_scales, float16 [rows, 1]."""

    scale_codes: torch.Tensor
    row_scales: torch.Tensor

    @classmethod
    def of(cls, scales: torch.Tensor) -> Int8Scales:
        """Round scales, float32 [rows, groups], finite, to the nearest; one that is not 0 keeps its sign and a code from 1.

        The row's number is the least in float16 for which no code exceeds LARGEST by half a step, infinity if there is none.
        """
        largest = scales.abs().amax(1, keepdim=True)
        row_scales = (largest / LARGEST).to(torch.float16)
        is_short = largest > (LARGEST + 0.5) * row_scales.float()  # rounded down too far, as small numbers of float16 can be
        row_scales = torch.where(is_short, (row_scales.view(torch.int16) + 1).view(torch.float16), row_scales)
        steps = torch.where(row_scales == 0, 0.0, scales / row_scales.float())
        codes = steps.round().abs().clamp(1, LARGEST) * scales.sign()
        return cls(codes.to(torch.int8), row_scales)

    @staticmethod
    def layout(shape: tuple[int, int], _: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """dtype and shape of each stored tensor, for scales [rows, groups]."""
        return {"scale_codes": (torch.int8, shape), "row_scales": (torch.float16, (shape[0], 1))}

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """The scales of some rows of the weight, float32 [n, groups]."""
        return self.scale_codes[index].float() * self.row_scales[index].float()
