"""Estimates the memory, disk and time that quantizing a checkpoint takes."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from quant.errors import InputError
from quant.files import nearest_folder
from quant.model.safetensors_file import TensorInfo
from quant.model.selection import Selected
from quant.tensor.groups import CHUNK
from quant.tensor.qtensor import quantize
from quant.tensor.scheme import Scheme

DISK_RATE = 10**9  # bytes a second read and written; assumed, because the disk cache hides the real rate
INTERMEDIATES = 16  # float32 copies of a chunk that one core holds at most while quantizing
SPARE_DISK = 2**24  # for config, tokenizer and index


@dataclass(frozen=True)
class Needs:
    """Bytes and seconds. memory: in addition to Python and its libraries."""

    reads: int
    memory: int
    disk: int
    free_disk: int
    seconds: float

    def __str__(self) -> str:
        mb = 10**6
        return (f"reads {self.reads / mb:,.0f} MB, writes {self.disk / mb:,.0f} MB ({self.free_disk / mb:,.0f} MB free), "
                f"needs {self.memory / mb:,.0f} MB of memory and about {self.seconds:,.0f} s")

    def check(self, out: Path) -> None:
        """Raise InputError if the disk of `out` can't hold the artifact."""
        if self.disk + SPARE_DISK > self.free_disk:
            raise InputError(f"{out} needs {self.disk / 1e6:,.0f} MB and its disk has {self.free_disk / 1e6:,.0f} MB free; "
                             "free some space or choose fewer bits")


def estimate(tensors: Mapping[str, TensorInfo], layout: Mapping[str, TensorInfo], weights: list[Selected], out: Path) -> Needs:
    """The needs of reading `tensors`, quantizing `weights` and writing `layout` to the folder `out`.

    The time per weight of each scheme is measured on a small random weight of the same width.
    """
    reads, disk = (sum(info.bytes for info in infos.values()) for infos in (tensors, layout))
    quantized: dict[Scheme, tuple[int, int]] = {}
    for selected in weights:
        for part in selected.parts:
            if part.scheme:
                shape = selected.shape_of(part)
                count, width = quantized.get(part.scheme, (0, 0))
                quantized[part.scheme] = (count + math.prod(shape), max(width, shape[-1]))
    seconds = sum(count * _seconds_per_weight(scheme, width, count) for scheme, (count, width) in quantized.items())
    return Needs(
        reads=reads,
        memory=memory_to_quantize(tensors, layout, weights),
        disk=disk,
        free_disk=shutil.disk_usage(nearest_folder(out)).free,
        seconds=seconds + (reads + disk) / DISK_RATE,
    )


def memory_to_quantize(tensors: Mapping[str, TensorInfo], layout: Mapping[str, TensorInfo], weights: list[Selected]) -> int:
    """Peak bytes: the largest weight read, the largest copy of a part's rows, the largest result twice, and float32 chunks on
    every core."""
    largest_read, largest_written = (max((info.bytes for info in infos.values()), default=0) for infos in (tensors, layout))
    copies = (math.prod(selected.shape_of(part)) * selected.weight.stored.dtype.itemsize
              for selected in weights if selected.is_quantized and len(selected.parts) > 1 for part in selected.parts)
    chunks = INTERMEDIATES * 4 * CHUNK * torch.get_num_threads()
    return largest_read + max(copies, default=0) + 2 * largest_written + chunks


def held_bytes(layout: Mapping[str, TensorInfo], weights: list[Selected]) -> int:
    """Bytes in memory of the weights of an artifact, which a runner holds in 32 bits unless they are quantized."""
    quantized = {selected.tensor_of(part) for selected in weights for part in selected.parts if part.scheme}
    return sum(info.bytes if name.rpartition(".")[0] in quantized or not info.dtype.is_floating_point else 4 * info.count
               for name, info in layout.items())


def _seconds_per_weight(scheme: Scheme, width: int, count: int) -> float:
    sample = torch.randn(max(1, min(count, CHUNK) // width), width, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    quantize(sample, scheme)
    return (time.perf_counter() - start) / sample.numel()
