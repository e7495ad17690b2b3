"""Opens the quantized linear layers of an artifact for a format that stores each layer as codes, scales and zeros of its own, and
writes the artifact with these layers in that format. Codes, scales and whole zeros are rearranged, never recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from quant.errors import InputError
from quant.files import sha256_of, write_json, write_manifest
from quant.model.architectures import Range, architecture_of
from quant.model.artifact_format import METHOD, check_quantization
from quant.model.checkpoint import Checkpoint
from quant.model.folder import copy_companions
from quant.model.opening import opened_by_transformers
from quant.model.safetensors_file import TensorInfo, write_checkpoint
from quant.progress import progress
from quant.tensor.packing import row_bytes, unpack
from quant.tensor.qtensor import QTensor
from quant.tensor.qtensor import layout as qtensor_layout
from quant.tensor.scheme import Scheme

REMEDY = "quantize it again with include: [attention, mlp]"


class Packing(NamedTuple):
    """What must be equal for all rows of a matrix. group_size: None for one scale per row."""

    bits: int
    group_size: int | None
    symmetric: bool
    scale_dtype: torch.dtype


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix that the artifact stores together: the name of their tensors, their ranges and their scheme."""

    name: str
    ranges: tuple[Range, ...]
    scheme: Scheme

    def layout(self, columns: int) -> dict[str, TensorInfo]:
        """The artifact's tensors that store them; columns: width of the matrix."""
        stored = qtensor_layout((sum(stop - start for start, stop in self.ranges), columns), self.scheme)
        return {f"{self.name}.weight.{key}": TensorInfo(dtype, shape) for key, (dtype, shape) in stored.items()}

    @property
    def packing(self) -> Packing:
        size = self.scheme.group_size if isinstance(self.scheme.group_size, int) else None
        # an 8-bit number times one of float16 has at most 18 significant bits
        dtype = torch.float32 if self.scheme.scale_dtype == "int8" else getattr(torch, self.scheme.scale_dtype)
        return Packing(self.scheme.bits, size, self.scheme.symmetric, dtype)

    def read(self, checkpoint: Checkpoint, columns: int) -> QTensor:
        """The stored rows, as a matrix."""
        stored = {name.rpartition(".")[2]: checkpoint.read(name) for name in self.layout(columns)}
        return QTensor.from_tensors(stored, (len(stored["codes"]), columns), self.scheme)


class Stored(NamedTuple):
    """A layer [rows, columns] as the artifact has it. codes: uint8 [rows, row_bytes], see quant.tensor.packing; scales:
    [rows, groups]; zeros: uint8 [groups, rows], the code of each group whose value is 0, of asymmetric schemes only."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None


@dataclass(frozen=True)
class Linear:
    """A linear layer to write: its module, its shape [out, in], and the parts of its rows, which share a packing."""

    module: str
    shape: tuple[int, int]
    parts: tuple[Rows, ...]

    @property
    def packing(self) -> Packing:
        return self.parts[0].packing

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.shape[1] // (self.packing.group_size or self.shape[1])

    def read(self, checkpoint: Checkpoint) -> Stored:
        """Its codes, scales and zeros, the parts put together; a scale of a whole tensor is repeated for every row."""
        packing, (count, columns) = self.packing, self.shape
        codes = torch.zeros((count, row_bytes(columns, packing.bits)), dtype=torch.uint8)
        scales = torch.empty((count, self.groups), dtype=packing.scale_dtype)
        zeros = torch.zeros((self.groups, count), dtype=torch.uint8)
        for part in self.parts:
            stored = part.read(checkpoint, columns)
            rows = torch.cat([torch.arange(start, stop) for start, stop in part.ranges])
            codes[rows] = stored.codes
            scales[rows] = stored.scales.rows(slice(None)).to(scales.dtype).expand(len(rows), -1)
            if stored.zeros is not None:
                zeros[:, rows] = unpack(stored.zeros, packing.bits, self.groups).T.expand(-1, len(rows))
        return Stored(codes, scales, None if packing.symmetric else zeros)


class Format(Protocol):
    """A format to write. name: as messages and the manifest have it; method: its quant_method."""

    name: str
    method: str

    def check(self, name: str, scheme: Scheme, shape: tuple[int, int]) -> None:
        """Raise InputError unless codes and scales of this scheme have the same meaning in the format. shape: [out, in]."""

    def layout(self, linear: Linear) -> dict[str, TensorInfo]:
        """The tensors of a layer."""

    def tensors(self, linear: Linear, stored: Stored) -> Iterator[tuple[str, torch.Tensor]]:
        """Make the tensors of `layout`."""

    def config(self, model: PreTrainedModel, linears: list[Linear]) -> dict:
        """The quantization_config of config.json. Raises InputError if it can't describe the layers together."""


def write_linears(artifact: Path, folder: Path, form: Format) -> list[Linear]:
    """Write the artifact in the folder `artifact` to the empty folder `folder`. Returns the quantized layers.

    Raises InputError, before anything is written, for the first module or tensor that the format can't represent exactly.
    """
    checkpoint = Checkpoint(artifact)
    saved = checkpoint.config.get("quantization_config") or {}
    if saved.get("quant_method") != METHOD:
        raise InputError(f"{artifact} is not an artifact of this pipeline: its quant_method is {saved.get('quant_method')!r}, "
                         f"expected {METHOD!r}; give the folder of a variant with method: quant")
    model = _skeleton(checkpoint, form)
    schemes = check_quantization(saved.get("schemes"), saved.get("modules"))
    linears = [_linear(model, name, parts, schemes, form) for name, parts in saved["modules"].items()]
    order = _order(checkpoint, model, linears, form)
    config = form.config(model, linears)
    layout: dict[str, TensorInfo] = {}
    for item in order:
        layout |= form.layout(item) if isinstance(item, Linear) else {item: checkpoint.tensors[item]}

    def produce() -> Iterator[tuple[str, torch.Tensor]]:
        for item in progress(order, "export"):
            if isinstance(item, Linear):
                yield from form.tensors(item, item.read(checkpoint))
            else:
                yield item, checkpoint.read(item)

    write_checkpoint(folder, layout, produce())
    write_json(folder / "config.json", {**checkpoint.config, "quantization_config": config})
    copy_companions(artifact, folder)
    source = artifact / "manifest.json"
    write_manifest(folder, {"method": form.method, "runtime": "transformers", "format": form.name,
                            "artifact_sha256": sha256_of(source) if source.is_file() else None})
    return linears


def in_float(model: PreTrainedModel, linears: list[Linear]) -> list[str]:
    """Names of the linear layers that are not quantized, the head among them."""
    packed = {linear.module for linear in linears}
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in packed]


def check_codes(form: str, name: str, scheme: Scheme, columns: int, bits: tuple[int, ...]) -> None:
    """Raise InputError unless the scheme has equal steps of one of these widths around a whole zero, in whole groups of a row of
    `columns`."""
    if scheme.codebook != "linear":
        raise InputError(f"{name} is {scheme.label}, a table of values; {form} has only equal steps: "
                         "quantize it again with codebook: linear")
    if scheme.bits not in bits:
        widths = " and ".join([", ".join(map(str, bits[:-1])), str(bits[-1])]) if len(bits) > 1 else str(bits[0])
        raise InputError(f"{name} is {scheme.label}; {form} is served at {widths} bits only: quantize it again at "
                         f"{'one of them' if len(bits) > 1 else f'bits: {bits[0]}'}")
    if not scheme.symmetric and scheme.zeros == "real":
        raise InputError(f"{name} is {scheme.label}: the value of its code 0 is a real number, and a zero point of {form} is "
                         "a whole one; quantize it again with zeros: whole, or symmetric: true")
    if scheme.double_quant:
        raise InputError(f"{name} is {scheme.label}: scales of 8 bits in blocks have no counterpart in {form}; quantize it "
                         "again with double_quant: false")
    if isinstance(scheme.group_size, int) and columns % scheme.group_size:
        raise InputError(f"{name} is {scheme.label}, and its rows of {columns} end with a shorter group; {form} has whole "
                         "groups only: quantize it again with a group_size that divides the rows, or row")


def _skeleton(checkpoint: Checkpoint, form: Format) -> PreTrainedModel:
    """The model on the meta device, for the types and shapes of its modules, without memory for weights."""
    architecture = architecture_of(checkpoint.config)
    if architecture.transposed:
        names = ", ".join(sorted(architecture.transposed))
        raise InputError(f"{checkpoint.config['model_type']} keeps {names} in Conv1D modules, which {form.method} does not "
                         "quantize (it knows nn.Linear); use llama.cpp's GGUF for this model")
    with opened_by_transformers(checkpoint.folder), torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False),
                                                trust_remote_code=False, attn_implementation=architecture.attention)


def _linear(model: PreTrainedModel, name: str, parts: Mapping[str, Mapping], schemes: list[Scheme], form: Format) -> Linear:
    """The layer to write for a quantized module. Raises InputError if the format can't represent it."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise InputError(f"the artifact quantizes {name}, which {type(model).__name__} does not have; "
                         "the artifact and its config.json belong to different models") from None
    if any("rows" in part for part in parts.values()):
        raise InputError(f"{name} has {len(parts)} classes of rows, each with a scheme of its own; {form.name} has one scheme "
                         "for a matrix: quantize it again without classes")
    if not isinstance(module, nn.Linear):
        raise InputError(f"{name} is a quantized {type(module).__name__}; {form.name} is written for linear layers only: "
                         f"{REMEDY}")
    rows = []
    for role, part in parts.items():
        if part["scheme"] is None:
            raise InputError(f"{name} is one matrix of {', '.join(parts)}, and {role} stays in float; {form.name} has one scheme "
                             f"for a matrix: {REMEDY}")
        scheme = schemes[part["scheme"]]
        form.check(name, scheme, (module.out_features, module.in_features))
        rows.append(Rows(name if len(parts) == 1 else f"{name}.{role}", tuple(map(tuple, part["ranges"])), scheme))
    if len({part.packing for part in rows}) > 1:
        labels = ", ".join(f"{role} {part.scheme.label}" for role, part in zip(parts, rows, strict=True))
        raise InputError(f"{name} is one matrix in several schemes ({labels}); {form.name} has one for a matrix: "
                         "quantize it again with one scheme for all of them")
    ranges = sorted(r for part in rows for r in part.ranges)
    if [start for start, _ in ranges] + [module.out_features] != [0] + [stop for _, stop in ranges]:
        raise InputError(f"{name}: its parts have rows {ranges}, expected 0 to {module.out_features} in all; "
                         "quantize the model again")
    return Linear(name, (module.out_features, module.in_features), tuple(rows))


def _order(checkpoint: Checkpoint, model: PreTrainedModel, linears: list[Linear], form: Format) -> list[str | Linear]:
    """Tensors to copy and layers to write, in the artifact's order.

    Raises InputError for a stored tensor that is missing, unknown, or has another dtype or shape than expected.
    """
    linear_of = {}
    for linear in linears:
        for part in linear.parts:
            for tensor, info in part.layout(linear.shape[1]).items():
                found = checkpoint.tensors.get(tensor)
                if found is None or (found.dtype, found.shape) != (info.dtype, info.shape):
                    raise InputError(f"{tensor} is {_described(found)}, expected {_described(info)}; quantize the model again")
                linear_of[tensor] = linear
    parameters = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    packed = {f"{linear.module}.weight" for linear in linears}
    order: dict[str | Linear, None] = {}
    for tensor, info in checkpoint.tensors.items():
        if tensor not in linear_of and (parameters.get(tensor) != info.shape or tensor in packed):
            raise InputError(f"{tensor} {_described(info)} is not a tensor of {form.name} or {type(model).__name__}; "
                             "quantize it again with plain scales")
        order[linear_of.get(tensor, tensor)] = None
    return list(order)


def _described(info: TensorInfo | None) -> str:
    return "missing" if info is None else f"{str(info.dtype).removeprefix('torch.')} {list(info.shape)}"
