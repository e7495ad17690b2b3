"""Runners: one interface over the runtimes (transformers, llama.cpp), so that quality and speed are measured by the same code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quant.errors import InputError
from quant.outside import read_json, shown
from quant.refusal import require_made

if TYPE_CHECKING:
    import torch

RUNTIMES = tuple(sorted(path.stem for path in (Path(__file__).parent / "runtimes").glob("[a-z]*.py")))
DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_RUNTIME = "transformers"  # of a folder without a manifest, or whose manifest names none


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of weights in memory, or a part of one.

    roles: of quant.model.architectures, several for a fused or tied weight. part: codes, scales (including scales of scales),
    zeros, codebook, classes (of rows, which have a scheme each), floats (weights that are not quantized), or blocks (a GGUF type
    of unknown layout, codes and scales together). dtype: of torch, or a type of GGUF.
    """

    name: str
    roles: tuple[str, ...]
    part: str
    dtype: str
    bytes: int


class Runner(Protocol):
    """A loaded model. vocabulary: number of logits. context: most tokens of one call. is_thread_safe: whether several threads
    may call `logits` at once. is_compiled: whether `decode` runs a graph of torch.compile."""

    vocabulary: int
    context: int
    is_thread_safe: bool
    is_compiled: bool

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of every token, each row a text of its own: int64 [batch, length] -> float32 [batch, length, vocabulary]."""

    def prefill(self, tokens: torch.Tensor) -> int:
        """Empty the cache and read a prompt, int64 [length]; returns the most likely next token."""

    def decode(self, token: int) -> int:
        """Append a token to the cached text; returns the most likely next token."""

    def tensors(self) -> list[StoredTensor]:
        """Every tensor of weights in memory; shared storage is counted once."""

    def module_counts(self) -> dict[str, int]:
        """Number of modules with a weight, by type."""


class RunnerWithStates(Runner, Protocol):
    """A runner that also returns the input of its head. device: of the model and the logits."""

    device: torch.device

    def logits_and_states(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits as `logits` returns them, and the head's input, float32 [batch, length, width]."""


@dataclass(frozen=True)
class Options:
    """How a runtime opens a model.

    dtype: of activations and of weights that are not quantized, where the runtime lets one choose. device: cpu or cuda.
    threads: None keeps the runtime's default. max_tokens: the longest text, for which the runtime may reserve memory; None
    means the model's context.
    """

    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Opening:
    """The entries of a manifest that say how to open the folder. weights: the folder with the weights, itself or another one.
    dtype: of activations and of weights that are not quantized."""

    runtime: str
    weights: Path
    dtype: str


def opening_of(folder: Path) -> Opening:
    """Read a folder's manifest; a folder without one holds a plain transformers model. Raises InputError for a missing
    folder, and Refused for one that holds a refusal."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; make it with dvc repro")
    require_made(folder)
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    if not isinstance(manifest, dict):
        raise InputError(f"{folder}/manifest.json holds {shown(manifest)}; expected keys and values; make the folder again with "
                         "dvc repro")
    runtime = manifest.get("runtime", DEFAULT_RUNTIME)
    if runtime not in RUNTIMES:
        raise InputError(f"{folder}/manifest.json names the runtime {shown(runtime)}; expected one of "
                         f"{', '.join(RUNTIMES)}; make the folder again with dvc repro")
    weights = manifest.get("weights")
    if weights is not None and not (isinstance(weights, str) and Path(weights).name == weights != "" and "\0" not in weights):
        raise InputError(f"{folder}/manifest.json points to {shown(weights)}; expected the name of a folder beside it; make it "
                         "again with dvc repro")
    dtype = manifest.get("opened_as", "float32")
    if dtype not in DTYPES:
        raise InputError(f"{folder}/manifest.json opens it as {shown(dtype)}; expected one of {', '.join(DTYPES)}; make the "
                         "folder again with dvc repro")
    return Opening(runtime, folder.parent / weights if weights else folder, dtype)


def open_runner(folder: Path, dtype: str | None = None, device: str = "cpu", threads: int | None = None,
                max_tokens: int | None = None) -> Runner:
    """Load the model in `folder` with the runtime of its manifest. dtype: None means the manifest's; the rest is in Options."""
    opening = opening_of(folder)
    runtime = import_module(f"quant.runners.runtimes.{opening.runtime}")
    return runtime.Runner(opening.weights, Options(dtype or opening.dtype, device, threads, max_tokens))


def import_runtime(folder: Path, modules: tuple[str, ...] = ()) -> None:
    """Import the runtime's libraries and `modules`, so that a later measurement of loading does not include imports."""
    opening = opening_of(folder)
    import_module(f"quant.runners.runtimes.{opening.runtime}").import_libraries(opening.weights)
    for module in modules:
        import_module(module)
