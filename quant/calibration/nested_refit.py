"""Refits nested scales and lowest values (quant.tensor.nested_scales) to given codes, one superblock after the other.

In a superblock, the scales and lowest values of its groups that are best for its codes solve one least-squares problem a row,
in which every other weight of the row counts as it now is. They are rounded to what can be stored, and taken for the rows whose
cost falls so; the error that rounding leaves is met by the superblocks that follow. So no row's cost ever rises.
"""

from __future__ import annotations

import torch

from quant.tensor.groups import Groups, store_groups
from quant.tensor.scheme import SUPERBLOCK, Scheme

DAMPING = 1e-3  # relative to each diagonal element of the normal equations


def refit_nested(steps: torch.Tensor, target: torch.Tensor, second: torch.Tensor, groups: Groups, scheme: Scheme) -> Groups:
    """The groups with better scales, as stored.

    steps: the values of the codes before scaling, float64 [columns, rows]. target: the weights, in that shape. second: H,
    float64 [columns, columns].
    """
    size, per = scheme.group_size, SUPERBLOCK // scheme.group_size
    scales, zeros = groups.scale_values().double(), groups.zero_values()
    zeros = None if zeros is None else zeros.double()
    basis = torch.zeros(SUPERBLOCK, per, dtype=torch.float64)
    basis[torch.arange(SUPERBLOCK), torch.arange(SUPERBLOCK) // size] = 1  # which group a column is in

    def values(start: int, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        found = steps[start : start + SUPERBLOCK] * (basis @ scale.T)
        return found if zero is None else found + basis @ zero.T

    blocks = [slice(i * per, (i + 1) * per) for i in range(len(target) // SUPERBLOCK)]
    error = target - torch.cat([values(i * SUPERBLOCK, scales[:, block], None if zeros is None else zeros[:, block])
                                for i, block in enumerate(blocks)])
    for i, block in enumerate(blocks):
        columns = slice(i * SUPERBLOCK, (i + 1) * SUPERBLOCK)
        own = second[columns, columns]
        normal, right = _equations(steps[columns], second[columns] @ error, own, basis, has_zeros=zeros is not None)
        change = torch.linalg.solve(normal + torch.diag_embed(DAMPING * normal.diagonal(dim1=-2, dim2=-1) + 1e-30), right)
        before = scales[:, block] if zeros is None else torch.cat([scales[:, block], zeros[:, block]], 1)
        after = before + change
        after[:, :per] = torch.where(after[:, :per] * before[:, :per] > 0, after[:, :per], before[:, :per])
        stored = store_groups(after[:, :per].float(), None if zeros is None else after[:, per:].float(), scheme)
        scale = stored.scale_values().double()
        zero = None if zeros is None else stored.zero_values().double()
        moved = torch.cat([scale] if zero is None else [scale, zero], 1) - before
        gain = 2 * (moved * right).sum(1) - (moved.unsqueeze(1) @ normal @ moved.unsqueeze(2)).flatten()
        better = (gain > 0).unsqueeze(1)
        scales[:, block] = torch.where(better, scale, scales[:, block])
        if zeros is not None:
            zeros[:, block] = torch.where(better, zero, zeros[:, block])
        error[columns] = target[columns] - values(i * SUPERBLOCK, scales[:, block], None if zeros is None else zeros[:, block])
    return store_groups(scales.float(), None if zeros is None else zeros.float(), scheme)


def _equations(steps: torch.Tensor, pull: torch.Tensor, own: torch.Tensor, basis: torch.Tensor,
               has_zeros: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal equations of a superblock's scales, and of its lowest values after them: float64 [rows, n, n] and [rows, n].

    steps, pull (H times the error): [256, rows]; own: the superblock's part of H; basis: [256, groups].
    """
    per, rows = basis.shape[1], steps.shape[1]
    count = 2 * per if has_zeros else per
    normal, right = torch.empty(rows, count, count, dtype=torch.float64), torch.empty(rows, count, dtype=torch.float64)
    right[:, :per] = (basis.T @ (steps * pull)).T
    for group in range(per):
        members = basis[:, group] > 0
        felt = own[:, members] @ steps[members]  # the group's steps as every column feels them
        normal[:, :per, group] = (basis.T @ (steps * felt)).T
        if has_zeros:
            normal[:, per:, group] = (basis.T @ felt).T
            normal[:, group, per:] = normal[:, per:, group]
    if has_zeros:
        right[:, per:] = (basis.T @ pull).T
        normal[:, per:, per:] = basis.T @ own @ basis
    return normal, right
