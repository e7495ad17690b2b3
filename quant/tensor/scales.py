"""Steps 1 and 2 of quantizing: choose each group's range, and store it as a scale and a zero.

A range is a span and, if the scheme is asymmetric, a zero. The span is scale * grid.limit: unclipped, the largest magnitude of a
symmetric group, or highest minus lowest weight of an asymmetric one. The zero is the value of code 0. Blocks are tensors [outer,
groups, n], pieces of one weight that share their scales; there are several only where the whole tensor shares one scale. Spans,
zeros and scales are [outer, groups].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from quant.errors import InputError
from quant.tensor import ggml
from quant.tensor.grids import Grid
from quant.tensor.rounding import nearest
from quant.tensor.scheme import Scheme

Blocks = Sequence[torch.Tensor]
Range = tuple[torch.Tensor, torch.Tensor | None]  # span, and zero where asymmetric; float32

SHRINKS = tuple(1 - 0.02 * i for i in range(36))  # the clipped ranges that "mse" tries, relative to the whole one: 1 to 0.3
HQQ_STEPS, HQQ_NORM, HQQ_BETA, HQQ_KAPPA = 20, 0.7, 10.0, 1.01


@dataclass(frozen=True)
class PlainScales:
    """Scales [rows, groups], or [1, 1] for the whole tensor, in the dtype the scheme names."""

    scales: torch.Tensor

    @classmethod
    def of(cls, scales: torch.Tensor) -> PlainScales:
        return cls(scales)

    @staticmethod
    def layout(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """dtype and shape of each stored tensor, for scales [rows, groups]."""
        return {"scales": (dtype, shape)}

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """The scales of some rows of the weight, as stored [n, groups]; [1, 1] if the whole tensor shares one."""
        return rows_of(self.scales, index)


def rows_of(parameters: torch.Tensor, index: slice | torch.Tensor) -> torch.Tensor:
    """Scales or zeros of some rows of the weight; a single row of them is returned whole, and broadcast by the caller."""
    return parameters if len(parameters) == 1 else parameters[index]


def dtype_of(scheme: Scheme) -> torch.dtype:
    """The dtype in which a scheme stores scales (unless they are quantized too) and zeros."""
    return getattr(torch, scheme.scale_dtype)


def extremes(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest weight of each group, float32. Raises InputError for NaN or infinity."""
    low, high = blocks[0].amin(-1), blocks[0].amax(-1)
    for block in blocks[1:]:
        low, high = torch.minimum(low, block.amin(-1)), torch.maximum(high, block.amax(-1))
    low, high = low.float(), high.float()
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise InputError("the weight holds NaN or infinity; expected finite numbers, so fetch the model again")
    return low, high


def store_scales(span: torch.Tensor, zeros: torch.Tensor | None, grid: Grid, scheme: Scheme) -> tuple[torch.Tensor, ...]:
    """Scales and zeros in the scheme's dtype, and the inverse scales, float32, for rounding to codes.

    With float32 scales the inverse is limit / span (as in bitsandbytes and LLM.int8()); with coarser dtypes it is 1 / the stored
    scale. A scale below the smallest normal float32 number is stored as 0 and its group as zeros, because processors differ in
    how they treat subnormal numbers.
    """
    dtype = dtype_of(scheme)
    scales = span / grid.limit
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, 0.0, scales).to(dtype)
    inverses = grid.limit / span if dtype == torch.float32 else 1 / scales.float()
    inverses = torch.where(scales == 0, 0.0, inverses)
    return scales, None if zeros is None else zeros.to(dtype), inverses


def whole_range(_: Blocks, low: torch.Tensor, high: torch.Tensor, __: Grid, scheme: Scheme) -> Range:
    """Clip no weight: symmetric, up to the largest magnitude; asymmetric, from the lowest weight to the highest."""
    if scheme.symmetric:
        return torch.maximum(low.abs(), high.abs()), None
    zeros = low.to(dtype_of(scheme)).float()  # as stored, so that the steps start where they will be read
    return (high - zeros).clamp_(min=0), zeros


def least_squares(blocks: Blocks, low: torch.Tensor, high: torch.Tensor, grid: Grid, scheme: Scheme) -> Range:
    """Per group, the range clipped by one of SHRINKS with the smallest sum of squared errors; of equal sums, the widest range."""
    width = high - low

    def candidates() -> Iterable[Range]:
        for shrink in SHRINKS:
            if scheme.symmetric:
                yield torch.maximum(low.abs(), high.abs()) * shrink, None
            else:
                clipped = width * ((1 - shrink) / 2)  # at both ends
                yield whole_range(blocks, low + clipped, high - clipped, grid, scheme)

    return _best(candidates(), blocks, grid, scheme, torch.Tensor.square_)


def half_quadratic(blocks: Blocks, low: torch.Tensor, high: torch.Tensor, grid: Grid, scheme: Scheme) -> Range:
    """HQQ (Badri & Shaji 2023): keeps the scales of the whole range and moves the zeros to reduce the l_0.7 norm of the error.

    Each step splits the error into a sparse part, found by shrinkage, and a rest whose mean corrects the zero. Of all steps, the
    zero with the smallest sum of absolute errors is taken.
    """
    span, zeros = whole_range(blocks, low, high, grid, scheme)
    count = sum(block.shape[-1] for block in blocks)

    def candidates() -> Iterable[Range]:
        current, beta = zeros, HQQ_BETA
        for _ in range(HQQ_STEPS):
            yield span, current
            correction = torch.zeros(span.shape, dtype=torch.float64)
            for block in blocks:
                error = _error(block, span, current, grid, scheme)
                size = error.abs()
                outliers = error.sign() * (size - size.pow(HQQ_NORM - 1) / beta).clamp_(min=0)
                correction += (error - outliers).sum(-1, dtype=torch.float64)
            current = current + (correction / count).float()
            beta *= HQQ_KAPPA

    return _best(candidates(), blocks, grid, scheme, torch.Tensor.abs_)


class Fit(NamedTuple):
    """How the ranges of a scheme are found and stored: the first two steps of quantizing."""

    choose_range: Callable[[Blocks, torch.Tensor, torch.Tensor, Grid, Scheme], Range]
    store_scales: Callable[[torch.Tensor, torch.Tensor | None, Grid, Scheme], tuple[torch.Tensor, ...]] = store_scales


FITS = {  # by a scheme's `fit`; quant.tensor.scheme.FITS has the names
    "range": Fit(whole_range),
    "mse": Fit(least_squares),
    "hqq": Fit(half_quadratic),
    "ggml": Fit(ggml.choose_range, ggml.store_scales),
}


def _best(candidates: Iterable[Range], blocks: Blocks, grid: Grid, scheme: Scheme, loss: Callable) -> Range:
    """Per group, the first of the candidates with the smallest sum of losses.

    Sums are float64, so that the choice does not depend on the order in which a processor adds.
    """
    best = best_span = best_zeros = None
    for span, zeros in candidates:
        total = sum(loss(_error(block, span, zeros, grid, scheme)).sum(-1, dtype=torch.float64) for block in blocks)
        if best is None:
            best, best_span, best_zeros = total, span, zeros
            continue
        better = total < best
        best = torch.where(better, total, best)
        best_span = torch.where(better, span, best_span)
        best_zeros = None if zeros is None else torch.where(better, zeros, best_zeros)
    return best_span, best_zeros


def _error(block: torch.Tensor, span: torch.Tensor, zeros: torch.Tensor | None, grid: Grid, scheme: Scheme) -> torch.Tensor:
    """Weight minus the value of its code, float32 [outer, groups, n]."""
    block = block.float()
    scales, zeros, inverses = store_scales(span, zeros, grid, scheme)
    values = grid.decode(nearest(block, inverses, zeros, grid)) * scales.float().unsqueeze(-1)
    return block - (values if zeros is None else values + zeros.float().unsqueeze(-1))
