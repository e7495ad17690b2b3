"""What a timing depends on and DVC does not see: processor, memory, versions, and the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "bitsandbytes", "llama_cpp_python", "safetensors", "numpy", "dvc")
FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
CODE = ("quant", "stages")


def environment() -> dict:
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line
    )
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": commit(Path.cwd()),
    }


def commit(folder: Path) -> str | None:
    """The commit that a checkout is at, with "-dirty" behind it where its code differs; None where there is no git."""
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return None
    return head + ("-dirty" if _git(folder, "status", "--porcelain", "--", *CODE) else "")


def _git(folder: Path, *words: str) -> str:
    """What git says, or nothing where it fails or is not there."""
    try:
        done = subprocess.run(["git", "--no-optional-locks", *words], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
