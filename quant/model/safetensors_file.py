"""Reads and writes safetensors files, one tensor at a time.

The whole header is checked before any data is used. Tensors are read with plain file reads: a mapped file would count as the
process's memory. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from quant.errors import InputError
from quant.files import write_json
from quant.model.folder import INDEX, SINGLE
from quant.outside import is_count, parse_json, plain_file, shown

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 16 * 2**20  # of 100,000 tensors; safetensors itself takes 100 MB
MOST_DIMENSIONS = 8
SHARD_BYTES = 4 * 10**9
PIECE = 2**20  # bytes compared at a time


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's dtype, shape and place in a file; file: None for a tensor that is still to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path | None = None
    offset: int = 0  # of its first byte from the start of the file

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file by name. Raises InputError unless they fill the file exactly and their dtypes are in DTYPES."""
    path = Path(path)
    size = plain_file(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise InputError(f"{path} is not a complete safetensors file: {size} bytes, a header of {max(length, 0)}; "
                             "fetch it again")
        header = parse_json(file.read(length), f"{path}: its header")
    if not isinstance(header, dict):
        raise InputError(f"{path} has a corrupt header, {shown(header)}; fetch it again")
    infos = {name: _tensor_info(path, 8 + length, name, entry) for name, entry in header.items() if name != "__metadata__"}
    end = 8 + length
    for name, info in sorted(infos.items(), key=lambda item: item[1].offset):
        if info.offset != end:
            raise InputError(f"{path}: {shown(name)} starts at byte {info.offset}, expected {end}; fetch it again")
        end += info.bytes
    if end != size:
        raise InputError(f"{path} has {size} bytes, its header says {end}: truncated or overlong; fetch it again")
    return infos


def _tensor_info(path: Path, data: int, name: str, entry) -> TensorInfo:
    """A tensor's entry, checked. Counts are bounded before they are multiplied: a product of wrong ones takes minutes."""
    found = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (found.get(key) for key in ("dtype", "shape", "data_offsets"))
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise InputError(f"{path} holds tensors of dtype {shown(dtype)}; expected one of {', '.join(DTYPES)}: give a copy of "
                         "the model in 16 or 32 bits")
    if (not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS
            or not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(n) for n in (*shape, *offsets))
            or math.prod(shape) >= 2**63 or math.prod(n for n in shape if n) >= 2**63):
        raise InputError(f"{path} has a corrupt header ({shown(name)} is {shown(entry)}); fetch it again")
    info = TensorInfo(DTYPES[dtype], tuple(shape), path, data + offsets[0])
    if info.bytes != offsets[1] - offsets[0]:
        raise InputError(f"{path} has a corrupt header ({shown(name)}: shape {shape} needs {info.bytes} bytes, offsets give "
                         f"{offsets[1] - offsets[0]}); fetch it again")
    return info


def read_tensor(info: TensorInfo, buffer: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor, in the dtype it is stored in.

    buffer: uint8 memory to read into; the tensor is then valid until the buffer is used again.
    """
    if buffer is None:
        buffer = torch.empty(info.bytes, dtype=torch.uint8)
    place = buffer[: info.bytes]
    view, done = memoryview(place.numpy()), 0
    with open(info.file, "rb", buffering=0) as file:
        file.seek(info.offset)
        while done < info.bytes:
            count = file.readinto(view[done:])
            if not count:
                raise InputError(f"{info.file} ended {info.bytes - done} bytes early; fetch it again")
            done += count
    return place.view(info.dtype).view(info.shape)


def same_bytes(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two stored tensors have the same dtype, shape and values; compared in pieces, so that neither fills memory."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with open(first.file, "rb") as left, open(second.file, "rb") as right:
        left.seek(first.offset)
        right.seek(second.offset)
        counts = (min(PIECE, first.bytes - start) for start in range(0, first.bytes, PIECE))
        return all(left.read(count) == right.read(count) for count in counts)


def write_checkpoint(folder: Path, layout: Mapping[str, TensorInfo], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write a stream of (name, tensor) into `folder`, in the order of `layout`, which has their dtypes and shapes.

    Writes one model.safetensors, or shards of about 4 GB with their index. Equal input gives equal bytes.
    """
    shards, tensors = shards_of(folder, layout), iter(tensors)
    for path, part in shards.items():
        write_shard(path, part, tensors)
    if next(tensors, None) is not None:
        raise ValueError("more tensors than the layout names")
    write_index(folder, shards)


def shards_of(folder: Path, layout: Mapping[str, TensorInfo]) -> dict[Path, dict[str, TensorInfo]]:
    """The files of a checkpoint in `folder`, each with the tensors that it holds: one file, or shards of about 4 GB."""
    shards = _split(layout)
    names = [SINGLE] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    return {folder / name: {tensor: layout[tensor] for tensor in shard} for name, shard in zip(names, shards, strict=True)}


def write_index(folder: Path, shards: Mapping[Path, Mapping[str, TensorInfo]]) -> None:
    """Write the index of several shards; a single file has none."""
    if len(shards) > 1:
        weight_map = {name: path.name for path, layout in shards.items() for name in layout}
        total = sum(info.bytes for layout in shards.values() for info in layout.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(layout: Mapping[str, TensorInfo]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in layout.items():
        if shards[-1] and size + info.bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.bytes
    return shards


def write_shard(path: Path, layout: Mapping[str, TensorInfo], tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Write the next tensors of a stream, which `layout` describes, to a file."""
    # One key of metadata: safetensors' own writer shuffles several, which would change the bytes from run to run.
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, info in layout.items():
        header[name] = {
            "dtype": NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [offset, offset + info.bytes]
        }
        offset += info.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, info in layout.items():
            given, tensor = next(tensors)
            if (given, tensor.dtype, tuple(tensor.shape)) != (name, info.dtype, info.shape):
                raise ValueError(f"got {given} {tensor.dtype} {tuple(tensor.shape)}, expected {name} {info}")
            if info.bytes:
                file.write(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())
