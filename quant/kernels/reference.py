"""The product in plain torch, which every faster kernel must equal: a tile of rows is dequantized and multiplied at a time."""

from __future__ import annotations

import torch

from quant.tensor.qtensor import QTensor

TILE = 2**20  # weights dequantized at a time: the whole weight never exists in full precision


class Matmul:
    """x W^T + b for one weight."""

    def __init__(self, weight: QTensor):
        self.weight = weight

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] -> [..., out]; computed and returned in x's dtype."""
        out_features, in_features = self.weight.shape
        rows = max(1, TILE // in_features)
        tiles = []
        for start in range(0, out_features, rows):
            part = slice(start, start + rows)
            tile = self.weight.dequantize_rows(part).to(x.dtype)
            tiles.append(torch.nn.functional.linear(x, tile, None if bias is None else bias[part]))
        return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight and read no others: int64 [n] -> float32 [n, in]."""
        return self.weight.dequantize_rows(rows)
