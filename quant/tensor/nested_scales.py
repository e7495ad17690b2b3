"""Scales and lowest values as llama.cpp's K-quants nest them: whole numbers, times a float16 number per 256 weights.

    scale = super_scale * code           lowest value = -super_zero * code

A scheme's width decides the rest. Unsigned codes of 4 bits (2-bit weights) or 6 bits (4- and 5-bit weights) come with lowest
values, which are never above 0; signed codes of 6 bits (3-bit weights) or 8 bits (6-bit weights) come without.
Reference: ggml-common.h of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from quant.errors import InputError
from quant.tensor.packing import pack, row_bytes, unpack
from quant.tensor.scheme import SUPERBLOCK, Scheme

TRIED = 0.7  # the largest number of a superblock gets codes from this part of the highest code up to it: the best is taken


class Width(NamedTuple):
    """groups: of a superblock. bits: of the code of a scale. is_signed: codes count from the middle."""

    groups: int
    bits: int
    is_signed: bool

    @property
    def bytes(self) -> int:
        return row_bytes(self.groups, self.bits)


_WIDTHS = (Width(16, 4, False), Width(16, 6, True), Width(8, 6, False), Width(16, 8, True))
_BY_BYTES = {width.bytes: width for width in _WIDTHS}  # all different, so the stored bytes tell the width
WIDTHS = dict(zip((2, 3, 4, 6), _WIDTHS, strict=True)) | {5: _WIDTHS[2]}  # by a weight's bits


@dataclass(frozen=True)
class NestedScales:
    """scale_codes: packed, uint8 [rows, bytes]; super_scales: float16 [rows, superblocks]; super_zeros: the same for lowest
    values, whose codes are packed like those of scales; None if symmetric."""

    scale_codes: torch.Tensor
    super_scales: torch.Tensor
    super_zeros: torch.Tensor | None = None

    @property
    def width(self) -> Width:
        return _BY_BYTES[self.scale_codes.shape[1] // self.super_scales.shape[1]]

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """The scales of some rows of the weight, float32 [n, groups]."""
        return self._times(self.scale_codes[index], self.super_scales[index])

    def zero_rows(self, zeros: torch.Tensor, index: slice | torch.Tensor) -> torch.Tensor:
        """The values of code 0 in some rows, float32 [n, groups]; zeros: their codes, uint8 [rows, bytes]."""
        return -self._times(zeros[index], self.super_zeros[index])

    def _times(self, codes: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.float().repeat_interleave(self.width.groups, 1) * unpacked(codes, self.width)


def layout(rows: int, columns: int, scheme: Scheme) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of each stored tensor. Raises InputError where rows are not whole superblocks."""
    if columns % SUPERBLOCK:
        raise InputError(f"a row of {columns} weights is not whole blocks of {SUPERBLOCK}, as scale_dtype nested needs; expected "
                         f"a multiple of {SUPERBLOCK}, or another scale_dtype")
    count = columns // SUPERBLOCK
    codes, numbers = (torch.uint8, (rows, count * WIDTHS[scheme.bits].bytes)), (torch.float16, (rows, count))
    plain = {"scale_codes": codes, "super_scales": numbers}
    return plain if scheme.symmetric else plain | {"super_zeros": numbers, "zeros": codes}


def nest(scales: torch.Tensor, zeros: torch.Tensor | None, scheme: Scheme) -> tuple[NestedScales, torch.Tensor | None]:
    """Round scales and values of code 0, float32 [rows, groups], to what is stored: the scales, and the codes of the zeros.

    Each superblock's float16 number is the one, of some, with the least squared error of the rounded numbers. A scale that is
    not 0 keeps its sign and a code other than 0. What is stored already is stored so again.
    """
    width = WIDTHS[scheme.bits]
    if scales.shape[1] % width.groups:
        raise InputError(f"{scales.shape[1]} groups are not whole superblocks of {width.groups}; expected rows of a multiple of "
                         f"{SUPERBLOCK} weights for scale_dtype nested")
    codes, numbers = _rounded(scales, width, keeps=True)
    if zeros is None:
        return NestedScales(packed(codes, width), numbers), None
    zero_codes, zero_numbers = _rounded(zeros.neg().clamp(min=0), width, keeps=False)
    return NestedScales(packed(codes, width), numbers, zero_numbers), packed(zero_codes, width)


def unpacked(codes: torch.Tensor, width: Width) -> torch.Tensor:
    """The whole numbers of packed codes [rows, bytes]: float32 [rows, groups]."""
    columns = codes.shape[1] // width.bytes * width.groups
    return unpack(codes, width.bits, columns).float() - (2 ** (width.bits - 1) if width.is_signed else 0)


def packed(numbers: torch.Tensor, width: Width) -> torch.Tensor:
    """The inverse of `unpacked`."""
    return pack((numbers + (2 ** (width.bits - 1) if width.is_signed else 0)).to(torch.uint8), width.bits)


def _rounded(values: torch.Tensor, width: Width, keeps: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers, float32 [rows, groups], and the float16 numbers [rows, superblocks] of values; keeps: none becomes 0."""
    blocks = values.float().unflatten(1, (-1, width.groups))
    lowest, highest = (-(2 ** (width.bits - 1)), 2 ** (width.bits - 1) - 1) if width.is_signed else (0, 2**width.bits - 1)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    end = lowest if width.is_signed else highest
    best = best_codes = best_numbers = None
    for code in range(end, round(TRIED * end) - (1 if end > 0 else -1), -1 if end > 0 else 1):
        numbers = (largest / code).to(torch.float16)
        inverses = torch.where(numbers == 0, 0.0, 1 / numbers.float())
        codes = (blocks * inverses).round().clamp_(lowest, highest)
        if keeps:  # a scale of 0 would leave its group without values
            sign = blocks.sign() * inverses.sign()
            codes = torch.where((codes == 0) | (codes.sign() != sign), sign, codes)
        error = (blocks - codes * numbers.float()).square().sum(-1, keepdim=True, dtype=torch.float64)
        if best is None:
            best, best_codes, best_numbers = error, codes, numbers
            continue
        is_better = error < best
        best, best_codes = torch.where(is_better, error, best), torch.where(is_better, codes, best_codes)
        best_numbers = torch.where(is_better, numbers, best_numbers)
    return best_codes.flatten(1), best_numbers.squeeze(-1)
