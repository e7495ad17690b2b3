"""From scratch: this project's own quantizer, controlled by a recipe; it uses no quantization library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from quant.methods import Look, Method, Sizes, Tell
from quant.model.recipe import Recipe
from quant.tensor.scheme import Scheme


def recipe_of(values: Mapping) -> Recipe:
    """The recipe of a resolved row."""
    return Recipe.from_dict(values, Scheme())


def _resolve(defaults: Mapping, row: Mapping) -> dict:
    return Recipe.from_dict(row, Scheme.from_dict(defaults)).to_dict()


def _build(base: Path, prepared: Path, values: Mapping, out: Path, tell: Tell) -> None:
    from quant.model.artifact import write_artifact

    write_artifact(base, recipe_of(values), out, {"method": "quant", "runtime": METHOD.runtime}, tell)


def _sizes(inventory, folder: Path, values: Mapping) -> Sizes:
    from quant.model.artifact import artifact_layout
    from quant.model.needs import memory_to_quantize
    from quant.model.selection import select

    weights = select(inventory, recipe_of(values))
    layout = artifact_layout(inventory, weights)
    stored = {weight.name: weight.stored for weight in inventory.weights}
    held = 0
    quantized = {f"{selected.name_of(part)}.weight" for selected in weights for part in selected.parts if part.scheme}
    for name, info in layout.items():
        is_stored_code = name.rpartition(".")[0] in quantized
        held += info.bytes if is_stored_code else 4 * math.prod(info.shape)  # a runner holds the rest in 32 bits
    return Sizes(sum(info.bytes for info in layout.values()), held, memory_to_quantize(stored, layout))


METHOD = Method(
    label="from scratch",
    resolve=_resolve,
    build=_build,
    sizes=_sizes,
    nominal_bits=lambda values: values["bits"],
    recipe=recipe_of,
    libraries=("numba", "llvmlite"),
    look=Look("#0072B2", "o"),
    needs_code=True,
)
