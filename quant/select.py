"""Show the scheme and size that a recipe gives every weight of a model, without quantizing anything.

    python -m quant.select models/base nf4                                     # a variant of params.yaml
    python -m quant.select models/base '{include: [attention], bits: 4}'       # or a recipe of your own
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from quant.command import Parser, run
from quant.errors import InputError
from quant.pipeline import PREPARED, parameters

if TYPE_CHECKING:
    from quant.model.inventory import Inventory
    from quant.model.selection import Selected
    from quant.variants import Variant


def rows_of_table(selected_weights: list) -> Iterator[tuple[str, str, str, str, int, int]]:
    """For every part of every weight: module, role, shape, scheme, bytes before and bytes after."""
    from quant.tensor.qtensor import layout

    for selected in selected_weights:
        weight = selected.weight
        if selected.classes:
            yield f"{weight.module}.classes", "row classes", str(len(selected.classes)), "-", 0, len(selected.classes)
        for part in selected.parts:
            shape = selected.shape_of(part)
            before = after = math.prod(shape) * weight.stored.dtype.itemsize
            if part.scheme:
                after = sum(dtype.itemsize * math.prod(size) for dtype, size in layout(shape, part.scheme).values())
            role = "+".join((*part.roles, "head") if weight.tied_head else part.roles)
            label = part.scheme.label if part.scheme else "-"
            yield selected.name_of(part), role, "x".join(map(str, shape)), label, before, after


def row_named(text: str, params: dict) -> Variant:
    """The row of a variant, given by name, or of a recipe given as YAML in braces."""
    from quant.methods import FROM_SCRATCH
    from quant.variants import variant

    if not text.startswith("{"):
        return variant(text, params)
    try:
        row = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the recipe {text!r} is not YAML: {' '.join(str(error).split())}") from None
    return variant("recipe", {**params, "variants": {"recipe": {"method": FROM_SCRATCH, **row}}})


def weights_of(row: Variant, inventory: Inventory) -> list[Selected]:
    """The weights with their schemes, by the row's recipe or as its method chooses. Raises InputError where both are lacking."""
    from quant.methods import FROM_SCRATCH
    from quant.model.selection import select

    recipe, method = row.method.recipe(row.values), row.method
    if recipe is None and method.selected is None:
        raise InputError(f"{row.name}: {method.label} has no recipe that chooses weights; name a row with method: {FROM_SCRATCH}")
    if recipe is None:
        return method.selected(inventory, PREPARED / method.name, row.values)
    return select(inventory, recipe)


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.select", description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a folder with config.json and safetensors")
    parser.add_argument("recipe", help="a variant of params.yaml, or a recipe in braces")
    given = parser.parse_args(arguments)
    row = row_named(given.recipe, parameters())
    from quant.model.checkpoint import Checkpoint  # a late import, so that --help and a wrong argument answer at once

    rows = list(rows_of_table(weights_of(row, Checkpoint(given.model).inventory)))
    total = ("total", "", "", "", sum(row[4] for row in rows), sum(row[5] for row in rows))
    cells = [("module", "role", "shape", "scheme", "bytes before", "bytes after")]
    cells += [(*row[:4], f"{row[4]:,}", f"{row[5]:,}") for row in (*rows, total)]
    widths = [max(len(row[i]) for row in cells) for i in range(6)]
    for row in cells:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True))
        print(left + "  " + "  ".join(cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)))


if __name__ == "__main__":
    run(main)
