"""Step 3 of quantizing: round weights to codes, with the scales already chosen.

A rounding rule takes blocks of weights, the inverse scales and zeros of their groups, and the grid, and returns codes. A rule
that corrects later columns for the error of earlier ones, such as GPTQ's, also needs statistics of the layer's inputs.
"""

from __future__ import annotations

import torch

from quant.tensor.grids import Grid


def nearest(blocks: torch.Tensor, inverses: torch.Tensor, zeros: torch.Tensor | None, grid: Grid) -> torch.Tensor:
    """Round each weight by itself to the nearest value of the grid.

    blocks: float32 [outer, groups, n]; inverses: 1 / scale, float32 [outer, groups]; zeros: value of code 0, [outer, groups].
    Returns uint8 [outer, groups, n].
    """
    if zeros is not None:
        blocks = blocks - zeros.float().unsqueeze(-1)
    return grid.encode(blocks * inverses.unsqueeze(-1))
