"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, the plain block types of ggml: how they choose and store a block's range.

A block is 32 weights of a row with a float16 scale (and, in the _1 types, a float16 lowest value). The rule differs from this
project's own in three points: codes are computed with the scale before it is rounded to float16; the symmetric 4- and 5-bit
types use all codes, by mapping the weight of largest magnitude, sign included, onto the lowest; halves are rounded differently
(quant.tensor.grids). K-quants have this project's own rules (fit range or mse) and nested scales (quant.tensor.nested_scales).
The bytes of a block: quant.tensor.ggml_blocks. Reference: ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

import torch

from quant.tensor.grids import Grid
from quant.tensor.scheme import GGML_TYPES, K_TYPES, Scheme

BLOCK = 32  # weights of a row that share a scale


def scheme_of(name: str, fit: str = "ggml") -> Scheme:
    """The scheme of a type such as "Q4_0", whose ranges are chosen by a fit; of a K-quant, "Q4_K", this can't be ggml."""
    if name in K_TYPES:
        bits, size, symmetric = K_TYPES[name]
        fit = "mse" if fit == "ggml" else fit
        return Scheme(bits, size, symmetric, scale_dtype="nested", fit=fit, levels="full" if symmetric else "narrow")
    bits, symmetric = GGML_TYPES[name]
    levels = "full" if symmetric and fit != "ggml" else "narrow"
    return Scheme(bits, BLOCK, symmetric, scale_dtype="float16", fit=fit, levels=levels)


def type_of(scheme: Scheme) -> str | None:
    """The type whose blocks hold weights of a scheme as they are; None where there is none."""
    if scheme.scale_dtype == "nested":
        return next(name for name, known in K_TYPES.items() if known == (scheme.bits, scheme.group_size, scheme.symmetric))
    if (scheme.group_size, scheme.scale_dtype, scheme.zeros) != (BLOCK, "float16", "real") or not scheme.is_linear:
        return None
    return next((name for name, known in GGML_TYPES.items() if known == (scheme.bits, scheme.symmetric)), None)


def choose_range(
    blocks: torch.Tensor, low: torch.Tensor, high: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Span, and zero where asymmetric, of blocks [rows, groups, n], float32; see quant.tensor.scales."""
    return _RANGES[scheme.bits, scheme.symmetric](blocks, low, high)


def steps_of(
    span: torch.Tensor, zeros: torch.Tensor | None, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Scales, zeros and inverse scales, float32: codes are computed with them before they are rounded to float16."""
    scales = span / grid.limit
    return scales, zeros, torch.where(scales == 0, 0.0, 1 / scales)


def _from_lowest(_: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return high - low, low


def _signed_largest(blocks: torch.Tensor, _: torch.Tensor, __: torch.Tensor) -> tuple[torch.Tensor, None]:
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1), None


def _absmax(_: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, None]:
    return torch.maximum(low.abs(), high.abs()), None


_RANGES = {
    GGML_TYPES[name]: choose
    for name, choose in {"Q4_0": _signed_largest, "Q4_1": _from_lowest, "Q5_0": _signed_largest, "Q5_1": _from_lowest,
                         "Q8_0": _absmax}.items()
}  # fmt: skip
