"""Bytes of ggml's K-quants, as a GGUF file stores them: written from a QTensor whose scales are nested, and read back.

A superblock is 256 weights of a row: 8 or 16 groups, whose scales and lowest values are whole numbers times one or two float16
numbers. Codes are stored in planes: byte i of a run of 32 (or 64) holds the bits of codes i, i + 32 and so on.

    Q2_K   scales with lowest values in the high halves, codes, numbers
    Q3_K   third bits of codes, low bits, scales, number
    Q4_K   numbers, scales with lowest values, codes
    Q5_K   numbers, scales with lowest values, fifth bits of codes, low bits
    Q6_K   low bits of codes, high bits, scales, number

Reference: ggml-common.h and ggml-quants.c of llama.cpp, and the `gguf` package.
"""

from __future__ import annotations

import torch

from quant.tensor.nested_scales import WIDTHS
from quant.tensor.packing import pack, unpack
from quant.tensor.qtensor import QTensor
from quant.tensor.scheme import SUPERBLOCK, Scheme

_PARTS = {  # of a block by a weight's bits: names and bytes, in order
    2: {"scales": 16, "codes": 64, "number": 2, "zero": 2},
    3: {"high": 32, "codes": 64, "scales": 12, "number": 2},
    4: {"number": 2, "zero": 2, "scales": 12, "codes": 128},
    5: {"number": 2, "zero": 2, "scales": 12, "high": 32, "codes": 128},
    6: {"codes": 128, "high": 64, "scales": 16, "number": 2},
}
_LOW = {2: (2, 32), 3: (2, 32), 4: (4, 32), 5: (4, 32), 6: (4, 64)}  # bits of a code in "codes", and bytes of a run
_HIGH = {3: (1, 32), 5: (1, 32), 6: (2, 32)}  # the same of "high"


def to_bytes(tensor: QTensor) -> torch.Tensor:
    """The superblocks of a weight [rows, columns] of a nested scheme, uint8 [rows, bytes of a row]."""
    bits, scales = tensor.scheme.bits, tensor.scales
    codes = unpack(tensor.codes, bits, tensor.shape[-1]).reshape(-1, SUPERBLOCK)
    low, width = _LOW[bits], scales.width
    parts = {"codes": _planes(codes & (2 ** low[0] - 1), *low), "number": _bytes(scales.super_scales)}
    if bits in _HIGH:
        parts["high"] = _planes(codes >> low[0], *_HIGH[bits])
    held = unpack(scales.scale_codes, width.bits, codes.shape[0] // len(tensor.codes) * width.groups).reshape(-1, width.groups)
    zeros = None
    if scales.super_zeros is not None:
        parts["zero"] = _bytes(scales.super_zeros)
        zeros = unpack(tensor.zeros, width.bits, held.numel() // len(tensor.codes)).reshape(-1, width.groups)
    parts["scales"] = _joined_scales(held, zeros, bits)
    return torch.cat([parts[name] for name in _PARTS[bits]], dim=-1).view(len(tensor.codes), -1)


def from_bytes(data: torch.Tensor, scheme: Scheme) -> QTensor:
    """The weight whose superblocks are `data`, uint8 [rows, bytes of a row]; the inverse of `to_bytes`."""
    rows, bits = len(data), scheme.bits
    sizes = _PARTS[bits]
    blocks = data.reshape(-1, sum(sizes.values())).split(list(sizes.values()), dim=-1)
    parts = dict(zip(sizes, blocks, strict=True))
    codes = _from_planes(parts["codes"], *_LOW[bits])
    if bits in _HIGH:
        codes = codes | _from_planes(parts["high"], *_HIGH[bits]) << _LOW[bits][0]
    codes = codes.reshape(rows, -1)
    held, zeros = _split_scales(parts["scales"], bits)
    width = WIDTHS[bits].bits
    stored = {"codes": pack(codes, bits), "scale_codes": pack(held.reshape(rows, -1), width),
              "super_scales": _halves(parts["number"], rows)}
    if zeros is not None:
        stored |= {"super_zeros": _halves(parts["zero"], rows), "zeros": pack(zeros.reshape(rows, -1), width)}
    return QTensor.from_tensors(stored, tuple(codes.shape), scheme)


def _joined_scales(scales: torch.Tensor, zeros: torch.Tensor | None, bits: int) -> torch.Tensor:
    """Codes of scales and lowest values, uint8 [blocks, groups], in the bytes of "scales"."""
    if bits == 2:
        return scales | zeros << 4
    if bits == 6:
        return scales ^ 128  # as signed bytes
    if bits == 3:  # 16 low halves in 8 bytes, then the high pairs of bits in 4
        return torch.cat([scales[:, :8] & 15 | (scales[:, 8:] & 15) << 4, _planes(scales >> 4, 2, 4)], dim=-1)
    first = [values[:, :4] | values[:, 4:] >> 4 << 6 for values in (scales, zeros)]
    return torch.cat([*first, scales[:, 4:] & 15 | (zeros[:, 4:] & 15) << 4], dim=-1)


def _split_scales(data: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The inverse of `_joined_scales`."""
    if bits == 2:
        return data & 15, data >> 4
    if bits == 6:
        return data ^ 128, None
    if bits == 3:
        return torch.cat([data[:, :8] & 15, data[:, :8] >> 4], dim=-1) | _from_planes(data[:, 8:], 2, 4) << 4, None
    first, second, last = data.split(4, dim=-1)
    scales = torch.cat([first & 63, last & 15 | first >> 6 << 4], dim=-1)
    return scales, torch.cat([second & 63, last >> 4 | second >> 6 << 4], dim=-1)


def _planes(codes: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """Codes of some bits, uint8 [blocks, n], in bytes [blocks, n * bits / 8]: byte i of a run holds codes i, i + run, ..."""
    split = codes.reshape(len(codes), -1, 8 // bits, run)
    data = torch.zeros_like(split[:, :, 0])
    for place in range(8 // bits):
        data |= split[:, :, place] << (bits * place)
    return data.reshape(len(codes), -1)


def _from_planes(data: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """The inverse of `_planes`."""
    runs = data.reshape(len(data), -1, 1, run)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).view(-1, 1)
    return (runs >> shifts & (2**bits - 1)).reshape(len(data), -1)


def _bytes(halves: torch.Tensor) -> torch.Tensor:
    return halves.reshape(-1, 1).contiguous().view(torch.uint8)


def _halves(data: torch.Tensor, rows: int) -> torch.Tensor:
    return data.contiguous().view(torch.float16).view(rows, -1)
