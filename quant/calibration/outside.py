"""Quantizes the weights outside the decoder blocks, before the blocks, so that these make up for its error."""

from __future__ import annotations

import torch

from quant.calibration.saved import Saved
from quant.calibration.solver import Curvature, Solver
from quant.calibration.vocabulary import VocabularyMoments
from quant.errors import InputError
from quant.model.checkpoint import Checkpoint
from quant.model.inventory import Inventory, Weight
from quant.model.selection import Selected
from quant.tensor.qtensor import quantize

NAME = "outside"


def is_of_vocabulary(weight: Weight, inventory: Inventory) -> bool:
    """Whether a weight is the embedding of tokens, or the head, and so has moments (quant.calibration.vocabulary)."""
    architecture = inventory.architecture
    return weight.name in (f"{architecture.main_embedding}.weight", f"{architecture.head}.weight")


def quantize_outside(checkpoint: Checkpoint, weights: list[Selected], moments: VocabularyMoments | None, solver: Solver,
                     saved: Saved) -> None:
    """Quantize every chosen weight outside the blocks: embedding and head by their moments, others, such as positions,
    by `quantize`.

    moments: needed if the embedding or the head is chosen.
    """
    if saved.has(NAME):
        return
    for selected in weights:
        weight = selected.weight
        if weight.block is not None or not selected.is_quantized:
            continue
        value = checkpoint.read(weight.tensor).float()
        value = value.T if weight.transposed else value
        second = moments.of(weight)[0] if is_of_vocabulary(weight, checkpoint.inventory) else None
        curvature = None if second is None else Curvature(second)
        for part in selected.parts:
            if part.scheme is None:
                continue
            rows = value[selected.index_of(part)]
            try:
                tensor = quantize(rows, part.scheme) if curvature is None else solver.solve(rows, curvature, part.scheme)
            except InputError as error:
                raise error.within(selected.name_of(part)) from None
            saved.put(selected, part, tensor)
    saved.finish(NAME)


def rows_in_classes(importance: torch.Tensor, count: int) -> torch.Tensor:
    """Divide rows into `count` classes of equal size by importance, the most important in class 0: int64 [rows]."""
    classes = torch.empty(len(importance), dtype=torch.long)
    order = importance.argsort(descending=True, stable=True)
    classes[order] = torch.arange(len(importance)) * count // len(importance)
    return classes
