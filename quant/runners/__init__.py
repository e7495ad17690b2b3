"""Runners: one interface over transformers and llama.cpp, so that one scorer and one clock serve every variant."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from quant.errors import InputError


class Runner(Protocol):
    """A loaded model. vocabulary: number of logits; context: most tokens it takes at once."""

    vocabulary: int
    context: int

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: int64 [batch, length], each row from an empty context -> float32 [batch, length, vocabulary]."""

    def prefill(self, tokens: torch.Tensor) -> int:
        """Start anew with a prompt, int64 [length]; the most likely next token."""

    def decode(self, token: int) -> int:
        """Append a token to the context; the most likely next one."""

    def tensors(self) -> list[tuple[str, str, int]]:
        """(name, dtype, bytes) of every tensor of weights that is held, shared storage once."""


def open_runner(folder: Path, dtype: str = "float32", device: str = "cpu", threads: int | None = None) -> Runner:
    """Load the model in `folder` with the runtime its files are for.

    dtype: of activations, and of the weights that are not quantized; llama.cpp has its own.
    threads: None leaves each runtime's default.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; run dvc repro to make it")
    if (folder / "model.gguf").is_file():
        from quant.runners.llama_cpp import LlamaCppRunner

        return LlamaCppRunner(folder / "model.gguf", threads)
    from quant.runners.transformers import TransformersRunner

    return TransformersRunner(folder, dtype, device, threads)


def resolve_device(device: str) -> str:
    """"auto" is cuda where there is one."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}; expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch finds no CUDA GPU here; set device to auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
