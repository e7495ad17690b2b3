"""From scratch: this project's own quantizer, controlled by a recipe; it uses no quantization library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quant.methods import Look, Method, Sizes, Tell
from quant.model import recipe
from quant.model.recipe import Recipe
from quant.tensor import scheme
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
    from quant.model.selection import select

    return sizes_of(inventory, select(inventory, recipe_of(values)))


def sizes_of(inventory, weights: list) -> Sizes:
    """Predicted bytes of an artifact with these selected weights."""
    from quant.model.artifact import artifact_layout
    from quant.model.needs import held_bytes, memory_to_quantize

    layout = artifact_layout(inventory, weights)
    stored = {weight.name: weight.stored for weight in inventory.weights}
    file_bytes = sum(info.bytes for info in layout.values())
    return Sizes(file_bytes, held_bytes(layout, weights), memory_to_quantize(stored, layout, weights))


METHOD = Method(
    label="from scratch",
    resolve=_resolve,
    build=_build,
    sizes=_sizes,
    properties=recipe.properties,
    defaults=scheme.properties,
    nominal_bits=lambda values: values["bits"],
    recipe=recipe_of,
    libraries=("numba", "llvmlite"),
    look=Look("#0072B2", "o"),
    needs_code=True,
)
