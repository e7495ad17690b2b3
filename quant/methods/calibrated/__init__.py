"""Calibrated: this project's own quantizer with the help of a text: error feedback, corrected targets and budgets of bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quant.methods import Look, Method, Preparation, Sizes, Tell
from quant.methods.calibrated.spec import Spec, properties, wants
from quant.model.recipe import Recipe
from quant.tensor.codebooks import LINEAR

if TYPE_CHECKING:
    from quant.model.inventory import Inventory
    from quant.model.selection import Selected


# Under a budget all weights but the norms take part, and scales of 8 bits, unless the row says otherwise.
UNDER_A_BUDGET = {"include": ["*"], "exclude": ["norm"], "scale_dtype": "int8"}


def _resolve(defaults: Mapping, row: Mapping) -> dict:
    is_mixed = any(row.get(key) is not None for key in ("budget", "size_mib", "allocation"))
    values = {**defaults, **(UNDER_A_BUDGET if is_mixed else {}), **row}
    if row.get("codebook", LINEAR) != LINEAR and "levels" not in row:
        values["levels"] = "narrow"  # a table has all its levels
    return Spec.from_dict(values).to_dict()


def _prepare(given: Preparation, out: Path) -> None:
    from quant.methods.calibrated.prepare import prepare

    prepare(given, out)


def _build(base: Path, prepared: Path, values: Mapping, out: Path, tell: Tell) -> None:
    from quant.methods.calibrated.build import build

    build(base, prepared, Spec.from_dict(values), out, tell)


def _sizes(inventory, folder: Path, values: Mapping) -> Sizes:
    from quant.methods.calibrated.sizes import sizes

    return sizes(inventory, Spec.from_dict(values))


def _recipe(values: Mapping) -> Recipe | None:
    spec = Spec.from_dict(values)
    return None if spec.is_mixed else spec.recipe


def _nominal_bits(values: Mapping) -> int | None:
    """None where parts have widths of their own, and their average is not given."""
    spec = Spec.from_dict(values)
    if spec.is_mixed:
        return None if spec.budget is None else round(spec.budget)
    return spec.recipe.scheme.bits


def _selected(inventory: Inventory, prepared: Path, values: Mapping) -> list[Selected]:
    from quant.calibration.prepared import read_moments
    from quant.methods.calibrated.allocate import allocation_of

    spec = Spec.from_dict(values)
    return allocation_of(spec, wants(values), inventory, prepared, read_moments(prepared)).weights


METHOD = Method(
    label="calibrated",
    resolve=_resolve,
    build=_build,
    sizes=_sizes,
    properties=properties,
    nominal_bits=_nominal_bits,
    prepare=_prepare,
    wants=wants,
    recipe=_recipe,
    selected=_selected,
    libraries=("numba", "llvmlite", "accelerate"),
    look=Look("#CC79A7", "P", "xx"),
    needs_code=True,
)
