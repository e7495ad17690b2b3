"""Measures this machine's memory bandwidth, an upper bound on decoding, which reads every weight once per token."""

from __future__ import annotations

import time

import torch

BYTES = {"cpu": 2**27, "cuda": 2**30}  # several times the size of the caches
READS = 7


def memory_read_gb_per_s(device: str) -> float:
    """Gigabytes (1e9 bytes) per second, from the fastest of several sums over a large tensor with torch's current threads."""
    tensor = torch.ones(BYTES[device] // 4, dtype=torch.float32, device=device)
    fastest = min(_seconds(tensor) for _ in range(READS))
    return tensor.numel() * tensor.element_size() / fastest / 1e9


def _seconds(tensor: torch.Tensor) -> float:
    start = time.perf_counter()
    tensor.sum().item()
    return time.perf_counter() - start
