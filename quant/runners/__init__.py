"""Runners: one interface over the runtimes, so that one scorer and one clock serve every variant."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quant.errors import InputError
from quant.files import read_json

if TYPE_CHECKING:
    import torch

RUNTIMES = ("transformers", "llama_cpp")  # each a module here, with a class `Runner` and a function `import_libraries`


@dataclass(frozen=True)
class StoredTensor:
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

    def tensors(self) -> list[StoredTensor]:
        """Every tensor of weights that is held, shared storage once."""

    def census(self) -> dict[str, int]:
        """How many modules with a weight there are of each type."""


class RunnerWithStates(Runner, Protocol):
    """A runner that also shows what its head multiplies with. device: where it runs."""

    device: torch.device

    def logits_and_states(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the last hidden states they were made from, float32 [batch, length, width]."""


@dataclass(frozen=True)
class Options:
    """dtype: of activations, and of the weights that are not quantized; a runtime may have its own. device: cpu or cuda.
    threads: None leaves the runtime's default. max_tokens: most tokens the model will be asked to take at once, None for all it
    can; a runtime may set memory aside for them."""

    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Opening:
    """How a model's folder is opened, as its manifest says. weights: the folder of its files, its own or the one it points to;
    dtype: of activations, and of the weights that are not quantized."""

    runtime: str
    weights: Path
    dtype: str


def opening_of(folder: Path) -> Opening:
    """From the folder's manifest; a folder without one is a plain model of transformers. Raises InputError if it is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; run dvc repro to make it")
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    runtime = manifest.get("runtime", RUNTIMES[0])
    if runtime not in RUNTIMES:
        raise InputError(f"{folder}/manifest.json names the runtime {runtime!r}; expected one of {', '.join(RUNTIMES)}")
    weights = manifest.get("weights")
    if weights is not None and Path(weights).name != weights:
        raise InputError(f"{folder}/manifest.json points to {weights!r}; expected the name of a folder beside it")
    return Opening(runtime, folder.parent / weights if weights else folder, manifest.get("opened_as", "float32"))


def open_runner(folder: Path, dtype: str | None = None, device: str = "cpu", threads: int | None = None,
                max_tokens: int | None = None) -> Runner:
    """Load the model in `folder` with the runtime that its manifest names. dtype: None as the manifest says; see Options."""
    opening = opening_of(folder)
    runtime = import_module(f"quant.runners.{opening.runtime}")
    return runtime.Runner(opening.weights, Options(dtype or opening.dtype, device, threads, max_tokens))


def import_runtime(folder: Path, modules: tuple[str, ...] = ()) -> None:
    """Import what the model in `folder` needs, and `modules`, so that a measurement of loading it holds no import."""
    opening = opening_of(folder)
    import_module(f"quant.runners.{opening.runtime}").import_libraries(opening.weights)
    for module in modules:
        import_module(module)
