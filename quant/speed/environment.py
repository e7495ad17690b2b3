"""Describes the machine and the software of a measurement: processor, memory, versions, and the commit of the code."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from quant.tensor import products

PROJECT = "quant"  # the distribution whose requirements are listed, as pyproject.toml names it
LLAMA_CPP = "llama_cpp_python"  # installed by set-up, so it is not among the requirements
FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
CODE = ("quant", "stages")  # folders whose changes can change a measurement


def environment() -> dict:
    """Processor, what the CPU's loops and products use of it, memory, GPU, versions of all required packages, and the code's
    commit, for JSON."""
    from quant.compiled import lanes
    from quant.kernels import precision  # here, because numba is slow to import and only a measurement needs it

    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line
    )
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "cpu_vectors": lanes.description(),
        "cpu_products": products.LIBRARY,
        "cpu_precision": precision.CHOICE,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()}",
        "packages": {name: _version(name) for name in (*_requirements(), LLAMA_CPP)},
        "commit": commit(Path.cwd()),
    }


def commit(folder: Path) -> str | None:
    """Commit of a checkout, followed by "-dirty" where its code was changed; None where git knows no commit."""
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return None
    return head + ("-dirty" if _git(folder, "status", "--porcelain", "--", *CODE) else "")


def _git(folder: Path, *words: str) -> str:
    """Output of git; empty where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "--no-optional-locks", *words], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _requirements() -> list[str]:
    """Names of the packages that the project requires; none where it runs without having been installed."""
    try:
        return sorted(re.split(r"[^\w.-]", line)[0] for line in requires(PROJECT) or ())
    except PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
