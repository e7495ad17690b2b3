"""Predicts from shapes which type llama.cpp gives each weight, and its bytes.

Follows llama.cpp's src/llama-quant.cpp for the usual types. In the mixed ones (Q2_K and the _S, _M and _L of K-quants) some
matrices get a larger type, a few of them in some layers only, so sizes are right to a few per cent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quant.errors import Refused
from quant.gguf.quantizer import type_number
from quant.methods import Sizes
from quant.model.inventory import Inventory, Weight
from quant.tensor.scheme import K_TYPES, SUPERBLOCK

PLAIN = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # where rows don't fit the block
MIXES = {  # of a file type: the types of v (also where it is fused with q and k), o and down, equally likely
    "Q2_K": {"v": ("Q3_K",), "o": ("Q3_K",), "down": ("Q3_K",)},
    "Q3_K_M": {"v": ("Q4_K",), "o": ("Q4_K",), "down": ("Q4_K",)},
    "Q3_K_L": {"v": ("Q5_K",), "o": ("Q5_K",), "down": ("Q5_K",)},
    "Q4_K_M": {"v": ("Q4_K", "Q6_K"), "down": ("Q4_K", "Q6_K")},
    "Q5_K_M": {"v": ("Q5_K", "Q6_K"), "down": ("Q5_K", "Q6_K")},
}
NEED_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S")  # an importance matrix
MAY_NEED_IMATRIX = ("IQ3_XXS", "IQ3_XS")  # for some models only, by the types that llama.cpp mixes in
NOT_WRITTEN = ("NVFP4",)  # read by llama.cpp, but not made by its quantizer


def main_type(file_type: str) -> str | None:
    """The type of most matrices in a file of a type: Q4_K_M -> Q4_K; None for a type that is not predicted here."""
    name = file_type.removesuffix("_S").removesuffix("_M").removesuffix("_L") if "_K_" in file_type else file_type
    return name if name in (*PLAIN, *K_TYPES) else None


def fitting(kind: str, row: int) -> str:
    """The type of a matrix with rows of `row` weights: `kind`, or llama.cpp's fallback where the block does not fit."""
    if kind in K_TYPES and row % SUPERBLOCK:
        kind = FALLBACKS[kind]
    return "F16" if kind.startswith("Q") and row % 32 else kind


def types_of(file_type: str, roles: Sequence[str], shape: Sequence[int], is_output: bool) -> list[str]:
    """The types a weight may get, equally likely: two where layers differ. shape: [out, in]. is_output: makes the logits."""
    if len(shape) < 2:
        return ["F32"]
    kind, row = main_type(file_type), shape[-1]
    if kind.startswith("Q") and kind != "Q8_0" and is_output:
        return [fitting("Q6_K", row)]
    mixed = next((kinds for role, kinds in MIXES.get(file_type, {}).items() if role in roles), (kind,))
    return [fitting(kind, row) for kind in mixed]


def stored_bytes(kind: str, shape: Sequence[int]) -> float:
    """Bytes of a weight in a type of GGML."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return math.prod(shape) / block * size


def sizes(inventory: Inventory, file_type: str | None, has_imatrix: bool = False, budget: float | None = None) -> Sizes:
    """Predicted bytes of a file of this type. Weights are held in memory as stored; building reads the converted file.

    The sizes are None for a type whose layout is not predicted here. Raises InputError for a type that llama.cpp can't make.
    """
    converted = inventory.stored_bytes
    if file_type is None:
        held = budget * inventory.parameters / 8
        return Sizes(held, held, build_bytes=2 * converted, note="types chosen within the budget", prepared_bytes=converted)
    matrices = [weight for weight in inventory.weights if weight.is_block_matrix]
    _require_writable(file_type, has_imatrix)
    main = main_type(file_type)
    if main is None:
        needs = file_type in MAY_NEED_IMATRIX and not has_imatrix
        note = "size not known" + ("; some models need imatrix: true" if needs else "")
        return Sizes(None, None, build_bytes=converted, note=note, prepared_bytes=converted)
    total, unfit = 0.0, {}
    for weight in inventory.weights:
        kinds = _types(inventory, weight, file_type)
        total += sum(stored_bytes(kind, weight.shape) for kind in kinds) / len(kinds)
    for weight in matrices:
        row = weight.shape[-1]
        if fitting(main, row) != main:
            unfit.setdefault((row, fitting(main, row)), []).append(weight)
    note = "; ".join(f"{len(found)} of {len(matrices)} matrices have rows of {row}, which its blocks don't divide: {kind} instead"
                     for (row, kind), found in unfit.items())
    return Sizes(total, total, build_bytes=converted, note=note or None, prepared_bytes=converted)


def _require_writable(file_type: str, has_imatrix: bool) -> None:
    """Raise Refused for a type that llama.cpp does not know or can't make here, of any model."""
    type_number(file_type)
    if file_type in NOT_WRITTEN:
        raise Refused(f"llama.cpp reads type {file_type} but does not write it; choose another type")
    if file_type in NEED_IMATRIX and not has_imatrix:
        raise Refused(f"type {file_type} needs an importance matrix; set imatrix: true in its row, or choose another type")


def _types(inventory: Inventory, weight: Weight, file_type: str) -> list[str]:
    is_position = weight.roles == ("embedding",) and weight.module != inventory.architecture.main_embedding
    if is_position or weight.is_bias or weight.roles in (("norm",), ("other",)):
        return ["F32"]
    return types_of(file_type, weight.roles, weight.shape, is_output=weight is inventory.head)
