"""QTensor: one quantized weight, with the functions that quantize and dequantize it.

    weight[row, column] is about  grid[code] * scale + zero

with one scale (and, if asymmetric, one zero) per group. Quantizing takes four steps, the same for every width, grid and
grouping, since a grouping is only a view of the matrix as blocks (groups.blocks_of):

    1 choose the range    scales.py     FITS[scheme.fit].choose_range
    2 store the scales    groups.py     store_groups
    3 round to codes      rounding.py   nearest
    4 pack                packing.py    pack
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from quant.errors import InputError
from quant.tensor import groups
from quant.tensor.grids import grid_of
from quant.tensor.groups import Groups, Scales, blocks_of, chunks_of, fit_groups, of_blocks, scales_kind
from quant.tensor.packing import pack, row_bytes, unpack
from quant.tensor.parallel import over_cores
from quant.tensor.rounding import nearest
from quant.tensor.scales import Steps, rows_of
from quant.tensor.scheme import Scheme


@dataclass(frozen=True)
class QTensor:
    """codes: uint8 [rows, row_bytes], see packing; scales and zeros: see groups.Groups. shape is that of the weight; one
    dimension counts as one row."""

    codes: torch.Tensor
    scales: Scales
    zeros: torch.Tensor | None
    shape: tuple[int, ...]
    scheme: Scheme

    @property
    def groups(self) -> Groups:
        """Its scales and zeros."""
        return Groups(self.scales, self.zeros, self.scheme)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors to store, by name, as `layout` describes them."""
        stored = {"codes": self.codes, **vars(self.scales), "zeros": self.zeros}
        return {name: tensor for name, tensor in stored.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], shape: tuple[int, ...], scheme: Scheme) -> QTensor:
        """The inverse of `tensors`."""
        scales = {name: tensor for name, tensor in tensors.items() if name not in ("codes", "zeros")}
        return cls(tensors["codes"], scales_kind(scheme)(**scales), tensors.get("zeros"), shape, scheme)

    def dequantize_rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight, as a matrix, to float32 [n, columns]."""
        columns = matrix_shape(self.shape)[1]
        values = grid_of(self.scheme).decode(unpack(self.codes[index], self.scheme.bits, columns))
        blocks = blocks_of(values, self.scheme)  # views of the values
        scales, zeros = self.groups.scale_values(index), self.groups.zero_values(index)
        for block, scale, zero in zip(blocks, of_blocks(scales, blocks), of_blocks(zeros, blocks), strict=True):
            block.mul_(scale.unsqueeze(-1))
            if zero is not None:
                block.add_(zero.unsqueeze(-1))
        return values


def layout(shape: tuple[int, ...], scheme: Scheme) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of each stored tensor of a weight of this shape, known without the weight."""
    rows, columns = matrix_shape(shape)
    return {"codes": (torch.uint8, (rows, row_bytes(columns, scheme.bits)))} | groups.layout(rows, columns, scheme)


def quantize(weight: torch.Tensor, scheme: Scheme, importance: torch.Tensor | None = None) -> QTensor:
    """Quantize a weight of one or two dimensions and any floating dtype.

    Each weight gets the nearest code under its group's scale and zero, which the scheme's fit chooses; importance: see
    groups.choose_groups. A group of zeros gets scale 0 and stays zero.
    Raises InputError for NaN, infinity, or a scale its dtype can't hold.
    """
    matrix = weight.reshape(matrix_shape(weight.shape))
    chosen, steps = fit_groups(matrix, scheme, importance)  # 1, 2
    chunks = chunks_of(matrix)
    rows = [slice(i * len(chunks[0]), i * len(chunks[0]) + len(chunk)) for i, chunk in enumerate(chunks)]
    packed = over_cores(partial(_packed_codes, steps=steps, scheme=scheme), list(zip(chunks, rows, strict=True)))  # 3, 4
    return QTensor(torch.cat(packed), chosen.scales, chosen.zeros, tuple(weight.shape), scheme)


def assemble(codes: torch.Tensor, chosen: Groups, shape: tuple[int, ...], scheme: Scheme) -> QTensor:
    """The weight of this shape with these codes, uint8 [rows, columns], one to a byte."""
    packed = over_cores(partial(pack, bits=scheme.bits), chunks_of(codes.reshape(matrix_shape(shape))))
    return QTensor(torch.cat(packed), chosen.scales, chosen.zeros, tuple(shape), scheme)


def _packed_codes(chunk: tuple[torch.Tensor, slice], steps: Steps, scheme: Scheme) -> torch.Tensor:
    """Round and pack some rows of the matrix; chunk: the rows and where they are."""
    matrix, rows = chunk
    blocks, grid = blocks_of(matrix, scheme), grid_of(scheme)
    inverses = of_blocks(rows_of(steps.inverses, rows), blocks)
    zeros = of_blocks(None if steps.zeros is None else rows_of(steps.zeros, rows), blocks)
    codes = [nearest(block.float(), *of_block, grid).reshape(len(matrix), -1)
             for block, *of_block in zip(blocks, inverses, zeros, strict=True)]
    return pack(codes[0] if len(codes) == 1 else torch.cat(codes, dim=1), scheme.bits)


def dequantize(tensor: QTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight that a QTensor stands for, in its shape; computed in float32, then rounded to `dtype`."""
    return tensor.dequantize_rows(slice(None)).to(dtype).reshape(tensor.shape)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a weight; one dimension counts as one row. Raises InputError for other shapes."""
    if len(shape) not in (1, 2) or 0 in shape:
        raise InputError(f"a weight of shape {list(shape)} can't be quantized; expected one or two dimensions, none of them 0")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
