"""Runners: one interface over transformers and llama.cpp, so that one scorer and one clock serve every variant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from quant.errors import InputError


@dataclass(frozen=True)
class Held:
    """A tensor of weights in memory, or a part of one: what it is for, what it holds, and its bytes.

    roles: as in quant.model.architectures, several for a fused or tied weight. part: codes, scales (the scales of scales
    too), zeros, codebook, floats (weights that are not quantized), or blocks (codes and scales of a GGUF type whose
    layout this project does not know).
    """

    name: str
    roles: tuple[str, ...]
    part: str
    dtype: str
    bytes: int


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

    def tensors(self) -> list[Held]:
        """Every tensor of weights that is held, shared storage once."""

    def census(self) -> dict[str, int]:
        """How many modules with a weight there are of each type."""


def open_runner(folder: Path, dtype: str = "float32", device: str = "cpu", threads: int | None = None,
                room: int | None = None) -> Runner:
    """Load the model in `folder` with the runtime its files are for.

    dtype: of activations, and of the weights that are not quantized; llama.cpp has its own.
    threads: None leaves each runtime's default.
    room: most tokens it will be asked to take at once, None for all it can; llama.cpp sets memory aside for them.
    """
    if _is_gguf(folder):
        from quant.runners.llama_cpp.runner import LlamaCppRunner

        return LlamaCppRunner(Path(folder) / "model.gguf", threads, room)
    from quant.runners.transformers import TransformersRunner

    return TransformersRunner(folder, dtype, device, threads)


def import_runtime(folder: Path) -> None:
    """Import what the model in `folder` needs, so that a measurement of loading it holds no import."""
    if _is_gguf(folder):
        from quant.runners.llama_cpp.runner import import_libraries
    else:
        from quant.runners.transformers import import_libraries
    import_libraries(Path(folder))


def _is_gguf(folder: Path) -> bool:
    if not Path(folder).is_dir():
        raise InputError(f"{folder} does not exist; run dvc repro to make it")
    return (Path(folder) / "model.gguf").is_file()


def resolve_device(device: str) -> str:
    """"auto" is cuda where there is one."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}; expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch finds no CUDA GPU here; set device to auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
