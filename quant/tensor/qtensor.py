"""QTensor: one quantized weight, with the functions that quantize and dequantize it.

    weight[row, column] is about  grid[code] * scale + zero

with one scale (and, if asymmetric, one zero: the value of code 0) per group. Quantizing takes four steps, the same for every
width, grid and grouping, since a grouping is only a view of the matrix as blocks (Scheme.scale_shape):

    1 choose the range    scales.py     FITS[scheme.fit].choose_range
    2 store the scales    scales.py     FITS[scheme.fit].store_scales
    3 round to codes      rounding.py   nearest
    4 pack                packing.py    pack
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from quant.errors import InputError
from quant.tensor.double_quant import DoubleQuantized
from quant.tensor.grids import grid_of
from quant.tensor.packing import pack, row_bytes, unpack
from quant.tensor.parallel import over_cores
from quant.tensor.rounding import nearest
from quant.tensor.scales import FITS, PlainScales, dtype_of, extremes, rows_of
from quant.tensor.scheme import Scheme

CHUNK = 2**20  # weights quantized at a time, which bounds the memory of the intermediates


@dataclass(frozen=True)
class QTensor:
    """codes: uint8 [rows, row_bytes], see packing; scales, and zeros in the scheme's dtype: [rows, groups] or, per tensor,
    [1, 1]. zeros is None for symmetric schemes. shape is that of the weight; one dimension counts as one row."""

    codes: torch.Tensor
    scales: PlainScales | DoubleQuantized
    zeros: torch.Tensor | None
    shape: tuple[int, ...]
    scheme: Scheme

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors to store, by name, as `layout` describes them."""
        return {"codes": self.codes, **vars(self.scales), **({} if self.zeros is None else {"zeros": self.zeros})}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], shape: tuple[int, ...], scheme: Scheme) -> QTensor:
        """The inverse of `tensors`."""
        scales = {name: tensor for name, tensor in tensors.items() if name not in ("codes", "zeros")}
        return cls(tensors["codes"], _scales_kind(scheme)(**scales), tensors.get("zeros"), shape, scheme)

    def dequantize_rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight, as a matrix, to float32 [n, columns]."""
        columns = matrix_shape(self.shape)[1]
        values = grid_of(self.scheme).decode(unpack(self.codes[index], self.scheme.bits, columns))
        scales = self.scales.rows(index).float()
        blocks = values.view(len(values), scales.shape[1], -1).mul_(scales.unsqueeze(-1))  # [n, groups, weights of a group]
        if self.zeros is not None:
            blocks.add_(rows_of(self.zeros, index).float().unsqueeze(-1))
        return values


def layout(shape: tuple[int, ...], scheme: Scheme) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of each stored tensor of a weight of this shape, known without the weight.

    Raises InputError if the group size does not divide the row.
    """
    rows, columns = matrix_shape(shape)
    scale_shape, dtype = scheme.scale_shape(rows, columns), dtype_of(scheme)
    zeros = {} if scheme.symmetric else {"zeros": (dtype, scale_shape)}
    codes = {"codes": (torch.uint8, (rows, row_bytes(columns, scheme.bits)))}
    return codes | _scales_kind(scheme).layout(scale_shape, dtype) | zeros


def quantize(weight: torch.Tensor, scheme: Scheme) -> QTensor:
    """Quantize a weight of one or two dimensions and any floating dtype.

    Each weight gets the nearest code under its group's scale and zero, which the scheme's fit chooses. A group of zeros
    gets scale 0 and stays zero. Double quantization rounds the scales after the codes are chosen, as QLoRA does.
    Raises InputError for NaN, infinity, a scale its dtype can't hold, or a group size that does not divide the row.
    """
    matrix = weight.reshape(matrix_shape(weight.shape))
    scale_rows, _ = scheme.scale_shape(*matrix.shape)
    chunks = matrix.split(max(1, CHUNK // matrix.shape[1]))
    together = [[chunk] for chunk in chunks] if scale_rows == len(matrix) else [chunks]  # chunks that share their scales
    parts = over_cores(partial(_quantize_chunks, scheme=scheme), together)
    codes, scales, zeros = (None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True))
    return QTensor(codes, _scales_kind(scheme).of(scales), zeros, tuple(weight.shape), scheme)


def _quantize_chunks(
    chunks: Sequence[torch.Tensor], scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Packed codes, scales and zeros of the rows of some chunks, which share one scale if they are several."""
    grid, fit = grid_of(scheme), FITS[scheme.fit]
    blocks = [chunk.reshape(*scheme.scale_shape(*chunk.shape), -1) for chunk in chunks]  # [outer, groups, weights of a group]
    low, high = extremes(blocks)
    span, zeros = fit.choose_range(blocks, low, high, grid, scheme)  # 1
    scales, zeros, inverses = fit.store_scales(span, zeros, grid, scheme)  # 2
    if not torch.isfinite(scales).all():
        raise InputError(f"a scale exceeds {scheme.scale_dtype}: the weights reach from {float(low.min()):g} to "
                         f"{float(high.max()):g}; expected smaller weights or scale_dtype float32")
    codes = [nearest(block.float(), inverses, zeros, grid) for block in blocks]  # 3
    packed = torch.cat([pack(part.view(chunk.shape), scheme.bits) for part, chunk in zip(codes, chunks, strict=True)])  # 4
    return packed, scales, None if zeros is None else zeros.to(dtype_of(scheme))


def dequantize(tensor: QTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight that a QTensor stands for, in its shape; computed in float32, then rounded to `dtype`."""
    return tensor.dequantize_rows(slice(None)).to(dtype).reshape(tensor.shape)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a weight; one dimension counts as one row. Raises InputError for other shapes."""
    if len(shape) not in (1, 2) or 0 in shape:
        raise InputError(f"a weight of shape {list(shape)} can't be quantized; expected one or two dimensions, none of them 0")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _scales_kind(scheme: Scheme) -> type[PlainScales] | type[DoubleQuantized]:
    return DoubleQuantized if scheme.double_quant else PlainScales
