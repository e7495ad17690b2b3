"""Which variants may be compared with which: read from params.yaml, so that a renamed or new recipe takes part."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

SELECTION = ("include", "exclude", "blocks")


def nominal_bits(name: str, params: Mapping) -> int | None:
    """Bits that a variant stores most of its codes in, by its parameters; None where nothing is quantized."""
    family, _, row = name.partition("-")
    if name in (params["recipes"] or {}):
        return recipe(name, params)["bits"]
    if family == "bnb":
        return 8 if params["bnb"][row]["type"] == "int8" else 4
    if family == "gguf" and (match := re.match(r"I?Q(\d)", params["gguf"][row]["type"])):
        return int(match[1])
    return None


def equal_but_for_the_grid(params: Mapping) -> list[list[str]]:
    """Recipes that quantize the same weights at the same width and group size, and differ in their grid alone."""
    return _groups(params, ("codebook",))


def equal_but_for_the_selection(params: Mapping) -> list[list[str]]:
    """Recipes of one scheme that differ in what they quantize."""
    return _groups(params, SELECTION)


def same_format(params: Mapping) -> list[tuple[str, str]]:
    """A recipe and a row of bitsandbytes that store the same: one grid, a scale per 64 weights, the blocks only."""
    told = {"include", "bits", "group_size", "symmetric", "codebook", "scale_dtype", "double_quant"}
    pairs = []
    for name, row in (params["recipes"] or {}).items():
        mine = recipe(name, params)
        if set(row or {}) <= told and mine["fit"] == "range" and mine["group_size"] == 64 and mine["scale_dtype"] == "float32" \
                and sorted(mine.get("include", ("attention", "mlp"))) == ["attention", "mlp"]:
            pairs += [(name, f"bnb-{other}") for other, theirs in (params["bnb"] or {}).items()
                      if (theirs["type"], theirs.get("double_quant", False)) == (mine["codebook"], mine["double_quant"])]
    return pairs


def recipe(name: str, params: Mapping) -> dict:
    """A recipe's row over the section quant."""
    return {**params["quant"], **(params["recipes"][name] or {})}


def _groups(params: Mapping, apart: tuple[str, ...]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in params["recipes"] or {}:
        same = {key: value for key, value in recipe(name, params).items() if key not in apart}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(name)
    return [names for names in groups.values() if len(names) > 1]
