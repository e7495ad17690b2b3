"""Hooks: what goes into and comes out of the layers of one decoder block while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from quant.calibration.skeleton import Stop, run_block
from quant.model.inventory import Weight


def matrix_of(block: nn.Module, name: str, weight: Weight) -> torch.Tensor:
    """A weight of a block, [out, in] or [n]; a view that can be written to."""
    parameter = block.get_parameter(f"{name}.weight").data
    return parameter.T if weight.transposed else parameter


def linear_inputs(block: nn.Module, names: list[str], hidden: torch.Tensor, arguments: dict) -> dict[str, torch.Tensor]:
    """The inputs of some layers; layers that share an input have the same tensor."""
    seen: dict[str, torch.Tensor] = {}
    with watching(block, names, seen):
        run_block(block, hidden, arguments)
    return seen


def norm_before(block: nn.Module, names: tuple[str, ...], hidden: torch.Tensor,
                arguments: dict) -> tuple[str, torch.Tensor] | None:
    """The norm whose output these layers, and no others, read: its name, and a sample of its input. None where there is none."""
    outputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    readers: list[tuple[str, torch.Tensor]] = []
    hooks = []
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 1:
            hooks.append(module.register_forward_hook(
                lambda _, given, output, name=name: outputs.__setitem__(name, (given[0], output))))
        elif isinstance(weight, nn.Parameter):
            hooks.append(module.register_forward_pre_hook(lambda _, given, name=name: readers.append((name, given[0]))))
    try:
        run_block(block, hidden, arguments)
    finally:
        for hook in hooks:
            hook.remove()
    for name, (given, output) in outputs.items():
        if {reader for reader, value in readers if value is output} == set(names):
            return name, given
    return None


@contextmanager
def watching(block: nn.Module, names: list[str], seen: dict[str, torch.Tensor]) -> Iterator[None]:
    """Note the inputs of some layers."""
    hooks = [block.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0]))
             for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def outputs_of(block: nn.Module, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Note the outputs of some layers."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [block.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
             for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def silent(block: nn.Module, name: str) -> Iterator[None]:
    """Let a layer give zeros, without computing anything."""
    layer = block.get_submodule(name)
    width = getattr(layer, "out_features", None) or layer.nf  # GPT-2's Conv1D calls it nf
    layer.forward = lambda x: x.new_zeros(*x.shape[:-1], width)
    try:
        yield
    finally:
        del layer.forward


def input_of(block: nn.Module, name: str, hidden: torch.Tensor, arguments: dict) -> torch.Tensor:
    """The input of a layer; what follows it is not computed."""
    seen: list[torch.Tensor] = []

    def stop(_, given) -> None:
        seen.append(given[0])
        raise Stop

    hook = block.get_submodule(name).register_forward_pre_hook(stop)
    try:
        with suppress(Stop):
            run_block(block, hidden, arguments)
    finally:
        hook.remove()
    return seen[0]
