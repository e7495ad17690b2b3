"""Predicts the bytes of a calibrated variant, and the memory that calibration takes."""

from __future__ import annotations

import math

from quant.calibration.budget import Choice, allocate
from quant.calibration.outside import is_of_vocabulary
from quant.calibration.sequential import BATCH_TOKENS
from quant.methods import Sizes
from quant.methods.calibrated.spec import Spec
from quant.model.artifact import artifact_layout
from quant.model.inventory import Inventory
from quant.model.needs import held_bytes
from quant.model.selection import Selected, select
from quant.tensor.qtensor import layout
from quant.tensor.scheme import Scheme

FLOAT64_MATRICES = 8  # of the widest layer's inputs that the solver holds at once
STREAMS = 2  # of hidden states, of the float and of the quantized model, on the way into a block and out of it
ASSUMED_TOKENS = 2**15  # of the calibration text, as by default


def sizes(inventory: Inventory, spec: Spec) -> Sizes:
    """Sizes of the variant; under a budget those of the budget, which is met to within the size of one part's next step."""
    weights = select(inventory, spec.recipe)
    quantized = [selected for selected in weights if selected.is_quantized]
    memory, prepared = _memory(inventory, quantized), _prepared_bytes(inventory, quantized)
    if spec.is_mixed:
        total, chosen = _mixed_bytes(inventory, spec), {selected.weight.name for selected in quantized}
        widened = sum(4 * weight.count - weight.stored.bytes for weight in inventory.weights if weight.name not in chosen)
        note = "its parts are chosen while it is made"  # what stays unquantized, a runner holds in 32 bits
        return Sizes(total, total + widened, memory, note, prepared)
    stored = artifact_layout(inventory, weights)
    return Sizes(sum(info.bytes for info in stored.values()), held_bytes(stored, weights), memory, prepared_bytes=prepared)


def _prepared_bytes(inventory: Inventory, weights: list[Selected]) -> int:
    """The windows of the calibration text, and the moments of the vocabulary if its weights are quantized."""
    rows, width = inventory.head.shape
    is_needed = any(is_of_vocabulary(selected.weight, inventory) for selected in weights)
    return 4 * ASSUMED_TOKENS + (16 * (width**2 + rows) if is_needed else 0)


def _mixed_bytes(inventory: Inventory, spec: Spec) -> float:
    """Bytes under the budget. Raises InputError where the smallest candidates exceed it."""
    if spec.allocation is not None:
        return float(inventory.stored_bytes)
    weights = [selected for selected in select(inventory, spec.recipe) if selected.is_quantized]
    allowed = spec.bits_allowed(inventory.parameters)
    parts = [(selected, part) for selected in weights for part in selected.parts if part.scheme]
    replaced = sum(selected.weight.stored.dtype.itemsize * math.prod(selected.shape_of(part)) for selected, part in parts)
    fixed = 8 * (inventory.stored_bytes - replaced)
    if spec.classes > 1:
        fixed += sum(8 * selected.weight.shape[0] for selected in weights if is_of_vocabulary(selected.weight, inventory))
    choices = {selected.name_of(part): [Choice(str(i), _bits(selected.shape_of(part), scheme), 0.0)
                                        for i, scheme in enumerate(spec.schemes)] for selected, part in parts}
    allocate(choices, allowed - fixed)
    return allowed / 8


def _bits(shape: tuple[int, ...], scheme: Scheme) -> int:
    return sum(8 * dtype.itemsize * math.prod(size) for dtype, size in layout(shape, scheme).values())


def _memory(inventory: Inventory, weights: list[Selected]) -> float:
    """Peak bytes: one block twice, its moments, and the hidden states of the calibration text."""
    blocks: dict[int, int] = {}
    for weight in inventory.weights:
        if weight.block is not None:
            blocks[weight.block] = blocks.get(weight.block, 0) + weight.count
    columns = max((selected.weight.shape[-1] for selected in weights), default=0)
    width = inventory.head.shape[-1]
    outside = sum(weight.count for weight in inventory.weights if weight.block is None)
    inputs = 4 * ASSUMED_TOKENS * (3 * width + columns)
    return (4 * (2 * max(blocks.values(), default=0) + outside) + 8 * FLOAT64_MATRICES * columns**2
            + 4 * 2 * STREAMS * width * ASSUMED_TOKENS + inputs + 4 * BATCH_TOKENS * columns)
