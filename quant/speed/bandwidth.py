"""How fast this machine reads memory: the bound of decoding, which reads every weight once a token."""

from __future__ import annotations

import time

import torch

BYTES = {"cpu": 2**27, "cuda": 2**30}  # several times what the caches hold
READS = 7


def memory_read_gb_per_s(device: str) -> float:
    """Gigabytes (1e9 bytes) a second of the fastest of several sums over a large tensor, with the threads torch has now."""
    tensor = torch.ones(BYTES[device] // 4, dtype=torch.float32, device=device)
    fastest = min(_seconds(tensor) for _ in range(READS))
    return tensor.numel() * tensor.element_size() / fastest / 1e9


def _seconds(tensor: torch.Tensor) -> float:
    start = time.perf_counter()
    tensor.sum().item()
    return time.perf_counter() - start
