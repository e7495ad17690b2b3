"""Peak memory of a process and of its GPU, phase by phase."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

MIB = 2**20


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


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
