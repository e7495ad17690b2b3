"""bitsandbytes, through transformers: 8 bits (LLM.int8()) and 4 bits (FP4 or NF4, with or without double quantization)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from quant.config import one_of, properties_of
from quant.errors import Refused
from quant.methods import Look, Method, Sizes, Tell
from quant.methods.bitsandbytes.spec import BLOCK_SIZE, TYPES, Spec, obstacle, repacks_here
from quant.model.recipe import Recipe
from quant.tensor.scheme import Scheme


def _build(base: Path, prepared: Path, values: Mapping, out: Path, tell: Tell) -> None:
    from quant.methods.bitsandbytes.build import build

    build(base, Spec(**values), out)


def _sizes(inventory, folder: Path, values: Mapping) -> Sizes:
    spec, held = Spec(**values), 0
    reason = obstacle(spec, inventory)
    if reason:
        raise Refused(reason)
    for weight in inventory.weights:
        if not weight.is_block_matrix:
            held += 4 * weight.count
        elif spec.type == "int8":
            held += weight.count + 4 * weight.shape[0]
        else:
            scales = math.ceil(weight.count / BLOCK_SIZE)
            held += math.ceil(weight.count / 2) + 4 * 16  # codes, and the table of their 16 values
            if spec.double_quant:  # scales in bytes, float32 scales for every 256 of them, their table, and an offset
                held += scales + 4 * math.ceil(scales / 256) + 4 * 256 + 4
            else:
                held += 4 * scales
    return Sizes(held, held, build_bytes=4 * inventory.parameters + held)


def _recipe(values: Mapping) -> Recipe | None:
    """The recipe that stores the same numbers, for the 4-bit types; None for int8, which quantizes activations as well."""
    if values["type"] == "int8":
        return None
    return Recipe(Scheme(4, BLOCK_SIZE, codebook=values["type"], double_quant=values["double_quant"]))


METHOD = Method(
    label="bitsandbytes",
    resolve=lambda defaults, row: asdict(Spec.from_dict({**defaults, **row})),
    build=_build,
    sizes=_sizes,
    properties=lambda: properties_of(Spec, type=one_of(TYPES)),
    nominal_bits=lambda values: 8 if values["type"] == "int8" else 4,
    recipe=_recipe,
    here=lambda _: {"repacks 4-bit weights": repacks_here()},
    libraries=("bitsandbytes", "accelerate"),
    imports=("accelerate", "bitsandbytes"),
    look=Look("#E69F00", "^", "//"),
)
