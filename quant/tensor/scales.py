"""Steps 1 and 2 of quantizing: choose each group's range, and the scale and zero that it is stored as.

A range is a span and, if the scheme is asymmetric, a zero. The span is scale * grid.limit: unclipped, the largest magnitude of a
symmetric group (with its sign, for full levels), or highest minus lowest weight of an asymmetric one. The zero is the value of
code 0. Spans, zeros and scales are [outer, groups].
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
    """The dtype in which a scheme stores scales (unless they are quantized too) and zeros (unless they are whole)."""
    return {"int8": torch.float16, "nested": torch.float32}.get(scheme.scale_dtype) or getattr(torch, scheme.scale_dtype)


class Blocks(NamedTuple):
    """The weights of some groups. weights: tensors [outer, groups, n], pieces of one weight that share their scales; there are
    several only where the whole tensor shares one scale. importance: float32 tensors that can be broadcast to them, or None.
    low, high: the extreme weights of each group, float32 [outer, groups]."""

    weights: Sequence[torch.Tensor]
    importance: Sequence[torch.Tensor] | None
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, weights: Sequence[torch.Tensor], importance: Sequence[torch.Tensor] | None = None) -> Blocks:
        """Find the extremes. Raises InputError for NaN or infinity."""
        low, high = weights[0].amin(-1), weights[0].amax(-1)
        for block in weights[1:]:
            low, high = torch.minimum(low, block.amin(-1)), torch.maximum(high, block.amax(-1))
        low, high = low.float(), high.float()
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise InputError("the weight holds NaN or infinity; expected finite numbers, so fetch the model again")
        return cls(weights, importance, low, high)

    @property
    def absmax(self) -> torch.Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def signed_largest(self) -> torch.Tensor:
        """The weight of largest magnitude with its sign; of two, the negative one."""
        return torch.where(self.high > self.low.neg(), self.high, self.low)


class Steps(NamedTuple):
    """What codes are computed with, float32 [outer, groups]: scales, zeros (values of code 0) or None, inverses (1 / scale)."""

    scales: torch.Tensor
    zeros: torch.Tensor | None
    inverses: torch.Tensor


def steps_of(span: torch.Tensor, zeros: torch.Tensor | None, grid: Grid, scheme: Scheme) -> Steps:
    """Scales and zeros as they will be read, but for scales that are quantized themselves: these need those of other groups.

    With float32 scales the inverse is limit / span (as in bitsandbytes and LLM.int8()); with coarser dtypes it is 1 / the stored
    scale. A scale below the smallest normal float32 number is stored as 0 and its group as zeros, because processors differ in
    how they treat subnormal numbers.
    """
    scales = span / grid.limit
    scales = torch.where(scales.abs() < torch.finfo(torch.float32).tiny, 0.0, scales)
    if scheme.scale_dtype in ("float32", "int8", "nested"):
        inverses = grid.limit / span
    else:
        scales = scales.to(dtype_of(scheme)).float()
        inverses = 1 / scales
    inverses = torch.where(scales == 0, 0.0, inverses)
    if scheme.zeros == "whole":
        zeros = -whole_zeros(zeros, scales, scheme) * scales
    elif zeros is not None:
        zeros = zeros.to(dtype_of(scheme)).float()
    return Steps(scales, zeros, inverses)


def whole_zeros(zeros: torch.Tensor, scales: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The codes nearest to the weight 0, float32, where code 0 stands for about `zeros`; 0 for a scale of 0."""
    codes = torch.where(scales == 0, 0.0, -zeros / scales)
    return codes.round().clamp_(0, 2**scheme.bits - 1)


def whole_range(blocks: Blocks, _: Grid, scheme: Scheme) -> Range:
    """Clip no weight: symmetric, up to the largest magnitude; asymmetric, from the lowest weight to the highest.

    The range of whole zeros holds 0. Of full levels, weights opposite to the largest magnitude may be clipped by up to a step.
    """
    if scheme.levels == "full":
        return blocks.signed_largest, None
    return (blocks.absmax, None) if scheme.symmetric else _between(blocks.low, blocks.high, scheme)


def _between(low: torch.Tensor, high: torch.Tensor, scheme: Scheme) -> Range:
    if scheme.zeros == "whole":
        low, high = low.clamp(max=0), high.clamp(min=0)
        return high - low, low
    if scheme.scale_dtype == "nested":  # whose lowest values are never above 0
        low = low.clamp(max=0)
    zeros = low.to(dtype_of(scheme)).float()  # as stored, so that the steps start where they will be read
    return (high - zeros).clamp_(min=0), zeros


def least_squares(blocks: Blocks, grid: Grid, scheme: Scheme) -> Range:
    """Per group, the range clipped by one of SHRINKS with the smallest sum of squared errors, each times its importance; of equal
    sums, the widest range.

    Full levels are searched with both signs of the scale, first the whole range and then all scales that narrow levels would
    try: the additional level never adds error. A range with a whole zero is clipped in proportion at both ends.
    """

    def candidates() -> Iterable[Range]:
        if scheme.levels == "full":
            yield whole_range(blocks, grid, scheme)
        for shrink in SHRINKS:
            if scheme.levels == "full":
                span = blocks.absmax * shrink / (-grid.limit - 1) * grid.limit  # -limit - 1: the limit of narrow levels
                yield span, None
                yield -span, None
            elif scheme.symmetric:
                yield blocks.absmax * shrink, None
            elif scheme.zeros == "whole":
                yield _between(blocks.low * shrink, blocks.high * shrink, scheme)
            else:
                clipped = (blocks.high - blocks.low) * ((1 - shrink) / 2)  # at both ends
                yield _between(blocks.low + clipped, blocks.high - clipped, scheme)

    return _best(candidates(), blocks, grid, scheme, torch.Tensor.square_, blocks.importance)


def half_quadratic(blocks: Blocks, grid: Grid, scheme: Scheme) -> Range:
    """HQQ (Badri & Shaji 2023): keeps the scales of the whole range and moves the zeros to reduce the l_0.7 norm of the error.

    Each step splits the error into a sparse part, found by shrinkage, and a rest whose mean corrects the zero. Of all steps, the
    zero with the smallest sum of absolute errors is taken.
    """
    span, zeros = whole_range(blocks, grid, scheme)
    count = sum(block.shape[-1] for block in blocks.weights)

    def candidates() -> Iterable[Range]:
        current, beta = zeros, HQQ_BETA
        for _ in range(HQQ_STEPS):
            yield span, current
            correction = torch.zeros(span.shape, dtype=torch.float64)
            for block in blocks.weights:
                error = _error(block, span, current, grid, scheme)
                size = error.abs()
                outliers = error.sign() * (size - size.pow(HQQ_NORM - 1) / beta).clamp_(min=0)
                correction += (error - outliers).sum(-1, dtype=torch.float64)
            current = current + (correction / count).float()
            beta *= HQQ_KAPPA

    return _best(candidates(), blocks, grid, scheme, torch.Tensor.abs_)


class Fit(NamedTuple):
    """How the ranges of a scheme are found, and the scales and zeros with which codes are computed."""

    choose_range: Callable[[Blocks, Grid, Scheme], Range]
    steps_of: Callable[[torch.Tensor, torch.Tensor | None, Grid, Scheme], tuple] = steps_of


FITS = {  # by a scheme's `fit`; quant.tensor.scheme.FITS has the names
    "range": Fit(whole_range),
    "mse": Fit(least_squares),
    "hqq": Fit(half_quadratic),
    "ggml": Fit(
        lambda blocks, _, scheme: ggml.choose_range(blocks.weights[0].float(), blocks.low, blocks.high, scheme),
        lambda span, zeros, grid, _: Steps(*ggml.steps_of(span, zeros, grid)),
    ),
}


def _best(candidates: Iterable[Range], blocks: Blocks, grid: Grid, scheme: Scheme, loss: Callable,
          importance: Sequence[torch.Tensor] | None = None) -> Range:
    """Per group, the first of the candidates with the smallest sum of losses, each times its importance.

    Sums are float64, so that the choice does not depend on the order in which a processor adds.
    """
    best = best_span = best_zeros = None
    for span, zeros in candidates:
        total = 0
        for i, block in enumerate(blocks.weights):
            losses = loss(_error(block, span, zeros, grid, scheme))
            total = total + (losses if importance is None else losses * importance[i]).sum(-1, dtype=torch.float64)
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
    scales, zeros, inverses = steps_of(span, zeros, grid, scheme)
    values = grid.decode(nearest(block, inverses, zeros, grid)) * scales.unsqueeze(-1)
    return block - (values if zeros is None else values + zeros.unsqueeze(-1))
