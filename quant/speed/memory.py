"""Measures peak memory of a process and of its GPU, phase by phase."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

LIBRARY = re.compile(r"^(\w+)-(\w+) r.*\.so[.\d]*$", re.MULTILINE)  # in /proc/self/maps: begin and end of a mapping
MADV_POPULATE_READ = 22  # Linux 5.14


class PeakMemory:
    """Peak memory of each phase, above the process's memory at the start, libraries included (Linux).

    Resident memory includes the pages of mapped files. All pages of libraries are mapped at the start: else the first use of each
    would count for the model, in a fork more than in a new process. device cuda: torch's memory on the GPU as well, but not
    llama.cpp's.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._on_gpu = device == "cuda"
        if self._on_gpu:
            torch.cuda.init()  # CUDA's own memory belongs to the process, not to the model
            torch.cuda.synchronize()
        gc.collect()
        _map_libraries()
        self.interpreter = _status("VmRSS")
        self._reset()

    def phase(self) -> dict[str, int]:
        """Bytes of the phase since the last call: resident and peak, and with a GPU gpu and gpu_peak. Starts the next phase."""
        found = {"resident": max(0, _status("VmRSS") - self.interpreter), "peak": max(0, _status("VmHWM") - self.interpreter)}
        if self._on_gpu:
            found |= {"gpu": torch.cuda.memory_allocated(), "gpu_peak": torch.cuda.max_memory_allocated()}
        self._reset()
        return found

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()


def _map_libraries() -> None:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in LIBRARY.findall(Path("/proc/self/maps").read_text()):
        begin = int(start, 16)
        madvise(begin, int(end, 16) - begin, MADV_POPULATE_READ)  # an older kernel refuses: a few MiB more then count


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
