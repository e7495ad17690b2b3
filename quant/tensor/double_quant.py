"""Double quantization: the scales of a weight, stored in 8 bits themselves.

QLoRA (Dettmers et al. 2023), section 3: at 64 weights a group, 32-bit scales cost 0.5 bit per weight; in 8 bits with a
32-bit scale for every 256 of them, 0.127. The mean is subtracted first, because all scales are positive. The 8-bit values are
those of "dynamic tree" quantization (Dettmers, 8-Bit Approximations, 2015): more bits for the exponent near zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

SCALES_PER_BLOCK = 256  # scales that share one float32 scale
RASTER = 65535  # differences are first rounded to this many equal steps over [-1, 1], as bitsandbytes does on a CPU


@dataclass(frozen=True)
class DoubleQuantized:
    """Scales [rows, groups] in 8 bits. scale_codes: uint8 [rows, groups]; scale_scales: float32, one for every
    SCALES_PER_BLOCK codes in their order; scale_offset: float32 [1], the mean of the scales."""

    scale_codes: torch.Tensor
    scale_scales: torch.Tensor
    scale_offset: torch.Tensor

    @classmethod
    def of(cls, scales: torch.Tensor) -> DoubleQuantized:
        """Quantize scales, float32 [rows, groups], finite; equal to bitsandbytes' bit for bit on the same processor.

        The mean is torch's float32 mean, as bitsandbytes takes it: with another vector width or number of threads its last
        bit may differ, which is the one place where an artifact's bytes depend on the machine.
        """
        offset = scales.flatten().mean()
        centred = scales.flatten() - offset
        blocks = torch.nn.functional.pad(centred, (0, -len(centred) % SCALES_PER_BLOCK)).view(-1, SCALES_PER_BLOCK)
        absmax = blocks.abs().amax(-1)
        parts = torch.where(absmax.unsqueeze(-1) == 0, -1.0, blocks / absmax.unsqueeze(-1))  # code 0 where all are the mean
        places = ((parts + 1) * (RASTER / 2) + 0.5).int()
        codes = _nearest_codes()[places].flatten()[: len(centred)]
        return cls(codes.view(scales.shape), absmax, offset.view(1))

    @staticmethod
    def layout(shape: tuple[int, int], _: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """dtype and shape of each stored tensor, for scales [rows, groups]."""
        blocks = -(-shape[0] * shape[1] // SCALES_PER_BLOCK)
        return {"scale_codes": (torch.uint8, shape), "scale_scales": (torch.float32, (blocks,)),
                "scale_offset": (torch.float32, (1,))}

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """The scales of some rows of the weight, float32 [n, groups]; [1, 1] if the whole tensor shares one."""
        count, groups = self.scale_codes.shape
        if count == 1:
            index = slice(None)
        codes = self.scale_codes[index]
        chosen = torch.arange(count, device=codes.device)[index] if isinstance(index, slice) else index % count
        places = chosen.unsqueeze(1) * groups
        blocks = (places + torch.arange(groups, device=codes.device)) // SCALES_PER_BLOCK
        return dynamic_map().to(codes.device)[codes.int()] * self.scale_scales[blocks] + self.scale_offset


@cache
def dynamic_map() -> torch.Tensor:
    """The 256 values in ascending order: sign bit, zeros (each a power of ten), a one, and the remaining bits as a fraction."""
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2
        values += [10.0 ** (exponent - 6) * middles, -(10.0 ** (exponent - 6)) * middles]
    return torch.cat(values).sort().values


@cache
def _nearest_codes() -> torch.Tensor:
    """The code nearest to each step of the raster, uint8 [RASTER + 1]."""
    values = dynamic_map().double()
    steps = torch.arange(RASTER + 1, dtype=torch.float64) / (RASTER / 2) - 1
    return torch.bucketize(steps, (values[1:] + values[:-1]) / 2).to(torch.uint8)
