"""Calibrated rounding: codes and scales of one weight that keep its outputs, rather than the weight itself, near the target.

With H the second moments E[x x^T] of the inputs, rounding a row w to q costs (w - q) H (w - q)^T, the mean squared error of its
output. Any grid with a nearest value takes part: linear steps of any width, NF4, FP4, tables, ggml's rule.

    feedback   after each column is rounded, the columns not yet rounded make up for its error (GPTQ, Frantar et al. 2022, in the
               form of its Cholesky factor), most active inputs first, with the groups' scales chosen beforehand
    refit      given the codes, the scales of a row that minimise its cost, by least squares
    descend    given the scales, coordinate descent over the codes

Feedback and costs are computed in float64, the products of refits and descent in float32; the values of codes are those that
dequantizing gives, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from quant.calibration.columns import Columns, round_in_turn
from quant.calibration.moments import damped
from quant.calibration.nested_refit import refit_nested
from quant.tensor.grids import Grid, grid_of
from quant.tensor.groups import Groups, choose_groups, store_groups
from quant.tensor.products import product
from quant.tensor.qtensor import QTensor, assemble
from quant.tensor.scheme import Scheme

BLOCK = 128  # columns that are rounded before the rest of the matrix is corrected for all of them by one product
HALVED = 512  # columns of a cost that are computed together
SPREAD = 2**19  # numbers of a matrix that a refit handles at a time: they stay in the processor's cache
DAMPING = 0.01  # added to the diagonal of H, relative to its mean
SETTLED = 1e-3  # a sweep of descent that changes no larger part of the codes is the last
REFIT_DAMPING = 1e-3  # of a row's scales, relative to each diagonal element


class Curvature:
    """H, float64 [columns, columns], and the factors of its inverse for feedback; weights with the same inputs share it."""

    def __init__(self, second: torch.Tensor, damping: float = DAMPING):
        self.second = damped(second, damping)
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def factor(self, order: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The upper triangular U with U^T U = H^-1, for the columns in the order in which they are rounded; and that order."""
        if order not in self._factors:
            columns = len(self.second)
            by_activation = self.second.diagonal().argsort(descending=True, stable=True)
            places = by_activation if order == "activation" else torch.arange(columns)
            lower = torch.linalg.cholesky(self.second[places][:, places].flip(0, 1))
            inverse = torch.linalg.solve_triangular(lower, torch.eye(columns, dtype=torch.float64), upper=False)
            self._factors[order] = inverse.flip(0, 1).contiguous(), places
        return self._factors[order]


@dataclass(frozen=True)
class Solver:
    """rounding: "feedback", or "nearest" for the nearest code of each weight. importance: whether the fit of scales weights
    errors by H's diagonal. order: "activation" rounds the columns of the largest inputs first, "natural" from left to right.
    sweeps: of coordinate descent over the codes. refits: of the scales, so many of which are followed by rounding with feedback
    again, and as many after these by sweeps over the codes there are."""

    rounding: str = "feedback"
    importance: bool = True
    order: str = "activation"
    refits: int = 2
    sweeps: int = 4

    def solve(self, target: torch.Tensor, curvature: Curvature, scheme: Scheme) -> QTensor:
        """Quantize a matrix [rows, columns] so that it comes near to the target under H.

        The cost of no row exceeds that of rounding to nearest with the scales first chosen.
        """
        problem = _Problem(target, curvature.second, scheme)
        importance = curvature.second.diagonal().float() if self.importance else None
        groups = choose_groups(target.float(), scheme, importance)
        best = problem.nearest(groups)
        if self.rounding == "feedback":
            found = problem.feedback(groups, *curvature.factor(self.order))
            for _ in range(self.refits):
                groups = problem.refit(found.codes, groups)
                found = found.improved(problem.feedback(groups, *curvature.factor(self.order)))
            best = best.improved(problem.descend(found.codes, found.groups, self.sweeps))
            for _ in range(self.refits):
                best = best.improved(problem.descend(best.codes, problem.refit(best.codes, best.groups), self.sweeps))
        return assemble(best.codes.T.contiguous(), best.groups, tuple(target.shape), scheme)


class _Problem:
    """One matrix, its second moments and its scheme. Matrices are held transposed, [columns, rows], so that a column to be
    rounded is contiguous."""

    def __init__(self, target: torch.Tensor, second: torch.Tensor, scheme: Scheme):
        self.target, self.second, self.scheme = target.double().T.contiguous(), second, scheme
        self.grid: Grid = grid_of(scheme)
        self.columns, self.rows = self.target.shape
        self.group_of = scheme.group_index(self.columns)

    def solution(self, codes: torch.Tensor, groups: Groups) -> _Solution:
        """Codes and scales, with what they cost."""
        error = self.target - _Reader(self, groups).values(codes)
        cost = torch.zeros(self.rows, dtype=torch.float64)
        for start, stop in _runs(self.columns, HALVED):  # H is symmetric: what lies right of a block on the diagonal counts twice
            pull = torch.addmm(self.second[start:stop, start:stop] @ error[start:stop], self.second[start:stop, stop:],
                               error[stop:], alpha=2)
            cost += pull.mul_(error[start:stop]).sum(0)
        return _Solution(codes, groups, cost)

    def nearest(self, groups: Groups) -> _Solution:
        """The nearest code of every weight."""
        read = _Reader(self, groups)
        return self.solution(torch.stack([read.round(j, self.target[j])[0] for j in range(self.columns)]), groups)

    def feedback(self, groups: Groups, factor: torch.Tensor, order: torch.Tensor) -> _Solution:
        """Round column by column, each error carried over to the columns that follow.

        The cost of a row is the sum of its squared errors, each divided by its element of the factor's diagonal.
        """
        read, left = _Reader(self, groups), self.target[order]
        codes, cost = torch.empty(self.columns, self.rows, dtype=torch.uint8), torch.zeros(self.rows, dtype=torch.float64)
        for start, stop in _runs(self.columns, BLOCK):
            changes = round_in_turn(left[start:stop], factor[start:stop, start:stop], order[start:stop], read.columns, codes)
            left[stop:].addmm_(factor[start:stop, stop:].T, changes)
            cost += changes.square_().sum(0)
        return _Solution(codes, groups, cost)

    def descend(self, codes: torch.Tensor, groups: Groups, sweeps: int) -> _Solution:
        """Coordinate descent: each code in turn takes the value that is best, all others given.

        Products in float32: an error of theirs could move a code only where two codes cost the same but for some 1e-5 of a step.
        """
        read, codes = _Reader(self, groups), codes.clone()
        values, order = read.values(codes).float(), torch.arange(self.columns)
        missing = (self.target - values).float()
        for _ in range(sweeps):
            changed = 0
            for start, stop in _runs(self.columns, BLOCK):
                pull = product(self.single[start:stop], missing)  # H (w - q) of the block's columns
                steps = round_in_turn(pull, self.single[start:stop, start:stop], order[start:stop], read.columns, codes, values)
                missing[start:stop] += steps
                changed += int(steps.count_nonzero())
            if changed <= SETTLED * codes.numel():
                break
        return self.solution(codes, groups)

    def refit(self, codes: torch.Tensor, groups: Groups) -> Groups:
        """The scales of each row that are best for its codes, as stored. A scale that would change its sign, or was 0, stays."""
        if self.scheme.scale_dtype == "nested":
            return refit_nested(self.grid.decode(codes).double(), self.target, self.second, groups, self.scheme)
        scales, zeros = groups.scale_values(), groups.zero_values()
        if self.scheme.double_quant or scales.shape[0] != self.rows:  # rows share what is stored: they can't be fitted one by one
            return groups
        pull = product(self.single, (self.target - _Reader(self, groups).values(codes)).float())
        steps, whole = self.grid.decode(codes), None  # [columns, rows]
        if self.scheme.zeros == "whole" and zeros is not None:  # the zero is a code: it moves with the scale
            whole = torch.where(scales == 0, 0.0, zeros / scales)
            steps += whole.T[self.group_of]
        change = _least_squares(steps, pull, self.single, self.scheme.columns_per_group(self.columns), len(scales.T))
        fitted = scales + change.float()
        fitted = torch.where(fitted * scales > 0, fitted, scales)
        return store_groups(fitted, zeros if whole is None else whole * fitted, self.scheme)

    @cached_property
    def single(self) -> torch.Tensor:
        """H in float32."""
        return self.second.float()


class _Reader:
    """Rounds to the codes of some groups, and reads codes as dequantizing does."""

    def __init__(self, problem: _Problem, groups: Groups):
        self._grid, self._group_of = problem.grid, problem.group_of
        scales, zeros = groups.scale_values(), groups.zero_values()
        self._scales = scales.expand(problem.rows, -1).T.contiguous()  # [groups, rows]
        self._inverses = torch.where(self._scales == 0, 0.0, 1 / self._scales)
        self._zeros = None if zeros is None else zeros.expand(problem.rows, -1).T.contiguous()
        self.columns = Columns(self._grid, self._scales, self._inverses, self._zeros, self._group_of)

    def round(self, column: int, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest codes, uint8 [rows], of a column's weights, and the values they stand for, float32 [rows]."""
        group, steps = self._group_of[column], weights.float()
        if self._zeros is not None:
            steps = steps - self._zeros[group]
        codes = self._grid.encode(steps * self._inverses[group])
        return codes, self._value(codes, group)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """float64 [columns, rows]"""
        values, groups = torch.empty(codes.shape, dtype=torch.float64), torch.tensor(self._group_of)
        for start, stop in _runs(len(codes), BLOCK):
            values[start:stop] = self._value(codes[start:stop], groups[start:stop])
        return values

    def _value(self, codes: torch.Tensor, group: int | torch.Tensor) -> torch.Tensor:
        values = self._grid.decode(codes).mul_(self._scales[group])
        return values if self._zeros is None else values.add_(self._zeros[group])


@dataclass(frozen=True)
class _Solution:
    """codes: uint8 [columns, rows]. cost: (w - q) H (w - q)^T of every row, float64 [rows]."""

    codes: torch.Tensor
    groups: Groups
    cost: torch.Tensor

    def improved(self, other: _Solution) -> _Solution:
        """Row by row, the cheaper of the two."""
        is_better = other.cost < self.cost
        groups = self.groups if other.groups is self.groups else _rows_of_either(is_better, other.groups, self.groups)
        return _Solution(torch.where(is_better, other.codes, self.codes), groups, torch.where(is_better, other.cost, self.cost))


def _rows_of_either(is_first: torch.Tensor, first: Groups, second: Groups) -> Groups:
    """Row by row, the groups of the first where `is_first`, bool [rows], else of the second."""
    def choose(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
        return None if one is None else torch.where(is_first.unsqueeze(-1), one, other)

    scales = {name: choose(value, getattr(second.scales, name)) for name, value in vars(first.scales).items()}
    return Groups(type(first.scales)(**scales), choose(first.zeros, second.zeros), first.scheme)


def _runs(count: int, length: int) -> Iterator[tuple[int, int]]:
    """Start and stop of runs of some length that cover 0 to `count`; the last may be shorter."""
    return ((start, min(start + length, count)) for start in range(0, count, length))


def _least_squares(steps: torch.Tensor, pull: torch.Tensor, second: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """The change of the scales that takes most off the cost, float64 [rows, count]. steps: what scales are multiplied by, pull:
    H (w - q), both [columns, rows]; second: H; all float32. size: columns of a group; count: of groups.

    One system of normal equations a row.
    """
    columns, rows = steps.shape
    change = torch.empty(rows, count, dtype=torch.float64)
    for start, stop in _runs(rows, max(1, SPREAD // columns)):
        some = steps[:, start:stop].contiguous()
        spread = torch.zeros(count * size, stop - start)  # zeros fill up the last group
        grouped = spread.view(count, size, -1)
        spread[:columns] = some * pull[:, start:stop]
        right = grouped.sum(1).double()
        normal = torch.zeros(count, count, stop - start, dtype=torch.float64)  # the lower triangle
        for group, (first, last) in enumerate(_runs(columns, size)):
            torch.mul(product(second[first:, first:last], some[first:last]), some[first:], out=spread[first:columns])
            normal[group:, group] = grouped[group:].sum(1)
        normal = normal.permute(2, 0, 1)
        diagonal = normal.diagonal(dim1=-2, dim2=-1)
        floor = 1e-12 * diagonal.sum(-1, keepdim=True) + 1e-30  # for groups whose codes are all zero
        factor = torch.linalg.cholesky(normal + torch.diag_embed(REFIT_DAMPING * diagonal + floor))
        change[start:stop] = torch.cholesky_solve(right.T.unsqueeze(-1), factor).squeeze(-1)
    return change
