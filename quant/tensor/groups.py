"""Groups: the stored scales and zeros of a matrix, which a solver of codes may choose, read, or set.

    weight[row, column] is about  grid[code] * scale + zero

with one scale (and, if asymmetric, one zero) per group. A group is a number of neighbouring weights of a row, a row, or the
whole matrix; the last group of a row is shorter where the number does not divide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from quant.errors import InputError, Refused
from quant.tensor.double_quant import DoubleQuantized
from quant.tensor.grids import grid_of
from quant.tensor.int8_scales import Int8Scales
from quant.tensor.nested_scales import NestedScales, nest
from quant.tensor.nested_scales import layout as nested_layout
from quant.tensor.packing import pack, row_bytes, unpack
from quant.tensor.parallel import over_cores
from quant.tensor.scales import FITS, Blocks, PlainScales, Steps, dtype_of, rows_of, whole_zeros
from quant.tensor.scheme import Scheme

CHUNK = 2**20  # weights handled at a time, which bounds the memory of the intermediates

Scales = PlainScales | DoubleQuantized | Int8Scales | NestedScales
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Groups:
    """zeros: None if symmetric; real ones [rows, groups] in `dtype_of(scheme)`; whole ones packed, uint8 [rows, row_bytes];
    nested ones as nested_scales packs their codes."""

    scales: Scales
    zeros: torch.Tensor | None
    scheme: Scheme

    def scale_values(self, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """The scales of some rows, float32 [n, groups]; [1, 1] if the whole matrix shares one."""
        return self.scales.rows(rows).float()

    def zero_values(self, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor | None:
        """What is added to grid[code] * scale, float32, in the shape of `scale_values`; None if symmetric."""
        if self.zeros is None:
            return None
        if isinstance(self.scales, NestedScales):
            return self.scales.zero_rows(self.zeros, rows)
        zeros = rows_of(self.zeros, rows)
        if self.scheme.zeros == "real":
            return zeros.float()
        scales = self.scale_values(rows)
        return -unpack(zeros, self.scheme.bits, scales.shape[1]).float() * scales


def layout(rows: int, columns: int, scheme: Scheme) -> Layout:
    """dtype and shape of each stored tensor of the groups of a matrix."""
    if scheme.scale_dtype == "nested":
        return nested_layout(rows, columns, scheme)
    shape, dtype = scheme.scale_shape(rows, columns), dtype_of(scheme)
    scales = scales_kind(scheme).layout(shape, dtype)
    if scheme.symmetric:
        return scales
    whole = torch.uint8, (shape[0], row_bytes(shape[1], scheme.bits))
    return scales | {"zeros": whole if scheme.zeros == "whole" else (dtype, shape)}


_KINDS = {"int8": Int8Scales, "nested": NestedScales}


def scales_kind(scheme: Scheme) -> type[Scales]:
    """The class that stores the scales of a scheme."""
    return DoubleQuantized if scheme.double_quant else _KINDS.get(scheme.scale_dtype, PlainScales)


def choose_groups(matrix: torch.Tensor, scheme: Scheme, importance: torch.Tensor | None = None) -> Groups:
    """Choose scales and zeros for a matrix [rows, columns] of any floating dtype by the scheme's fit.

    importance: [columns] or [rows, columns], not negative: fit mse weighs the squared error of each weight by it; the other fits
    take no notice. Raises InputError for NaN, infinity or a scale that its dtype can't hold.
    """
    return fit_groups(matrix, scheme, importance)[0]


def store_groups(scale: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme) -> Groups:
    """Round real scales, float [rows, groups], to what is stored, and zeros, the values of code 0 (None if symmetric).

    Whole zeros are rounded under the stored scales, unless these are double-quantized. Scales may be negative.
    Raises InputError for one that its dtype can't hold.
    """
    kind = scales_kind(scheme)
    scale = scale.float()
    if kind is NestedScales:
        scales, zero = nest(scale, None if zero is None else zero.float(), scheme)
        numbers = [scales.super_scales] + ([] if scales.super_zeros is None else [scales.super_zeros])
        if not all(torch.isfinite(number).all() for number in numbers):
            raise Refused("a scale or zero exceeds float16; expected smaller ones or scale_dtype float32")
        return Groups(scales, zero, scheme)
    scales = PlainScales(scale.to(dtype_of(scheme))) if kind is PlainScales else kind.of(scale)
    plain = scale if kind is DoubleQuantized else scales.rows(slice(None)).float()
    if zero is not None:
        zero = zero.float()
        zero = whole_zeros(zero, plain, scheme).to(torch.uint8) if scheme.zeros == "whole" else zero.to(dtype_of(scheme))
    if not torch.isfinite(plain).all() or (zero is not None and not torch.isfinite(zero).all()):
        raise Refused(f"a scale or zero exceeds {scheme.scale_dtype}; expected smaller ones or scale_dtype float32")
    return Groups(scales, pack(zero, scheme.bits) if scheme.zeros == "whole" else zero, scheme)


def has_row_scales(scheme: Scheme) -> bool:
    """Whether what is stored of each row's scales is that row's alone, so that it can be scaled without the others."""
    return scheme.group_size != "tensor" and not scheme.double_quant


def times_rows(groups: Groups, factors: torch.Tensor) -> Groups:
    """The groups of a matrix whose rows are multiplied by `factors`, float32 [rows], above 0: codes stay as they are.

    Scales and real zeros are multiplied and rounded to their dtype; of scales in int8 only the row's number is, and whole zeros
    stay, as they are counted in scales; of nested scales and zeros the float16 numbers are. A row of which a number would leave
    its dtype's range stays as it is.
    Raises InputError where rows share what is stored (has_row_scales).
    """
    if not has_row_scales(groups.scheme):
        raise InputError(f"rows of {groups.scheme.label} share what is stored of their scales; expected scales of each row's own")
    names = {Int8Scales: ("row_scales",), NestedScales: ("super_scales", "super_zeros")}.get(type(groups.scales), ("scales",))
    held = {name: getattr(groups.scales, name) for name in names if getattr(groups.scales, name) is not None}
    if groups.scheme.zeros == "real" and groups.zeros is not None and not isinstance(groups.scales, NestedScales):
        held["zeros"] = groups.zeros
    found = {key: (value.float() * factors.unsqueeze(-1)).to(value.dtype) for key, value in held.items()}
    fits = torch.stack([_fits(found[key], before).all(-1, keepdim=True) for key, before in held.items()]).all(0)
    found = {key: torch.where(fits, found[key], before) for key, before in held.items()}
    zeros = found.pop("zeros", groups.zeros)
    return replace(groups, scales=replace(groups.scales, **found), zeros=zeros)


def _fits(numbers: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Whether numbers are still finite, and large enough for every processor to take them for other than 0, as scales.steps_of
    demands; 0 stays 0."""
    return numbers.isfinite() & ((numbers.float().abs() >= torch.finfo(torch.float32).tiny) | (before == 0))


def fit_groups(matrix: torch.Tensor, scheme: Scheme, importance: torch.Tensor | None = None) -> tuple[Groups, Steps]:
    """The groups that `choose_groups` returns, and the steps to round codes with.

    These are the stored scales and zeros, with two exceptions: double quantization rounds the scales after the codes are chosen,
    as QLoRA does, and ggml rounds them to float16 after that.
    """
    grid, fit = grid_of(scheme), FITS[scheme.fit]
    weights = chunks_of(matrix)
    heavier = [None] * len(weights) if importance is None else chunks_of(_checked(importance, matrix))
    pairs = list(zip(weights, heavier, strict=True))
    together = [pairs] if scheme.group_size == "tensor" else [[pair] for pair in pairs]  # chunks that share their scales
    span, zeros = _joined(over_cores(partial(_ranges, scheme=scheme), together), dim=0)
    steps = fit.steps_of(span, zeros, grid, scheme)
    try:
        groups = store_groups(steps.scales, steps.zeros, scheme)
    except Refused:
        raise Refused(f"a scale or zero exceeds {scheme.scale_dtype}: the weights reach from {float(matrix.min()):g} to "
                      f"{float(matrix.max()):g}; expected smaller weights or scale_dtype float32") from None
    if scheme.scale_dtype in _KINDS:
        scales = groups.scale_values()
        steps = Steps(scales, groups.zero_values(), torch.where(scales == 0, 0.0, 1 / scales))
    return groups, steps


def chunks_of(matrix: torch.Tensor) -> Sequence[torch.Tensor]:
    """Views of rows, each of about CHUNK weights."""
    return matrix.split(max(1, CHUNK // matrix.shape[1]))


def blocks_of(matrix: torch.Tensor, scheme: Scheme) -> list[torch.Tensor]:
    """The matrix as blocks [outer, groups, n] of weights that share a scale: the whole groups and, where the rows end with one,
    the shorter groups. Views, if the matrix is contiguous."""
    if scheme.group_size == "tensor":
        return [matrix.reshape(1, 1, -1)]
    size = scheme.columns_per_group(matrix.shape[1])
    whole = matrix.shape[1] // size * size
    parts = [matrix] if whole == matrix.shape[1] else [matrix[:, :whole], matrix[:, whole:]]
    return [part.unflatten(1, (-1, min(size, part.shape[1]))) for part in parts]


def of_blocks(parameters: torch.Tensor | None, blocks: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
    """Scales or zeros [rows, groups] -> views with those of each of `blocks_of`."""
    return [None] * len(blocks) if parameters is None else parameters.split([block.shape[1] for block in blocks], dim=1)


def _ranges(pairs: Sequence[tuple[torch.Tensor, torch.Tensor | None]], scheme: Scheme) -> tuple:
    """Spans and zeros of the rows of some chunks; pairs: the weights and the importance of each."""
    weights = zip(*(blocks_of(chunk, scheme) for chunk, _ in pairs), strict=True)
    if pairs[0][1] is None:
        found = [Blocks.of(blocks) for blocks in weights]
    else:
        importance = zip(*(blocks_of(chunk, scheme) for _, chunk in pairs), strict=True)
        found = [Blocks.of(*both) for both in zip(weights, importance, strict=True)]
    return _joined([FITS[scheme.fit].choose_range(blocks, grid_of(scheme), scheme) for blocks in found], dim=1)


def _joined(ranges: Sequence[tuple], dim: int) -> tuple:
    spans, zeros = zip(*ranges, strict=True)
    return torch.cat(spans, dim), None if zeros[0] is None else torch.cat(zeros, dim)


def _checked(importance: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The importance of each weight, float32 in the matrix's shape. Raises InputError for another shape or a negative number."""
    if tuple(importance.shape) not in (tuple(matrix.shape), (matrix.shape[1],)):
        raise InputError(f"importance has shape {list(importance.shape)}; expected {list(matrix.shape)} or one for each column")
    if not (importance >= 0).all():
        raise InputError("importance holds NaN or a negative number; expected numbers from 0")
    return importance.float().expand(matrix.shape)
