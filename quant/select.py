"""Show what a recipe does to every weight of a model, without doing it.

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
    """Module, role, shape, scheme, bytes before and bytes after of every part of every weight."""
    from quant.tensor.qtensor import layout

    for selected in selected_weights:
        weight = selected.weight
        for part in selected.parts:
            shape = selected.shape_of(part)
            before = after = math.prod(shape) * weight.stored.dtype.itemsize
            if part.scheme:
                after = sum(dtype.itemsize * math.prod(size) for dtype, size in layout(shape, part.scheme).values())
            role = "+".join((*part.roles, "head") if weight.tied_head else part.roles)
            label = part.scheme.label if part.scheme else "-"
            yield selected.name_of(part), role, "x".join(map(str, shape)), label, before, after


def recipe_named(text: str, params: dict):
    """The recipe of a variant's name, or of a recipe's text in braces."""
    from quant.methods import OWN
    from quant.variants import variant

    if text.startswith("{"):
        try:
            row = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"the recipe {text!r} is not YAML: {' '.join(str(error).split())}") from None
        planned = variant("recipe", {**params, "variants": {"recipe": {"method": OWN, **row}}})
    else:
        planned = variant(text, params)
    recipe = planned.method.recipe(planned.values)
    if recipe is None:
        raise InputError(f"{text}: {planned.method.label} chooses what it quantizes by itself; name a row with method: {OWN}")
    return recipe


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.select", description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a folder with config.json and safetensors")
    parser.add_argument("recipe", help="a variant of params.yaml, or a recipe in braces")
    given = parser.parse_args(arguments)
    recipe = recipe_named(given.recipe, parameters())
    from quant.model.checkpoint import Checkpoint  # here and above: so that --help and a wrong argument answer at once
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
