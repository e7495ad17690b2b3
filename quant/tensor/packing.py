"""Step 4 of quantizing: pack codes of 1 to 8 bits into bytes without gaps, and unpack them.

A row is one little-endian stream of bits: code i takes bits i*b to (i+1)*b. Eight codes of b bits are b
bytes and fit one 64-bit word, so every width takes the same path. Rows start on a byte.
"""

from __future__ import annotations

import torch


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of a row of `columns` codes."""
    return (columns * bits + 7) // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes [rows, columns], each below 2**bits -> uint8 bytes [rows, row_bytes(columns, bits)]."""
    if bits == 8:
        return codes
    rows, columns = codes.shape
    codes = torch.nn.functional.pad(codes, (0, -columns % 8)).view(rows, -1, 8)
    words = torch.zeros(codes.shape[:2], dtype=torch.int64, device=codes.device)
    for i in range(8):
        words |= codes[..., i].long() << (bits * i)
    parts = torch.stack([(words >> (8 * j)) & 0xFF for j in range(bits)], dim=-1)
    return parts.to(torch.uint8).view(rows, -1)[:, : row_bytes(columns, bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """The inverse of `pack`: uint8 bytes [rows, row_bytes] -> uint8 codes [rows, columns]."""
    if bits == 8:
        return packed
    rows, width = packed.shape
    if 8 % bits == 0:  # whole codes in every byte: the same stream, read without going through words
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        codes = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
        return codes.view(rows, -1)[:, :columns]
    parts = torch.nn.functional.pad(packed, (0, -width % bits)).view(rows, -1, bits)
    words = torch.zeros(parts.shape[:2], dtype=torch.int64, device=packed.device)
    for j in range(bits):
        words |= parts[..., j].long() << (8 * j)
    codes = torch.stack([(words >> (bits * i)) & (2**bits - 1) for i in range(8)], dim=-1)
    return codes.to(torch.uint8).view(rows, -1)[:, :columns]
