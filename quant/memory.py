"""The memory that is free on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory() -> int:
    """The kernel's estimate of the bytes that programs can allocate without swapping; all memory where it gives none."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
