"""What a calibrated pass computes of one batch of windows: any machine can do it, and again, from the block and its share of the
hidden states. So what chooses how it multiplies is here, not around it, where another machine would not see it."""

from __future__ import annotations

import torch
from torch import nn

from quant.calibration.hooks import input_of, silent, watching
from quant.calibration.moments import Products
from quant.calibration.skeleton import run_block
from quant.tensor.products import FastProducts


@torch.no_grad()
def run_watched(block: nn.Module, names: list[str], piece: tuple) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The hidden states that leave a block, and the inputs of some of its layers. piece: the block's hidden states and
    arguments."""
    hidden, arguments = piece
    seen: dict[str, torch.Tensor] = {}
    with watching(block, names, seen):
        after = run_block(block, hidden, arguments)
    return after, [seen[name] for name in names]


@torch.no_grad()
@FastProducts()
def products_within(block: nn.Module, name: str, weight: torch.Tensor | None, piece: tuple) -> Products:
    """Of a layer within the quantized block. weight: of the float layer, where its output is added to the residual stream.

    piece: the layer's inputs in the float block, what enters the float block, if there is a weight, and the quantized one, and
    the arguments.
    """
    floats_in, *floats, quantized, arguments = piece
    given = input_of(block, name, quantized, arguments).view_as(floats_in)
    lack = floats_in - given
    if weight is not None:
        lack = lack @ weight.T + (floats[0] - quantized)
    return Products.of(given.flatten(0, -2), lack.flatten(0, -2))


@torch.no_grad()
@FastProducts()
def products_at_end(block: nn.Module, name: str, piece: tuple) -> tuple[torch.Tensor, torch.Tensor, Products]:
    """Of the last layer of the quantized block, whose output is added to the residual stream: its inputs, what the block gives
    without it, and the products.

    piece: what leaves the float block, what enters the quantized one, and the arguments.
    """
    floats_after, quantized, arguments = piece
    seen: dict[str, torch.Tensor] = {}
    with watching(block, [name], seen), silent(block, name):
        without = run_block(block, quantized, arguments)
    given = seen[name].view(*without.shape[:-1], -1)
    lack = floats_after - (without + block.get_submodule(name)(given).view_as(without))
    return given, without, Products.of(given.flatten(0, -2), lack.flatten(0, -2))
