"""Bytes: of the tensors a model holds, of its files, and of the process that runs it."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

from quant.runners import Runner

MIB = 2**20
WEIGHT_FILES = ("*.safetensors", "*.gguf")


def held_bytes(runner: Runner) -> dict[str, int]:
    """Bytes of the weights in memory by dtype; scales, zeros and codebooks included, tied storage once."""
    ledger: Counter[str] = Counter()
    for _, dtype, size in runner.tensors():
        ledger[dtype] += size
    return dict(sorted(ledger.items()))


def disk_bytes(folder: Path) -> int:
    """Bytes of the files of weights in a model's folder."""
    return sum(path.stat().st_size for pattern in WEIGHT_FILES for path in Path(folder).glob(pattern))


class PeakMemory:
    """Peak resident memory since `start`, above what the process held then; pages of mapped files count (Linux)."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
        self._before = _status("VmRSS")

    def bytes(self) -> int:
        return max(0, _status("VmHWM") - self._before)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
