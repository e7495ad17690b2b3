"""The parameter `device`: where models run."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from quant.config import check_choice
from quant.errors import InputError

DEVICES = ("auto", "cpu", "cuda")
NO_GPU = "device is cuda, but there is no CUDA GPU here; set device to auto or cpu"


def check_device(device: str) -> None:
    check_choice("device", device, DEVICES)


def require_driver() -> None:
    """Raise InputError where there is no driver of a CUDA GPU, without importing torch, which takes a second."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise InputError(NO_GPU) from None


def resolve_device(device: str) -> str:
    """Resolve "auto" to cuda where there is a GPU, else to cpu. Raises InputError for cuda without a GPU."""
    import torch

    check_device(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(NO_GPU)
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def cores() -> int:
    """Cores that this process may use; fewer where OMP_NUM_THREADS says so."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(count, int(given)) if given.isdecimal() and int(given) else count


def machine_kind(device: str) -> str:
    """The kind of processor or GPU behind a device: results have the same last digits on one kind only."""
    import torch

    if resolve_device(device) == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
