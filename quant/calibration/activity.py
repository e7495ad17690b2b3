"""Mean squares of what goes into each matrix of a model, on a calibration text: what an importance matrix holds."""

from __future__ import annotations

from pathlib import Path

import torch

from quant.calibration.skeleton import open_float
from quant.model.inventory import Inventory
from quant.tensor.products import FastProducts

BATCH_TOKENS = 2048


@torch.no_grad()
@FastProducts()
def mean_squares(base: Path, inventory: Inventory, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every matrix by its weight's name: the mean square of each column's input, float32 [columns].

    A weight that the head shares with the embedding has the head's inputs; an embedding alone has none. tokens: windows, int64
    [windows, length].
    """
    model = open_float(base)
    names = {weight.module: weight.name for weight in inventory.weights if weight.is_block_matrix}
    head = inventory.architecture.head
    names[head] = inventory.head.name
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, given: torch.Tensor) -> None:
        found = given.flatten(0, -2).double().square().sum(0)
        sums[name] = sums[name] + found if name in sums else found

    hooks = [model.get_submodule(module).register_forward_pre_hook(lambda _, given, name=name: add(name, given[0]))
             for module, name in names.items()]
    try:
        for batch in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
            model(batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / tokens.numel()).float() for name, total in sums.items()}
