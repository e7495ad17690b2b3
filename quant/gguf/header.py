"""Checks the header of a GGUF file."""

from __future__ import annotations

import struct
from pathlib import Path

from quant.errors import InputError


def check_gguf(path: Path) -> None:
    """Raise InputError for a file with an impossible GGUF header: readers allocate memory by the counts in it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != b"GGUF":
        raise InputError(f"{path} is not a GGUF file: {size} bytes, starting with {head[:4]!r}; make it again with dvc repro")
    version, tensors, pairs = struct.unpack("<IQQ", head[4:])
    # A tensor's entry takes at least 24 bytes, a metadata pair at least 13.
    if not 2 <= version <= 3 or tensors * 24 + pairs * 13 > size:
        raise InputError(f"{path} has a corrupt GGUF header: version {version}, {tensors} tensors, {pairs} metadata "
                         f"pairs in {size} bytes; make it again with dvc repro")
