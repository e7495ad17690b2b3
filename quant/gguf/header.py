"""Checks the header of a GGUF file."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from quant.errors import InputError
from quant.files import sha256_of
from quant.outside import plain_file, read_json


@cache
def _require_listed(path: Path, _: tuple[int, int]) -> bool:
    """Compare a file with its manifest, once for each state of it (size, time of the last change); False: it is not listed."""
    folder = path.parent
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    files = manifest.get("files") if isinstance(manifest, dict) else None
    entry = files.get(path.name) if isinstance(files, dict) else None
    expected = entry.get("sha256") if isinstance(entry, dict) else None
    if expected is not None and sha256_of(path) != expected:
        raise InputError(f"{path} is not the file that its manifest lists (another sha256); make it again with dvc repro")
    return expected is not None


def check_hash(path: Path) -> bool:
    """Raise InputError unless a file has the sha256 of the manifest beside it: one wrong byte can abort llama.cpp's process.

    A file is read once in a process. False: there is no manifest, or no entry in it, and nothing was compared.
    """
    about = path.stat()
    return _require_listed(path.absolute(), (about.st_size, about.st_mtime_ns))


def check_gguf(path: Path) -> None:
    """Raise InputError for a file with an impossible GGUF header: readers allocate memory by the counts in it."""
    size = plain_file(path).stat().st_size
    with open(path, "rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != b"GGUF":
        raise InputError(f"{path} is not a GGUF file: {size} bytes, starting with {head[:4]!r}; make it again with dvc repro")
    version, tensors, pairs = struct.unpack("<IQQ", head[4:])
    # A tensor's entry takes at least 24 bytes, a metadata pair at least 13.
    if not 2 <= version <= 3 or tensors * 24 + pairs * 13 > size:
        raise InputError(f"{path} has a corrupt GGUF header: version {version}, {tensors} tensors, {pairs} metadata "
                         f"pairs in {size} bytes; make it again with dvc repro")
