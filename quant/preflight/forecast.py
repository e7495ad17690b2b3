"""Predicts the size of each variant, and whether it can be made, from the inventory of the model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.errors import InputError
from quant.methods import Method, Sizes
from quant.model.inventory import Inventory
from quant.variants import BASE, base, rows, variant


@dataclass(frozen=True)
class Forecast:
    """A variant with its predicted sizes, or with the reason why it can't be made (obstacle)."""

    name: str
    method: Method | None
    sizes: Sizes | None = None
    obstacle: str | None = None


def forecasts(inventory: Inventory, folder: Path, params: Mapping) -> list[Forecast]:
    """The base and every variant of params.yaml, in order. folder: holds the model's config and tokenizer.

    An invalid row becomes its own obstacle; the others are still predicted.
    """
    original = base()
    found = [Forecast(BASE, original.method, original.method.sizes(inventory, folder, original.values))]
    for name in rows(params):
        planned = None
        try:
            planned = variant(name, params)
            found.append(Forecast(name, planned.method, planned.method.sizes(inventory, folder, planned.values)))
        except InputError as error:
            method = planned.method if planned else None
            found.append(Forecast(name, method, obstacle=str(error).removeprefix(f"variants.{name}: ")))
    return found
