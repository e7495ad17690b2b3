"""A job: what to quantize, the model to quantize, and how the result is written."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SCALE_BYTES = 2  # of a scale or a real zero: these packages store them in the model's type, float16 as usual


@dataclass
class Matrix:
    """A weight as the package quantized it.

    codes: integers from 0, [out, in]. scales: [out, groups]. zeros: the code of the value 0, [out, groups], whole or not; None:
    half of the codes are below zero. weight: what the package itself makes of them, [out, in]. stored_bytes: of its tensors.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    weight: torch.Tensor
    stored_bytes: int


@dataclass
class Found:
    """matrices: by module. model: the quantized one, whose other weights may have changed; None: they did not. seconds: to
    quantize, without loading. notes: what the package did otherwise than asked."""

    matrices: dict[str, Matrix]
    model: torch.nn.Module | None
    seconds: float
    notes: list[str] = field(default_factory=list)


class Job:
    """The folder of a job."""

    def __init__(self, folder: Path):
        self.folder = folder
        values = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.base, self.package, self.algorithm = Path(values["base"]), values["package"], values["algorithm"]
        self.version = version(values["distribution"])
        self.bits, self.symmetric, self.iterations = values["bits"], values["symmetric"], values["iterations"]
        self.group_size: int | None = values["group_size"]  # None: a row
        self.modules: list[str] = values["modules"]
        torch.manual_seed(values["seed"])
        torch.set_num_threads(values["threads"])

    @property
    def windows(self) -> torch.Tensor:
        """The calibration tokens, int64 [windows, length]."""
        return load_file(self.folder / "windows.safetensors")["tokens"].long()

    def open(self) -> tuple[torch.nn.Module, list[str]]:
        """The model in float32 with every Conv1D replaced by an equal Linear, which all packages know, and a note of that."""
        model = self.open_plain()
        count = replace_conv1d(model)
        return model, [f"{count} Conv1D were made Linear before"] if count else []

    def open_plain(self) -> torch.nn.Module:
        """The model in float32, as transformers opens it."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32, local_files_only=True, use_safetensors=True,
                                                     trust_remote_code=False)
        return model.eval().requires_grad_(False)

    def tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.base, local_files_only=True, trust_remote_code=False)

    def groups(self, columns: int) -> int:
        """Weights of a group in a row of `columns`."""
        return self.group_size or columns

    def write(self, found: Found) -> None:
        """Write found.safetensors and found.json: each matrix, and the other weights that the package changed."""
        tensors = {}
        for name, matrix in found.matrices.items():
            low, high = int(matrix.codes.min()), int(matrix.codes.max())
            if low < 0 or high >= 2**self.bits:
                raise ValueError(f"{name} has codes from {low} to {high}; expected 0 to {2**self.bits - 1}")
            tensors[f"{name}.codes"] = matrix.codes.to(torch.uint8)
            tensors |= {f"{name}.scales": matrix.scales.float(), f"{name}.weight": matrix.weight.float()}
            if matrix.zeros is not None:
                tensors[f"{name}.zeros"] = matrix.zeros.float()
        changed = {} if found.model is None else self._changed(found.model)
        tensors |= {f"floats:{name}": value for name, value in changed.items()}
        save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()},
                  self.folder / "found.safetensors")
        about = {
            "quantized": {name: matrix.codes.shape[1] // matrix.scales.shape[1] for name, matrix in found.matrices.items()},
            "stored_bytes": {name: matrix.stored_bytes for name, matrix in found.matrices.items()},
            "seconds": found.seconds, "version": self.version, "notes": found.notes,
            "tied": None if found.model is None else is_tied(found.model),
        }  # fmt: skip
        (self.folder / "found.json").write_text(json.dumps(about), encoding="utf-8")

    def _changed(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Weights other than those quantized that differ from the base's, such as norms that took up factors (AWQ)."""
        before, after = self.open_plain(), dict(model.named_parameters())
        mine = {f"{name}.weight" for name in self.modules}
        return {name: after[name].data.float() for name, value in before.named_parameters()
                if name in after and name not in mine and after[name].shape == value.shape
                and not torch.equal(after[name].data.float(), value)}


def is_tied(model: torch.nn.Module) -> bool:
    """Whether embedding and head share their weight."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return torch.equal(head.weight, embedding.weight) if head.weight.shape == embedding.weight.shape else False


def replace_conv1d(model: torch.nn.Module) -> int:
    """Replace GPT-2's Conv1D, which stores its matrix as [in, out], by a Linear with the same numbers; returns how many."""
    from transformers.pytorch_utils import Conv1D

    places = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
              if isinstance(child, Conv1D)]
    for parent, name, child in places:
        linear = torch.nn.Linear(child.nx, child.nf, dtype=child.weight.dtype)
        linear.weight = torch.nn.Parameter(child.weight.data.T.contiguous(), requires_grad=False)
        linear.bias = torch.nn.Parameter(child.bias.data.clone(), requires_grad=False)
        setattr(parent, name, linear)
    return len(places)


class Clock:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

