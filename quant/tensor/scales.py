"""How a group's range is chosen: the reach that the grid's largest value stands for, and the value of code 0.

Each fit takes the groups of a weight as pieces, tensors [outer, groups, n] that share their scales (one piece, except
where the whole tensor shares one scale and is seen a piece at a time), and returns reach and zeros, float32 [outer, groups].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from quant.errors import InputError
from quant.tensor.grids import LinearGrid, TableGrid
from quant.tensor.scheme import Scheme

Pieces = Sequence[torch.Tensor]
Grid = LinearGrid | TableGrid

SHRINKS = tuple(1 - 0.02 * i for i in range(36))  # the ranges the search tries, as parts of the whole one: 1 to 0.3
HQQ_STEPS, HQQ_NORM, HQQ_BETA, HQQ_KAPPA = 20, 0.7, 10.0, 1.01


def choose_range(
    pieces: Pieces, low: torch.Tensor, high: torch.Tensor, grid: Grid, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Reach and zeros by the scheme's fit; low, high: the extremes of each group, see `extremes`."""
    if scheme.fit == "mse":
        return _least_squares(pieces, low, high, grid, scheme)
    if scheme.fit == "hqq":
        return _half_quadratic(pieces, low, high, grid, scheme)
    return _whole_range(low, high, scheme)


def extremes(pieces: Pieces) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest weight of each group, float32. Raises InputError for NaN or infinity."""
    low, high = pieces[0].amin(-1), pieces[0].amax(-1)
    for piece in pieces[1:]:
        low, high = torch.minimum(low, piece.amin(-1)), torch.maximum(high, piece.amax(-1))
    low, high = low.float(), high.float()
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise InputError("the weight holds NaN or infinity; expected finite numbers")
    return low, high


def stored(reach: torch.Tensor, zeros: torch.Tensor | None, grid: Grid, scheme: Scheme) -> tuple[torch.Tensor, ...]:
    """Scales and zeros as the scheme stores them, and the inverse of the scales, float32, to round codes with.

    The inverse is limit / reach where the scale is float32 (as bitsandbytes and LLM.int8() round), and belongs to the
    scale as stored where that is coarser. A float32 scale below the smallest normal number is stored as 0 and
    its group as zeros, because processors differ in what they do with smaller ones.
    """
    dtype = getattr(torch, scheme.scale_dtype)
    scales = reach / grid.limit
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, 0.0, scales).to(dtype)
    inverses = grid.limit / reach if dtype == torch.float32 else 1 / scales.float()
    inverses = torch.where(scales == 0, 0.0, inverses)
    return scales, None if zeros is None else zeros.to(dtype), inverses


def encode(blocks: torch.Tensor, inverses: torch.Tensor, zeros: torch.Tensor | None, grid: Grid) -> torch.Tensor:
    """Codes, uint8 [outer, groups, n], of blocks under scales given by their inverses [outer, groups]."""
    if zeros is not None:
        blocks = blocks - zeros.float().unsqueeze(-1)
    return grid.encode(blocks * inverses.unsqueeze(-1))


def _whole_range(low: torch.Tensor, high: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor | None]:
    """No weight is clipped: symmetric, the largest magnitude; asymmetric, from the lowest weight to the highest."""
    if scheme.symmetric:
        return torch.maximum(low.abs(), high.abs()), None
    zeros = low.to(getattr(torch, scheme.scale_dtype)).float()  # as stored, so that the steps start where they will be read
    return (high - zeros).clamp_(min=0), zeros


def _least_squares(pieces: Pieces, low, high, grid: Grid, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of some clipped ranges, the one with the smallest sum of squared errors; the widest of equals."""
    whole = high - low

    def candidates():
        for shrink in SHRINKS:
            if scheme.symmetric:
                yield torch.maximum(low.abs(), high.abs()) * shrink, None
            else:
                clipped = whole * ((1 - shrink) / 2)  # at both ends
                yield _whole_range(low + clipped, high - clipped, scheme)

    return _best(candidates(), pieces, grid, scheme, lambda error: error.square_())


def _half_quadratic(pieces: Pieces, low, high, grid: Grid, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor | None]:
    """HQQ (Badri & Shaji 2023): moves the zeros, at the scales of the whole range, towards the least l_0.7 error.

    Errors split into a part that is sparse (found by a shrinkage step) and a rest whose mean corrects the zero.
    """
    reach, zeros = _whole_range(low, high, scheme)
    count = sum(piece.shape[-1] for piece in pieces)

    def candidates():
        current, beta = zeros, HQQ_BETA
        for _ in range(HQQ_STEPS):
            yield reach, current
            correction = torch.zeros(reach.shape, dtype=torch.float64)
            for piece in pieces:
                error = _error(piece, reach, current, grid, scheme)
                size = error.abs()
                outliers = error.sign() * (size - size.pow(HQQ_NORM - 1) / beta).clamp_(min=0)
                correction += (error - outliers).sum(-1, dtype=torch.float64)
            current = current + (correction / count).float()
            beta *= HQQ_KAPPA

    return _best(candidates(), pieces, grid, scheme, lambda error: error.abs_())


def _best(candidates, pieces: Pieces, grid: Grid, scheme: Scheme, loss: Callable) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Per group, the first of the candidates (reach, zeros) with the smallest sum of losses.

    Sums are float64, so that the choice does not hang on the order in which a processor adds.
    """
    best = best_reach = best_zeros = None
    for reach, zeros in candidates:
        total = sum(loss(_error(piece, reach, zeros, grid, scheme)).sum(-1, dtype=torch.float64) for piece in pieces)
        if best is None:
            best, best_reach, best_zeros = total, reach, zeros
            continue
        better = total < best
        best = torch.where(better, total, best)
        best_reach = torch.where(better, reach, best_reach)
        best_zeros = None if zeros is None else torch.where(better, zeros, best_zeros)
    return best_reach, best_zeros


def _error(piece: torch.Tensor, reach: torch.Tensor, zeros: torch.Tensor | None, grid: Grid, scheme: Scheme) -> torch.Tensor:
    """What is lost: weight minus the value its code stands for, float32 [outer, groups, n]."""
    piece = piece.float()
    scales, zeros, inverses = stored(reach, zeros, grid, scheme)
    values = grid.decode(encode(piece, inverses, zeros, grid)) * scales.float().unsqueeze(-1)
    return piece - (values if zeros is None else values + zeros.float().unsqueeze(-1))
