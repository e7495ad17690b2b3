"""The precision in which weights are multiplied with several rows of activations: those of a prompt, or of a batch of sequences.

    exact      weight and activations in float32
    bfloat16   of a prompt, both are rounded to bfloat16, and so is each output; sums are float32. Batches are multiplied exactly
    int8       activations of a prompt and of a batch are rounded to 8 bits, with a scale for 64 columns, as llama.cpp rounds
               them with one for 32; codes stay what they are, and tables, such as NF4's, become bytes. Needs AVX-512 with VNNI.
               Weights in groups that are no multiple of 64 codes, or with tables of more than 16 values, are multiplied exactly

Each adds 0.1 mnat of divergence at most for the project's model, about as much as 8 bits a weight do;
`python -m quant.benches.precision` measures it. A single row, as in decoding, is always multiplied exactly: memory sets its pace.
The environment variable QUANT_PRECISION chooses; without it products are exact, so that a model predicts what was measured:
quality is measured with exact products, whatever is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from quant.compiled.lanes import LANES, features
from quant.errors import InputError
from quant.tensor import products

VARIABLE = "QUANT_PRECISION"
CHOICES = ("exact", "bfloat16", "int8")
FLAGS = ("avx512_bf16", "amx_bf16", "bf16 ")  # in Linux's description of processors that multiply bfloat16

_used: ContextVar[str | None] = ContextVar("used", default=None)


def multiplies_bfloat16(cpuinfo: str) -> bool:
    """Whether a processor does, by Linux's description of it."""
    return any(flag in cpuinfo for flag in FLAGS)


def multiplies_int8(lanes: int, found: set[str]) -> bool:
    """Whether vectors of so many floats, and the processor's features by LLVM's names, are enough."""
    return lanes == 16 and "avx512vnni" in found


def chosen(wanted: str | None, cpuinfo: str, has_int8: bool = False) -> str:
    """What is wanted, or else "exact". cpuinfo: describes the processor, as Linux does; has_int8: by `multiplies_int8`.

    Raises InputError for another word, and for a precision in which this processor does not multiply.
    """
    if wanted and wanted not in CHOICES:
        raise InputError(f"{VARIABLE} is {wanted!r}; expected {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")
    if wanted == "bfloat16" and not multiplies_bfloat16(cpuinfo):
        raise InputError(f"{VARIABLE} is bfloat16, which this processor does not multiply; unset it or choose exact")
    if wanted == "int8" and not has_int8:
        raise InputError(f"{VARIABLE} is int8, which needs vectors of 16 floats and AVX-512 VNNI; unset it or choose exact")
    return wanted or "exact"


HAS_INT8 = multiplies_int8(LANES, features())
CHOICE = chosen(os.environ.get(VARIABLE), products.cpuinfo(), HAS_INT8)


@contextmanager
def using(choice: str) -> Iterator[None]:
    """Multiply so, whatever the environment chooses, in the thread that entered it; also a decorator."""
    token = _used.set(choice)
    try:
        yield
    finally:
        _used.reset(token)


def current() -> str:
    """The precision of products here."""
    return _used.get() or CHOICE


def multiply(x: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
    """x W^T, [n, out]. x: [n, in], tile: W [out, in], and the result: all float32 or all bfloat16."""
    return products.linear(x, tile) if x.dtype == torch.float32 else torch.nn.functional.linear(x, tile)
