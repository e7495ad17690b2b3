"""Show the scheme and size that a recipe gives every weight of a model, without quantizing anything.

    python -m quant.select models/base nf4                                     # a variant of params.yaml
    python -m quant.select models/base '{include: [attention], bits: 4}'       # or a recipe of your own
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import yaml

from quant.command import Parser, run
from quant.errors import InputError
from quant.pipeline import parameters


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


def recipe_named(text: str, params: dict):
    """The recipe of a variant, given by name, or a recipe given as YAML in braces."""
    from quant.methods import FROM_SCRATCH
    from quant.variants import variant

    if text.startswith("{"):
        try:
            row = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"the recipe {text!r} is not YAML: {' '.join(str(error).split())}") from None
        planned = variant("recipe", {**params, "variants": {"recipe": {"method": FROM_SCRATCH, **row}}})
    else:
        planned = variant(text, params)
    recipe = planned.method.recipe(planned.values)
    if recipe is None:
        raise InputError(f"{text}: {planned.method.label} has no recipe that chooses weights; name a row with "
                         f"method: {FROM_SCRATCH}")
    return recipe


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.select", description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a folder with config.json and safetensors")
    parser.add_argument("recipe", help="a variant of params.yaml, or a recipe in braces")
    given = parser.parse_args(arguments)
    recipe = recipe_named(given.recipe, parameters())
    from quant.model.checkpoint import Checkpoint  # a late import, so that --help and a wrong argument answer at once
    from quant.model.selection import select

    rows = list(rows_of_table(select(Checkpoint(given.model).inventory, recipe)))
    total = ("total", "", "", "", sum(row[4] for row in rows), sum(row[5] for row in rows))
    cells = [("module", "role", "shape", "scheme", "bytes before", "bytes after")]
    cells += [(*row[:4], f"{row[4]:,}", f"{row[5]:,}") for row in (*rows, total)]
    widths = [max(len(row[i]) for row in cells) for i in range(6)]
    for row in cells:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True))
        print(left + "  " + "  ".join(cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)))


if __name__ == "__main__":
    run(main)
