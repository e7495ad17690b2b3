"""Calibrated rounding: codes and scales of one weight that keep its outputs, rather than the weight itself, near the target.

With H the second moments E[x x^T] of the inputs, rounding a row w to q costs (w - q) H (w - q)^T, the mean squared error of its
output. Any grid with a nearest value takes part: linear steps of any width, NF4, FP4, tables, ggml's rule.

    feedback   after each column is rounded, the columns not yet rounded make up for its error (GPTQ, Frantar et al. 2022, in the
               form of its Cholesky factor), most active inputs first, with the groups' scales chosen beforehand
    refit      given the codes, the scales of a row that minimise its cost, by least squares
    descend    given the scales, coordinate descent over the codes

Everything is computed in float64; the values of codes are those that dequantizing gives, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from quant.calibration.moments import damped
from quant.calibration.nested_refit import refit_nested
from quant.tensor.grids import Grid, grid_of
from quant.tensor.groups import Groups, choose_groups, store_groups
from quant.tensor.qtensor import QTensor, assemble
from quant.tensor.scheme import Scheme

BLOCK = 128  # columns that are rounded before the rest of the matrix is corrected for all of them by one product
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
    refits: rounds of refitting the scales and rounding again. sweeps: of coordinate descent after each rounding."""

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
        best = _Solution(problem, groups, problem.nearest(groups))
        if self.rounding == "feedback":
            for attempt in range(1 + self.refits):
                codes = problem.feedback(groups, *curvature.factor(self.order))
                if self.sweeps:
                    codes = problem.descend(codes, groups, self.sweeps)
                best = best.improved(_Solution(problem, groups, codes))
                if attempt < self.refits:
                    groups = problem.refit(codes, groups)
                elif scheme.scale_dtype == "nested" and self.refits:
                    best = problem.polished(best, self.refits, self.sweeps)
        return assemble(best.codes.T.contiguous(), best.groups, tuple(target.shape), scheme)


class _Problem:
    """One matrix, its second moments and its scheme. Matrices are held transposed, [columns, rows], so that a column to be
    rounded is contiguous."""

    def __init__(self, target: torch.Tensor, second: torch.Tensor, scheme: Scheme):
        self.target, self.second, self.scheme = target.double().T.contiguous(), second, scheme
        self.grid: Grid = grid_of(scheme)
        self.columns, self.rows = self.target.shape
        self.group_of = scheme.group_index(self.columns)

    def nearest(self, groups: Groups) -> torch.Tensor:
        """The nearest code of every weight, uint8 [columns, rows]."""
        read = _Reader(self, groups)
        return torch.stack([read.round(j, self.target[j])[0] for j in range(self.columns)])

    def feedback(self, groups: Groups, factor: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Round column by column, each error carried over to the columns that follow: uint8 [columns, rows]."""
        read, left, places = _Reader(self, groups), self.target[order], order.tolist()
        codes = torch.empty(self.columns, self.rows, dtype=torch.uint8)
        for start in range(0, self.columns, BLOCK):
            stop = min(start + BLOCK, self.columns)
            block, within = left[start:stop], factor[start:stop, start:stop]
            errors = torch.empty_like(block)
            for j in range(stop - start):
                codes[places[start + j]], values = read.round(places[start + j], block[j])
                torch.div(block[j] - values, within[j, j], out=errors[j])
                block[j + 1 :].addr_(within[j, j + 1 :], errors[j], alpha=-1)
            left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        return codes

    def descend(self, codes: torch.Tensor, groups: Groups, sweeps: int) -> torch.Tensor:
        """Coordinate descent: each code in turn takes the value that is best, all others given."""
        read, codes = _Reader(self, groups), codes.clone()
        values = read.values(codes)
        for _ in range(sweeps):
            changed = 0
            for start in range(0, self.columns, BLOCK):
                stop = min(start + BLOCK, self.columns)
                within = self.second[start:stop, start:stop]
                pull = self.second[start:stop] @ (self.target - values)  # H (w - q) of the block's columns
                for j in range(stop - start):
                    old = values[start + j].clone()
                    codes[start + j], values[start + j] = read.round(start + j, old + pull[j] / within[j, j])
                    step = old - values[start + j]
                    count = int(step.count_nonzero())
                    if count:
                        pull.addr_(within[j], step)
                        changed += count
            if changed <= SETTLED * codes.numel():
                break
        return codes

    def refit(self, codes: torch.Tensor, groups: Groups) -> Groups:
        """The scales of each row that are best for its codes, as stored. A scale that would change its sign, or was 0, stays."""
        if self.scheme.scale_dtype == "nested":
            return refit_nested(self.grid.decode(codes).double(), self.target, self.second, groups, self.scheme)
        scales, zeros = groups.scale_values(), groups.zero_values()
        if self.scheme.double_quant or scales.shape[0] != self.rows:  # rows share what is stored: they can't be fitted one by one
            return groups
        steps = self.grid.decode(codes).double()  # [columns, rows]
        constant = None if zeros is None else zeros.double().T  # [groups, rows]
        whole = None
        if self.scheme.zeros == "whole" and constant is not None:  # the zero is a code: it moves with the scale
            whole = torch.where(scales == 0, 0.0, zeros.double() / scales.double())
            steps, constant = steps + whole.T[self.group_of], None
        current = scales.double().T[self.group_of] * steps
        error = self.target - current if constant is None else self.target - current - constant[self.group_of]
        fitted = _least_squares(steps, error, self.second, self.group_of, scales.double())
        return store_groups(fitted.float(), zeros if whole is None else (whole * fitted).float(), self.scheme)

    def polished(self, best: _Solution, rounds: int, sweeps: int) -> _Solution:
        """Refit and descend in turn, from the best solution: with nested scales, neither raises a row's cost."""
        for _ in range(rounds):
            groups = self.refit(best.codes, best.groups)
            best = best.improved(_Solution(self, groups, self.descend(best.codes, groups, max(1, sweeps))))
        return best

    def cost(self, codes: torch.Tensor, groups: Groups) -> torch.Tensor:
        """(w - q) H (w - q)^T of every row, float64 [rows]."""
        error = self.target - _Reader(self, groups).values(codes)
        return (error * (self.second @ error)).sum(0)


class _Reader:
    """Rounds to the codes of some groups, and reads codes as dequantizing does."""

    def __init__(self, problem: _Problem, groups: Groups):
        self._grid, self._group_of = problem.grid, problem.group_of
        scales, zeros = groups.scale_values(), groups.zero_values()
        self._scales = scales.expand(problem.rows, -1).T.contiguous()  # [groups, rows]
        self._inverses = torch.where(self._scales == 0, 0.0, 1 / self._scales)
        self._zeros = None if zeros is None else zeros.expand(problem.rows, -1).T.contiguous()

    def round(self, column: int, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest codes, uint8 [rows], of a column's weights, and the values they stand for, float64 [rows]."""
        group, steps = self._group_of[column], weights.float()
        if self._zeros is not None:
            steps = steps - self._zeros[group]
        codes = self._grid.encode(steps * self._inverses[group])
        return codes, self._value(codes, group)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """float64 [columns, rows]"""
        return torch.stack([self._value(codes[j], group) for j, group in enumerate(self._group_of)])

    def _value(self, codes: torch.Tensor, group: int) -> torch.Tensor:
        values = self._grid.decode(codes).mul_(self._scales[group])
        return (values if self._zeros is None else values.add_(self._zeros[group])).double()


@dataclass(frozen=True)
class _Solution:
    problem: _Problem
    groups: Groups
    codes: torch.Tensor  # uint8 [columns, rows]

    @cached_property
    def cost(self) -> torch.Tensor:
        """Of every row, float64 [rows]."""
        return self.problem.cost(self.codes, self.groups)

    def improved(self, other: _Solution) -> _Solution:
        """Row by row, the cheaper of the two."""
        is_better = other.cost < self.cost
        groups = self.groups if other.groups is self.groups else _rows_of_either(is_better, other.groups, self.groups)
        return _Solution(self.problem, groups, torch.where(is_better, other.codes, self.codes))


def _rows_of_either(is_first: torch.Tensor, first: Groups, second: Groups) -> Groups:
    """Row by row, the groups of the first where `is_first`, bool [rows], else of the second."""
    def choose(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
        return None if one is None else torch.where(is_first.unsqueeze(-1), one, other)

    scales = {name: choose(value, getattr(second.scales, name)) for name, value in vars(first.scales).items()}
    return Groups(type(first.scales)(**scales), choose(first.zeros, second.zeros), first.scheme)


def _least_squares(steps: torch.Tensor, error: torch.Tensor, second: torch.Tensor, group_of: list[int],
                   scales: torch.Tensor) -> torch.Tensor:
    """Scales [rows, groups] whose change takes most of `error`, float64 [columns, rows], off the sums steps * scale.

    One system of normal equations a row. A scale that would change its sign stays.
    """
    rows, count = scales.shape
    index = torch.tensor(group_of)
    normal, right = torch.empty(count, count, rows, dtype=torch.float64), torch.empty(count, rows, dtype=torch.float64)
    for group in range(count):
        spread = second[index == group].T @ steps[index == group]  # [columns, rows]: the group's steps as other columns feel them
        right[group] = (spread * error).sum(0)
        normal[group] = torch.zeros(count, rows, dtype=torch.float64).index_add_(0, index, spread * steps)
    normal = normal.permute(2, 0, 1)
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    floor = 1e-12 * diagonal.sum(-1, keepdim=True) + 1e-30  # for groups whose codes are all zero
    change = torch.linalg.solve(normal + torch.diag_embed(REFIT_DAMPING * diagonal + floor), right.T)
    better = scales + change
    return torch.where(better * scales > 0, better, scales)
