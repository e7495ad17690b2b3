"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, the plain block types of ggml: its rounding, and its bytes.

A block is 32 weights of a row with a float16 scale (and, in the _1 types, a float16 lowest value). What sets the rule
apart from this project's own: codes are rounded under the scale before that is rounded to float16; the symmetric 4- and
5-bit types use all codes, by mapping the weight of largest magnitude, sign included, onto the lowest; halves round up.
Format and reference: ggml-quants.c of llama.cpp, and the `gguf` package.
"""

from __future__ import annotations

import torch

from quant.tensor.packing import unpack
from quant.tensor.scheme import Scheme

BLOCK = 32


def scheme_of(name: str) -> Scheme:
    """The scheme of a type such as "Q4_0"."""
    return Scheme(int(name[1]), BLOCK, symmetric=name[1] == "8" or name[3] == "0", scale_dtype="float16", fit="ggml")


def encode(blocks: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Blocks float32 [..., 32] -> uint8 codes [..., 32], float16 scales [...], and zeros where asymmetric."""
    half = 2 ** (scheme.bits - 1)
    zeros = None
    if not scheme.symmetric:
        zeros = blocks.amin(-1)
        scales = (blocks.amax(-1) - zeros) / (2 * half - 1)
        blocks = blocks - zeros.unsqueeze(-1)
    elif scheme.bits == 8:
        scales = blocks.abs().amax(-1) / (half - 1)
    else:
        largest = blocks.abs().argmax(-1, keepdim=True)
        scales = blocks.gather(-1, largest).squeeze(-1) / -half
    inverses = torch.where(scales == 0, torch.zeros_like(scales), 1 / scales).unsqueeze(-1)
    steps = blocks * inverses
    if scheme.symmetric and scheme.bits == 8:  # halves away from zero; the other types round in one sum
        whole = steps.abs().floor()
        steps = steps.sign() * (whole + (2 * (steps.abs() - whole)).floor()) + half
    else:
        steps = (steps + (half + 0.5 if scheme.symmetric else 0.5)).trunc()
    codes = steps.clamp(0, 2 * half - 1).to(torch.uint8)
    return codes, scales.to(torch.float16), None if zeros is None else zeros.to(torch.float16)


def to_bytes(tensor) -> torch.Tensor:
    """A QTensor of a ggml scheme -> its blocks as a GGUF file holds them, uint8 [rows, bytes of a row].

    Layout of a block: scale, lowest value, fifth bits (32 of them), then byte i holds the low four bits of codes i and
    i + 16; or, for Q8_0, scale and 32 signed bytes.
    """
    bits, rows = tensor.scheme.bits, len(tensor.codes)
    codes = unpack(tensor.codes, bits, tensor.shape[-1]).view(-1, BLOCK)
    parts = [tensor.scales.reshape(-1, 1).view(torch.uint8)]
    if tensor.zeros is not None:
        parts.append(tensor.zeros.reshape(-1, 1).view(torch.uint8))
    if bits == 8:
        parts.append((codes.to(torch.int16) - 128).to(torch.int8).view(torch.uint8))
    else:
        if bits == 5:
            weights = 2 ** torch.arange(8, dtype=torch.int32)
            parts.append(((codes >> 4).view(-1, 4, 8).int() * weights).sum(-1).to(torch.uint8))
        low = codes & 15
        parts.append(low[:, :16] | low[:, 16:] << 4)
    return torch.cat(parts, dim=-1).view(rows, -1)
