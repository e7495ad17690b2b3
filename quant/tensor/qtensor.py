"""QTensor: one quantized weight, and the two functions between it and real numbers. Knows no model.

    weight[row, column] is about  grid[code] * scale + zero

with one scale (and, if asymmetric, one zero: the value of code 0) per group. Choosing the scales, applying
the grid and packing the codes are separate steps, the same for every width, grid and grouping: a grouping is
a view of the matrix as blocks [outer, groups, weights of a group].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quant.errors import InputError
from quant.tensor import ggml
from quant.tensor.double_quant import BLOCK, DoubleQuantized, double_quantize
from quant.tensor.grids import grid_of
from quant.tensor.packing import pack, row_bytes, unpack
from quant.tensor.parallel import over_cores
from quant.tensor.scales import choose_range, encode, extremes, stored
from quant.tensor.scheme import Scheme

CHUNK = 2**20  # weights quantized at a time, which bounds the memory of the intermediates


@dataclass(frozen=True)
class QTensor:
    """codes: uint8 [rows, row_bytes], see packing; scales, zeros: [rows, groups] or, per tensor, [1, 1].
    zeros is None for symmetric schemes. shape is that of the weight; one dimension counts as one row."""

    codes: torch.Tensor
    scales: torch.Tensor | DoubleQuantized
    zeros: torch.Tensor | None
    shape: tuple[int, ...]
    scheme: Scheme

    def tensors(self) -> dict[str, torch.Tensor]:
        """What has to be stored, by name, as `layout` describes it."""
        scales = vars(self.scales) if self.scheme.double_quant else {"scales": self.scales}
        return {"codes": self.codes, **scales, **({} if self.zeros is None else {"zeros": self.zeros})}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], shape: tuple[int, ...], scheme: Scheme) -> QTensor:
        """The inverse of `tensors`."""
        others = {name: tensor for name, tensor in tensors.items() if name not in ("codes", "zeros")}
        scales = DoubleQuantized(**others) if scheme.double_quant else others["scales"]
        return cls(tensors["codes"], scales, tensors.get("zeros"), shape, scheme)

    def dequantize_rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """Some rows of the weight as a matrix, float32 [n, columns]."""
        columns = _matrix_shape(self.shape)[1]
        values = grid_of(self.scheme).decode(unpack(self.codes[index], self.scheme.bits, columns))
        scales = self.scales.rows(index) if self.scheme.double_quant else self._of_rows(self.scales, index).float()
        blocks = values.view(len(values), scales.shape[1], -1).mul_(scales.unsqueeze(-1))
        if self.zeros is not None:
            blocks.add_(self._of_rows(self.zeros, index).float().unsqueeze(-1))
        return values

    def _of_rows(self, parameters: torch.Tensor, index: slice | torch.Tensor) -> torch.Tensor:
        return parameters if self.scheme.group_size == "tensor" else parameters[index]


def layout(shape: tuple[int, ...], scheme: Scheme) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of each stored tensor of a weight of this shape, known without the weight.

    Raises InputError if the group size does not divide the row.
    """
    rows, columns = _matrix_shape(shape)
    if scheme.group_size == "tensor":
        scale_shape = (1, 1)
    elif scheme.group_size == "row":
        scale_shape = (rows, 1)
    elif columns % scheme.group_size:
        raise InputError(f"group_size {scheme.group_size} does not divide the {columns} columns of shape {list(shape)}")
    else:
        scale_shape = (rows, columns // scheme.group_size)
    scale_dtype = getattr(torch, scheme.scale_dtype)
    stored = {"codes": (torch.uint8, (rows, row_bytes(columns, scheme.bits)))}
    if scheme.double_quant:
        blocks = -(-scale_shape[0] * scale_shape[1] // BLOCK)
        stored |= {"scale_codes": (torch.uint8, scale_shape), "scale_scales": (torch.float32, (blocks,)),
                   "scale_offset": (torch.float32, (1,))}
    else:
        stored["scales"] = (scale_dtype, scale_shape)
    return stored if scheme.symmetric else {**stored, "zeros": (scale_dtype, scale_shape)}


def quantize(weight: torch.Tensor, scheme: Scheme) -> QTensor:
    """Quantize a weight of one or two dimensions and any floating dtype.

    Each weight gets the nearest code under its group's scale and zero, which the scheme's fit chooses. A group of zeros
    gets scale 0 and stays zero. Double quantization rounds the scales after the codes are chosen, as QLoRA does.
    Raises InputError for NaN, infinity, a scale its dtype can't hold, or a group size that does not divide the row.
    """
    layout(tuple(weight.shape), scheme)
    matrix = weight.reshape(_matrix_shape(weight.shape))
    pieces = matrix.split(max(1, CHUNK // max(1, matrix.shape[1])))
    if scheme.group_size == "tensor":
        codes, scales, zeros = _quantize_together(pieces, scheme)
    else:
        parts = over_cores(lambda piece: _quantize_together([piece], scheme), pieces)
        codes, scales, zeros = (None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True))
    if scheme.double_quant:
        scales = double_quantize(scales)
    return QTensor(codes, scales, zeros, tuple(weight.shape), scheme)


def dequantize(tensor: QTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight that a QTensor stands for, in its shape; computed in float32, then rounded to `dtype`."""
    return tensor.dequantize_rows(slice(None)).to(dtype).reshape(tensor.shape)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) not in (1, 2) or 0 in shape:
        raise InputError(f"a weight of shape {list(shape)} can't be quantized; expected one or two dimensions, none of them 0")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _quantize_together(pieces: list[torch.Tensor], scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Packed codes, scales and zeros of some rows, given in pieces that share one scale if there are several."""
    columns = pieces[0].shape[1]
    size = {"row": columns, "tensor": None}.get(scheme.group_size, scheme.group_size)
    blocks = [piece.reshape(1, 1, -1) if size is None else piece.reshape(len(piece), -1, size) for piece in pieces]
    low, high = extremes(blocks)
    if scheme.fit == "ggml":
        codes, scales, zeros = ggml.encode(blocks[0].float(), scheme)
        codes = [codes]
    else:
        grid = grid_of(scheme)
        scales, zeros, inverses = stored(*choose_range(blocks, low, high, grid, scheme), grid, scheme)
        codes = [encode(block.float(), inverses, zeros, grid) for block in blocks]
    if not torch.isfinite(scales).all():
        raise InputError(f"a scale exceeds {scheme.scale_dtype}: the weights reach from {float(low.min()):g} to "
                         f"{float(high.max()):g}; expected smaller weights or scale_dtype float32")
    return torch.cat([pack(part.view(-1, columns), scheme.bits) for part in codes]), scales, zeros
