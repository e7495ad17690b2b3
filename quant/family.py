"""The recipes that the section `family` of params.yaml applies to other models than the base."""

from __future__ import annotations

from collections.abc import Mapping

from quant.errors import InputError
from quant.hub.family import Family
from quant.methods import FROM_SCRATCH
from quant.model.recipe import Recipe
from quant.variants import variant


def family_recipes(params: Mapping) -> dict[str, Recipe]:
    """The recipe of every row that `family.variants` names, in its order.

    Raises InputError for a wrong section, and for a name that is no row, or the row of another method than this project's own.
    """
    found = {}
    for name in Family.from_dict(params.get("family")).variants:
        try:
            row = variant(name, params)
        except InputError as error:
            raise InputError(f"family.variants names {name}: {error}") from None
        if row.method.name != FROM_SCRATCH:
            raise InputError(f"family.variants names {name}, a row of the method {row.method.name}; expected rows of the method "
                             f"{FROM_SCRATCH}, whose recipes fit any model")
        found[name] = row.method.recipe(row.values)
    return found
