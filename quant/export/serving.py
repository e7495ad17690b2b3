"""What the checkpoint formats of GPTQ and AWQ have in common: float16 scales, and one scheme for all layers of the blocks.

Both store a weight transposed, codes and zeros in 32-bit words and scales [groups, out], and restore (code - zero) * scale. A
symmetric code c of this project means c - 2^(bits-1), so its zero is 2^(bits-1); scales may be negative. With float16 scales the
product has at most 19 significant bits: in float32 it is exact, and equal to this project's for whole zeros too.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from quant.errors import InputError
from quant.export.linears import REMEDY, Linear, Stored, check_codes
from quant.tensor.packing import pack
from quant.tensor.scheme import Scheme

GROUP_SIZES = (16, 32, 64, 128)  # that both loaders of GPTQModel take, besides whole rows
NOTE = "note: serve it in float16 (vllm serve --dtype float16): another dtype rounds its scales"


def check_scheme(form: str, name: str, scheme: Scheme, columns: int, bits: tuple[int, ...]) -> None:
    """Raise InputError unless the scheme has codes and zeros of the format, float16 scales and a group size that loaders take."""
    check_codes(form, name, scheme, columns, bits)
    if scheme.scale_dtype != "float16":
        raise InputError(f"{name} is {scheme.label}, with scales of {scheme.scale_dtype}; {form} has scales of float16: "
                         "quantize it again with scale_dtype: float16")
    if isinstance(scheme.group_size, int) and scheme.group_size not in GROUP_SIZES:
        raise InputError(f"{name} is {scheme.label}; {form} is loaded with groups of {', '.join(map(str, GROUP_SIZES))} or whole "
                         "rows: quantize it again with such a group_size")


def check_multiple(form: str, name: str, what: str, count: int, divisor: int) -> None:
    """Raise InputError unless `count` codes fill whole words."""
    if count % divisor:
        raise InputError(f"{name} has {count} {what}; {form} packs {divisor} of them together: leave it in float with "
                         "exclude, or export as compressed-tensors")


def common_scheme(form: str, model: PreTrainedModel, linears: list[Linear]) -> tuple[int, int]:
    """The width and the group size (-1: whole rows) of all layers. Raises InputError if they differ, or for a quantized head."""
    head = model.get_output_embeddings()
    first = linears[0]
    label = first.parts[0].scheme.label
    for linear in linears:
        if model.get_submodule(linear.module) is head:
            raise InputError(f"{linear.module} is the model's head; {form} quantizes the layers of the blocks only: {REMEDY}")
        if linear.packing != first.packing:
            found = linear.parts[0].scheme.label
            raise InputError(f"{linear.module} is {found} and {first.module} {label}; {form} has one scheme for a model: "
                             "quantize it again with one, or export it as compressed-tensors")
    return first.packing.bits, first.packing.group_size or -1


def zeros_of(linear: Linear, stored: Stored) -> torch.Tensor:
    """The code that means 0 of each group: uint8 [groups, out]."""
    if stored.zeros is not None:
        return stored.zeros
    return torch.full((linear.groups, linear.shape[0]), 2 ** (linear.packing.bits - 1), dtype=torch.uint8)


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes [rows, n] -> int32 [rows, n * bits / 32], the first code in the lowest bits; n codes fill whole words."""
    return pack(codes, bits).contiguous().view(torch.int32)
