"""Bytes of ggml's block types, as a GGUF file stores them: written from a QTensor, and read back.

A block of 32 weights stores, in this order: its scale; in the _1 types, its lowest value; in the 5-bit types, the fifth bits of
its codes; then 16 bytes, byte i with the low 4 bits of code i in its low half and those of code i + 16 in its high half. Q8_0
stores the scale and 32 signed bytes. Scales and lowest values are float16. K-quants: quant.tensor.ggml_superblocks.
Reference: ggml-common.h of llama.cpp, and the `gguf` package.
"""

from __future__ import annotations

import torch

from quant.errors import InputError
from quant.tensor import ggml_superblocks
from quant.tensor.ggml import BLOCK, type_of
from quant.tensor.packing import pack, unpack
from quant.tensor.qtensor import QTensor
from quant.tensor.scheme import Scheme

_HALF = BLOCK // 2
_SIGN = 128  # XOR with it turns a code, 0 to 255, into the signed byte code - 128


def to_bytes(tensor: QTensor) -> torch.Tensor:
    """The blocks of a weight [rows, columns] of a scheme that `type_of` knows, uint8 [rows, bytes of a row]."""
    if type_of(tensor.scheme) is None:
        raise InputError(f"a weight in {tensor.scheme.label} has no blocks of ggml; expected fit ggml, scale_dtype nested, or "
                         f"groups of {BLOCK} with scales and real zeros in float16")
    if tensor.scheme.scale_dtype == "nested":
        return ggml_superblocks.to_bytes(tensor)
    if tensor.shape[-1] % BLOCK:
        raise InputError(f"a row of {tensor.shape[-1]} weights is not whole blocks of ggml; expected a multiple of {BLOCK}")
    bits = tensor.scheme.bits
    codes = unpack(tensor.codes, bits, tensor.shape[-1]).reshape(-1, BLOCK)
    parts = [_bytes(tensor.scales.rows(slice(None)))] + ([] if tensor.zeros is None else [_bytes(tensor.zeros)])
    if bits == 8:
        parts.append(codes ^ _SIGN)
    else:
        if bits == 5:
            parts.append(pack(codes >> 4, 1))
        low = codes & 15
        parts.append(low[:, :_HALF] | low[:, _HALF:] << 4)
    return torch.cat(parts, dim=-1).view(len(tensor.codes), -1)


def from_bytes(data: torch.Tensor, scheme: Scheme) -> QTensor:
    """The weight whose blocks are `data`, uint8 [rows, bytes of a row]; the inverse of `to_bytes`."""
    if scheme.scale_dtype == "nested":
        return ggml_superblocks.from_bytes(data, scheme)
    rows, bits = len(data), scheme.bits
    sizes = [2, 0 if scheme.symmetric else 2, 4 if bits == 5 else 0, BLOCK if bits == 8 else _HALF]
    scales, zeros, fifth, codes = data.reshape(-1, sum(sizes)).split(sizes, dim=-1)
    if bits == 8:
        codes = codes ^ _SIGN
    else:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1)
        if bits == 5:
            codes = codes | unpack(fifth, 1, BLOCK) << 4
    codes = codes.view(rows, -1)
    stored = {"codes": pack(codes, bits), "scales": _halves(scales, rows)}
    if not scheme.symmetric:
        stored["zeros"] = _halves(zeros, rows)
    return QTensor.from_tensors(stored, tuple(codes.shape), scheme)


def _bytes(halves: torch.Tensor) -> torch.Tensor:
    """float16 [rows, groups] -> uint8 [rows * groups, 2]."""
    return halves.reshape(-1, 1).view(torch.uint8)


def _halves(data: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse of `_bytes`."""
    return data.contiguous().view(torch.float16).view(rows, -1)
