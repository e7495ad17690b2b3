"""Bytes: of the tensors a model holds, of its files, and of the process and the GPU that run it."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import torch

from quant.model.architectures import GROUPS
from quant.runners import Held, Runner

MIB = 2**20
WEIGHT_FILES = ("*.safetensors", "*.gguf")


def ledger(tensors: list[Held]) -> list[dict]:
    """Bytes by role, part and dtype, tied storage once: rows of group, role, part, dtype, bytes, tensors."""
    total: Counter[tuple] = Counter()
    count: Counter[tuple] = Counter()
    for held in tensors:
        row = (_group(held.roles), "+".join(held.roles), held.part, held.dtype)
        total[row] += held.bytes
        count[row] += 1
    keys = ("group", "role", "part", "dtype")
    return [{**dict(zip(keys, row, strict=True)), "bytes": total[row], "tensors": count[row]} for row in sorted(total)]


def held_bytes(runner: Runner) -> dict[str, int]:
    """Bytes of the weights in memory by dtype; scales, zeros and codebooks included, tied storage once."""
    total: Counter[str] = Counter()
    for held in runner.tensors():
        total[held.dtype] += held.bytes
    return dict(sorted(total.items()))


def bytes_per_token(tensors: list[Held]) -> int:
    """Bytes of weights that decoding one token reads: all but embeddings, of which it reads a row, unless they are the head."""
    return sum(held.bytes for held in tensors if held.roles != ("embedding",))


def disk_bytes(folder: Path) -> int:
    """Bytes of the files of weights in a model's folder."""
    return sum(path.stat().st_size for pattern in WEIGHT_FILES for path in Path(folder).glob(pattern))


class PeakMemory:
    """Peak memory phase by phase, above what the process held at the start (Linux).

    Resident memory counts the pages of mapped files. Where there is a GPU, its memory too; torch's, so not llama.cpp's.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._on_gpu = device == "cuda"
        if self._on_gpu:
            torch.cuda.init()  # CUDA's own memory belongs to the process, not to the model
            torch.cuda.synchronize()
        gc.collect()
        self.interpreter = _status("VmRSS")
        self._reset()

    def phase(self) -> dict[str, int]:
        """Bytes since the last call: resident and its peak, above the start's; allocated on the GPU and its peak."""
        found = {"resident": max(0, _status("VmRSS") - self.interpreter), "peak": max(0, _status("VmHWM") - self.interpreter)}
        if self._on_gpu:
            found |= {"gpu": torch.cuda.memory_allocated(), "gpu_peak": torch.cuda.max_memory_allocated()}
        self._reset()
        return found

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()


def _group(roles: tuple[str, ...]) -> str:
    """attention or mlp for the roles of a block, else the first role: a tied head counts as the embedding it is."""
    return next((group for group, members in GROUPS.items() if roles[0] in members), roles[0])


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
