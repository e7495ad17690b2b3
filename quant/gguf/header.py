"""The header of a GGUF file, checked before a reader trusts its counts."""

from __future__ import annotations

import struct
from pathlib import Path

from quant.errors import InputError


def check_gguf(path: Path) -> None:
    """Refuse a file whose GGUF header can't be true, before a reader trusts its counts."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != b"GGUF":
        raise InputError(f"{path} is no GGUF file: {size} bytes, beginning with {head[:4]!r}")
    version, tensors, pairs = struct.unpack("<IQQ", head[4:])
    # A tensor's entry takes at least 24 bytes, a metadata pair at least 13.
    if not 2 <= version <= 3 or tensors * 24 + pairs * 13 > size:
        raise InputError(f"{path} has a corrupt GGUF header: version {version}, {tensors} tensors, {pairs} metadata "
                         f"pairs in {size} bytes")
