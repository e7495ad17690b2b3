"""Operands: a quantized weight as a kernel on a GPU and a compiled graph take it, in tensors and whole numbers alone.

What is stored compactly (scales in 8 bits, whole zeros) is expanded once; everything else is the stored tensor itself. A graph
that torch.compile makes has these tensors as its inputs and the numbers as constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from quant.tensor.grids import grid_of
from quant.tensor.packing import unpack
from quant.tensor.qtensor import QTensor


@dataclass(frozen=True)
class Operands:
    """codes: uint8 [out, bytes]. scales: [out, groups], or [1, 1] for the whole matrix; zeros: of that shape, or None. table:
    float32 [2**bits], or None for equal steps, which count from `offset`. group: columns of a group, 0 if a row has one scale."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    table: torch.Tensor | None
    columns: int
    bits: int
    offset: int
    group: int

    @classmethod
    def of(cls, weight: QTensor) -> Operands:
        """Those of a weight, on its device."""
        scheme, grid = weight.scheme, grid_of(weight.scheme)
        columns = weight.shape[-1]
        scales = weight.scales.rows(slice(None)).contiguous()
        is_expanded = scheme.zeros == "whole" or scheme.scale_dtype == "nested"
        zeros = weight.groups.zero_values() if is_expanded else weight.zeros
        if scheme.is_linear:
            table, offset = None, grid.offset
        else:
            table, offset = pad(grid.values, (0, 2**scheme.bits - len(grid.values))).to(weight.codes.device), 0
        group = 0 if scales.shape[1] == 1 else scheme.columns_per_group(columns)
        zeros = None if zeros is None else zeros.contiguous()
        return cls(weight.codes.contiguous(), scales, zeros, table, columns, scheme.bits, offset, group)

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    def tensors(self) -> list[torch.Tensor]:
        """All that there are."""
        return [tensor for tensor in (self.codes, self.scales, self.zeros, self.table) if tensor is not None]

    def dequantize(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Some rows of the weight by plain torch, and no others: a slice or int64 [n] -> float32 [n, in]."""
        codes = unpack(self.codes[rows], self.bits, self.columns)
        if self.table is None:
            values = codes.to(torch.float32) - self.offset
        else:
            values = self.table.index_select(0, codes.reshape(-1).int()).view(codes.shape)
        values = values * self._by_column(self.scales, rows)
        return values if self.zeros is None else values + self._by_column(self.zeros, rows)

    def _by_column(self, parameters: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
        """The scale or zero of each column: float32 [n, in], or [n, 1] or [1, 1] where they are the same."""
        chosen = (parameters if parameters.shape[0] == 1 else parameters[rows]).float()
        return chosen.repeat_interleave(self.group, 1)[:, : self.columns] if self.group else chosen
