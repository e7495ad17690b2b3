"""Weights of other schemes as blocks of ggml, where these hold exactly the same values: codes are rearranged, never recomputed.

A code of equal steps stands for a whole number of steps. Q4_0, Q5_0 and Q8_0 hold -8 to 7, -16 to 15 and -128 to 127 steps of a
float16 scale per 32 weights; Q4_1 and Q5_1 hold 0 to 15 and 0 to 31 above a float16 value. So every scheme of equal steps fits
one of them whose groups are whole blocks, or the whole row, if its scales and real zeros are float16 numbers: a larger group's
scale is written once a block, and a whole zero is a shift of the steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from quant.errors import InputError
from quant.tensor.ggml import BLOCK, scheme_of, type_of
from quant.tensor.ggml_blocks import to_bytes
from quant.tensor.groups import store_groups
from quant.tensor.packing import unpack
from quant.tensor.qtensor import QTensor, assemble
from quant.tensor.scheme import GGML_TYPES, Scheme

SYMMETRIC = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}  # steps, from the smallest type
LIFTED = {"Q4_1": (0, 15), "Q5_1": (0, 31)}


def fitting_type(scheme: Scheme, columns: int) -> str:
    """The smallest type that holds all codes of a scheme, in rows of so many weights. Raises InputError, which says what fits,
    where there is none."""
    own = type_of(scheme)
    if own is not None:
        return own
    if not scheme.is_linear:
        raise InputError(f"{scheme.label} is a table of values, and ggml's blocks have equal steps; expected codebook: linear")
    size = scheme.columns_per_group(columns)
    if columns % BLOCK or size % BLOCK:
        raise InputError(f"{scheme.label} has groups of {size} in rows of {columns}; ggml's blocks are {BLOCK} weights of a row: "
                         f"expected a group_size that is a multiple of {BLOCK}, or row")
    if scheme.zeros == "real" and not scheme.symmetric:
        if scheme.bits > 5:
            raise InputError(f"{scheme.label} has a real zero; ggml's blocks have one at 5 bits and fewer (Q4_1, Q5_1): expected "
                             "symmetric: true")
        return "Q4_1" if scheme.bits <= 4 else "Q5_1"
    low, high = _steps(scheme)
    fitting = [name for name, (lowest, highest) in SYMMETRIC.items() if lowest <= low and high <= highest]
    if not fitting:
        raise InputError(f"{scheme.label} has {low} to {high} steps, ggml's Q8_0 -128 to 127; expected symmetric: true")
    return fitting[0]


def as_type(tensor: QTensor, kind: str) -> torch.Tensor:
    """The blocks of a type, uint8 [rows, bytes of a row], with the values of the weight. kind: `fitting_type`, or a larger type.

    Raises InputError for a scale or a zero that is not a float16 number.
    """
    scheme, (rows, columns) = tensor.scheme, tensor.shape
    if type_of(scheme) == kind:
        return to_bytes(tensor)
    groups, steps = tensor.groups, unpack(tensor.codes, scheme.bits, columns).int()
    zeros = groups.zero_values()
    if scheme.symmetric:
        steps = steps - 2 ** (scheme.bits - 1)
    elif scheme.zeros == "whole":
        whole = unpack(tensor.zeros, scheme.bits, groups.scale_values().shape[1]).int()
        steps, zeros = steps - whole.repeat_interleave(scheme.columns_per_group(columns), 1), None
    numbers = [_per_block(values, rows, columns, scheme) for values in (groups.scale_values(), zeros)]
    target = replace(scheme_of(kind), fit="mse", levels="full" if GGML_TYPES[kind][1] else "narrow")
    codes = (steps + (2 ** (target.bits - 1) if target.symmetric else 0)).to(torch.uint8)
    return to_bytes(assemble(codes, store_groups(*numbers, target), tensor.shape, target))


def _steps(scheme: Scheme) -> tuple[int, int]:
    """The lowest and the highest number of steps that a code can stand for."""
    if scheme.symmetric:
        middle = 2 ** (scheme.bits - 1)
        return -middle, middle - 1
    highest = 2**scheme.bits - 1
    return -highest, highest


def _per_block(values: torch.Tensor | None, rows: int, columns: int, scheme: Scheme) -> torch.Tensor | None:
    """Scales or zeros [rows, groups] for each block, float32 [rows, blocks]. Raises InputError for one that float16 rounds."""
    if values is None:
        return None
    if not torch.equal(values.half().float(), values):
        count = int((values.half().float() != values).sum())
        raise InputError(f"{count} of {values.numel()} scales or zeros of {scheme.label} are not float16 numbers, as ggml's "
                         "blocks hold them; quantize it again with scale_dtype: float16")
    size = scheme.columns_per_group(columns)
    return values.expand(rows, -1).repeat_interleave(size // BLOCK, 1)
