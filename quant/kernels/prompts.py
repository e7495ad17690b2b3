"""How a weight is multiplied with many rows of activations, as a prompt has: exactly, or rounded to bfloat16.

    exact      weight and activations in float32
    bfloat16   both are rounded to bfloat16, and so is each output; sums are float32. Products take half the time on a processor
               that multiplies bfloat16. It adds about as much divergence as 8 bits a weight do: 0.06 mnat for the project's model

The environment variable QUANT_PROMPTS chooses; without it products are exact, so that a model predicts what was measured: quality
is measured with exact products, whatever is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from quant.errors import InputError
from quant.tensor import products

VARIABLE = "QUANT_PROMPTS"
CHOICES = ("exact", "bfloat16")
FLAGS = ("avx512_bf16", "amx_bf16", "bf16 ")  # in Linux's description of processors that multiply bfloat16

_used: ContextVar[str | None] = ContextVar("used", default=None)


def multiplies_bfloat16(cpuinfo: str) -> bool:
    """Whether a processor does, by Linux's description of it."""
    return any(flag in cpuinfo for flag in FLAGS)


def chosen(wanted: str | None, cpuinfo: str) -> str:
    """What is wanted, or else "exact". cpuinfo: describes the processor, as Linux does.

    Raises InputError for another word, and for bfloat16 on a processor that does not multiply it.
    """
    if wanted and wanted not in CHOICES:
        raise InputError(f"{VARIABLE} is {wanted!r}; expected {' or '.join(CHOICES)}")
    if wanted == "bfloat16" and not multiplies_bfloat16(cpuinfo):
        raise InputError(f"{VARIABLE} is bfloat16, which this processor does not multiply; unset it or choose exact")
    return wanted or "exact"


CHOICE = chosen(os.environ.get(VARIABLE), products.cpuinfo())


@contextmanager
def using(choice: str) -> Iterator[None]:
    """Multiply so, whatever the environment chooses, in the thread that entered it; also a decorator."""
    token = _used.set(choice)
    try:
        yield
    finally:
        _used.reset(token)


def rounds() -> bool:
    """Whether products are rounded to bfloat16 here."""
    return (_used.get() or CHOICE) == "bfloat16"


def multiply(x: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
    """x W^T, [n, out]. x: [n, in], tile: W [out, in], and the result: all float32 or all bfloat16."""
    return products.linear(x, tile) if x.dtype == torch.float32 else torch.nn.functional.linear(x, tile)
