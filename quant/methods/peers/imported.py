"""Takes over what a package made: its codes, scales and zeros as this project stores them, checked against its own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from quant.errors import Refused
from quant.model.selection import Part, Selected
from quant.tensor.groups import store_groups
from quant.tensor.qtensor import QTensor, assemble, dequantize
from quant.tensor.scheme import Scheme

HALF = 2**-11  # the largest relative error of a number rounded to float16


def as_asked(weights: Sequence[Selected], quantized: Mapping[str, int], tied: bool | None,
             was_tied: bool) -> tuple[list[Selected], list[str]]:
    """The weights with the schemes that they really got, and what differs from what was asked, each in a phrase.

    quantized: the group of each quantized module. tied: whether embedding and head still share their weight, where known.
    """
    found, skipped, regrouped = [], [], {}
    for selected in weights:
        if not selected.is_quantized:
            found.append(selected)
            continue
        name, columns, scheme = selected.weight.module, selected.weight.shape[-1], selected.parts[0].scheme
        if name not in quantized:
            skipped.append(name)
            scheme = None
        elif quantized[name] != scheme.columns_per_group(columns):
            regrouped[name] = quantized[name]
            scheme = replace(scheme, group_size="row" if quantized[name] == columns else quantized[name])
        roles = selected.weight.roles
        ranges = tuple(span for part in selected.parts for span in part.ranges)
        found.append(replace(selected, parts=(Part(roles, ranges, scheme),)))
    notes = []
    if skipped:
        asked = sum(selected.is_quantized for selected in weights)
        notes.append(f"{len(skipped)} of {asked} matrices were not quantized, such as {skipped[0]}")
    if regrouped:
        sizes = ", ".join(map(str, sorted(set(regrouped.values()))))
        notes.append(f"{len(regrouped)} matrices have groups of {sizes} weights, not as asked, such as {next(iter(regrouped))}")
    if was_tied and tied is False:
        notes.append("embedding and head were untied")
    return found, notes


def qtensor_of(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, weight: torch.Tensor,
               shape: tuple[int, ...], scheme: Scheme) -> QTensor:
    """The package's matrix as this project stores it.

    codes: uint8 [out, in]. scales, zeros: float32 [out, groups], zeros as codes (of the value 0). weight: as the package restores
    it, float32 [out, in]. Raises InputError where the two differ by more than rounding scales and zeros to float16 explains.
    """
    if scheme.symmetric and zeros is not None:
        raise Refused("the package stores zeros of a symmetric grid that are not in its middle; ask for symmetric: false")
    middle = torch.full_like(scales, 2 ** (scheme.bits - 1)) if zeros is None else zeros
    tensor = assemble(codes, store_groups(scales, None if scheme.symmetric else -middle * scales, scheme), shape, scheme)
    error = (dequantize(tensor) - weight).abs().reshape(len(scales), scales.shape[1], -1).amax(-1)
    # of code * scale and of the zero, each rounded once, and twice that for products in another order
    allowed = 2 * HALF * scales.abs() * (2**scheme.bits + middle.abs()) + 2**-24 * 2**scheme.bits
    if (error > allowed).any():
        worst = float((error / scales.abs().clamp_min(1e-30)).max())
        raise Refused(f"codes and scales give other weights than the package restores, by up to {worst:.3g} steps; its "
                      "version may store them in another way")
    return tensor
