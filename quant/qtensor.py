"""QTensor: one quantized weight, and the two functions between it and real numbers. Knows no model.

    weight[row, column] is about  grid[code] * scale + zero

with one scale (and, if asymmetric, one zero: the value of code 0) per group. Choosing the scales, applying
the grid and packing the codes are separate steps, the same for every width, grid and grouping: a grouping is
a view of the matrix as blocks [outer, groups, weights of a group].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quant.codebooks import LinearGrid, TableGrid, grid_of
from quant.errors import InputError
from quant.packing import pack, row_bytes, unpack
from quant.scheme import Scheme

CHUNK = 4 * 2**20  # weights quantized at a time, which bounds the memory of the intermediates


@dataclass(frozen=True)
class QTensor:
    """codes: uint8 [rows, row_bytes], see packing; scales, zeros: [rows, groups] or, per tensor, [1, 1].
    zeros is None for symmetric schemes. shape is that of the weight; one dimension counts as one row."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    shape: tuple[int, ...]
    scheme: Scheme

    def tensors(self) -> dict[str, torch.Tensor]:
        """What has to be stored, by name."""
        stored = {"codes": self.codes, "scales": self.scales, "zeros": self.zeros}
        return {name: tensor for name, tensor in stored.items() if tensor is not None}


def layout(shape: tuple[int, ...], scheme: Scheme) -> dict[str, tuple[torch.dtype, tuple[int, int]]]:
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
    stored = {
        "codes": (torch.uint8, (rows, row_bytes(columns, scheme.bits))),
        "scales": (scale_dtype, scale_shape),
    }
    return stored if scheme.symmetric else {**stored, "zeros": (scale_dtype, scale_shape)}


def quantize(weight: torch.Tensor, scheme: Scheme) -> QTensor:
    """Quantize a weight of one or two dimensions and any floating dtype.

    Rounds to the nearest code. A group of zeros gets scale 0 and stays zero. Raises InputError for NaN,
    infinity or a group size that does not divide the row.
    """
    layout(tuple(weight.shape), scheme)
    matrix = weight.reshape(_matrix_shape(weight.shape))
    span = None
    if scheme.group_size == "tensor":
        span = (matrix.amin().float(), matrix.amax().float())
    rows = max(1, CHUNK // max(1, matrix.shape[1]))
    parts = [_quantize_rows(chunk, scheme, span) for chunk in matrix.split(rows)]
    codes, scales, zeros = zip(*parts, strict=True)
    if span is not None:
        scales, zeros = scales[:1], zeros[:1]
    return QTensor(
        codes=torch.cat(codes),
        scales=torch.cat(scales),
        zeros=None if scheme.symmetric else torch.cat(zeros),
        shape=tuple(weight.shape),
        scheme=scheme,
    )


def dequantize(tensor: QTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight that a QTensor stands for, in its shape; computed in float32, then rounded to `dtype`."""
    return dequantize_rows(tensor.codes, tensor.scales, tensor.zeros, _matrix_shape(tensor.shape)[1], tensor.scheme).to(
        dtype
    ).reshape(tensor.shape)


def dequantize_rows(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, columns: int, scheme: Scheme
) -> torch.Tensor:
    """Packed codes [rows, row_bytes] and their scales and zeros -> float32 [rows, columns]."""
    values = grid_of(scheme).decode(unpack(codes, scheme.bits, columns))
    blocks = values.view(len(codes), scales.shape[1], -1)
    blocks = blocks.mul_(scales.float().unsqueeze(-1))
    if zeros is not None:
        blocks = blocks.add_(zeros.float().unsqueeze(-1))
    return blocks.view(len(codes), columns)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) not in (1, 2):
        raise InputError(f"a weight of shape {list(shape)} can't be quantized; expected one or two dimensions")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _quantize_rows(matrix: torch.Tensor, scheme: Scheme, span) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """codes, scales, zeros of some rows; `span` is (lowest, highest) of the whole tensor where it shares a scale."""
    matrix = matrix.float()
    if not torch.isfinite(matrix).all():
        raise InputError("the weight holds NaN or infinity; expected finite numbers")
    rows, columns = matrix.shape
    size = columns if isinstance(scheme.group_size, str) else scheme.group_size
    blocks = matrix.reshape(rows, columns // size, size)
    low, high = (blocks.amin(-1), blocks.amax(-1)) if span is None else (span[0].view(1, 1), span[1].view(1, 1))
    grid = grid_of(scheme)
    scales, zeros = _choose_scales(low, high, grid, scheme)
    codes = _encode(blocks, scales, zeros, grid).view(rows, columns)
    return pack(codes, scheme.bits), scales, zeros


def _choose_scales(
    low: torch.Tensor, high: torch.Tensor, grid: LinearGrid | TableGrid, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales, and zeros if asymmetric, that reach the lowest and the highest weight of each group."""
    dtype = getattr(torch, scheme.scale_dtype)
    zeros = None if scheme.symmetric else low.to(dtype)
    reach = torch.maximum(low.abs(), high.abs()) if zeros is None else high - zeros.float()
    scales = (reach / grid.limit).to(dtype)
    if not torch.isfinite(scales).all():
        raise InputError(f"a scale exceeds {scheme.scale_dtype}: the largest weight is {float(reach.max()):g}; "
                         "expected a smaller weight or scale_dtype float32")
    return scales, zeros


def _encode(blocks: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, grid) -> torch.Tensor:
    """Codes of blocks [rows, groups, size] under the scales as they are stored."""
    scales = scales.float()
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales).unsqueeze(-1)
    if zeros is not None:
        blocks = blocks - zeros.float().unsqueeze(-1)
    return grid.encode(blocks / divisors)
