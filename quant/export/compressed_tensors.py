"""Writes an artifact as compressed-tensors' `pack-quantized`, which transformers opens and vLLM serves.

Codes, scales and whole zeros are rearranged, never recomputed. The weight [out, in] of a linear layer becomes

    weight_packed      int32 [out, words]     the bytes of quant.tensor.packing, each row padded to whole 32-bit words
    weight_scale       [out, groups]          in the dtype it has in the artifact; float32 where that has int8 times float16
    weight_zero_point  int32 [words, groups]  of asymmetric schemes: each column packed as a row of codes is
    weight_shape       int64 [2]              out, in

A code c means c - 2^(bits-1) in both formats, and so does a whole zero. Both formats have all 2^bits levels, and scales may be
negative. The scale of a whole tensor is repeated for every row, because vLLM reads one per row ("channel") or per group only;
this also covers fused matrices whose roles have a scale each.
Format: https://github.com/vllm-project/compressed-tensors, compressors/pack_quantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from quant.errors import InputError
from quant.files import write_json, write_manifest
from quant.model.architectures import Range, architecture_of
from quant.model.artifact_format import METHOD, check_quantization
from quant.model.checkpoint import Checkpoint
from quant.model.folder import copy_companions
from quant.model.safetensors_file import TensorInfo, write_checkpoint
from quant.progress import progress
from quant.tensor.packing import pack, row_bytes, unpack
from quant.tensor.qtensor import QTensor
from quant.tensor.qtensor import layout as qtensor_layout
from quant.tensor.scheme import Scheme

FORMAT = "pack-quantized"
BITS = (4, 8)  # vLLM has kernels for these
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


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer to write: its module, its shape [out, in], and the parts of its rows, which share a packing."""

    module: str
    shape: tuple[int, int]
    parts: tuple[Rows, ...]

    def layout(self) -> dict[str, TensorInfo]:
        packing = self.parts[0].packing
        rows, columns = self.shape
        groups = columns // (packing.group_size or columns)
        stored = {
            "packed": TensorInfo(torch.int32, (rows, _words(columns, packing.bits))),
            "scale": TensorInfo(packing.scale_dtype, (rows, groups)),
            "shape": TensorInfo(torch.int64, (2,)),
        }
        if not packing.symmetric:
            stored["zero_point"] = TensorInfo(torch.int32, (_words(rows, packing.bits), groups))
        return {f"{self.module}.weight_{name}": info for name, info in stored.items()}

    def tensors(self, checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of `layout`, from the artifact's codes and scales."""
        packing, (count, columns) = self.parts[0].packing, self.shape
        codes = torch.zeros((count, row_bytes(columns, packing.bits)), dtype=torch.uint8)
        scale = torch.empty((count, columns // (packing.group_size or columns)), dtype=packing.scale_dtype)
        zeros = torch.zeros((scale.shape[1], count), dtype=torch.uint8)
        for part in self.parts:
            stored = part.read(checkpoint, columns)
            rows = torch.cat([torch.arange(start, stop) for start, stop in part.ranges])
            codes[rows] = stored.codes
            scale[rows] = stored.scales.rows(slice(None)).to(scale.dtype).expand(len(rows), -1)
            if stored.zeros is not None:
                zeros[:, rows] = unpack(stored.zeros, packing.bits, scale.shape[1]).T.expand(-1, len(rows))
        yield f"{self.module}.weight_packed", _as_words(codes)
        yield f"{self.module}.weight_scale", scale
        yield f"{self.module}.weight_shape", torch.tensor(self.shape)
        if not packing.symmetric:
            yield f"{self.module}.weight_zero_point", _as_words(pack(zeros, packing.bits)).T.contiguous()


def write(artifact: Path, folder: Path) -> None:
    """Write the artifact in the folder `artifact` to the empty folder `folder`.

    Raises InputError, before anything is written, for the first module or tensor that the format can't represent exactly.
    """
    checkpoint = Checkpoint(artifact)
    saved = checkpoint.config.get("quantization_config") or {}
    if saved.get("quant_method") != METHOD:
        raise InputError(f"{artifact} is not an artifact of this pipeline: its quant_method is {saved.get('quant_method')!r}, "
                         f"expected {METHOD!r}; give the folder of a variant with method: quant")
    model = _skeleton(checkpoint)
    schemes = check_quantization(saved.get("schemes"), saved.get("modules"))
    linears = [_packed_linear(model, name, parts, schemes) for name, parts in saved["modules"].items()]
    order = _order(checkpoint, model, linears)
    layout: dict[str, TensorInfo] = {}
    for item in order:
        layout |= item.layout() if isinstance(item, PackedLinear) else {item: checkpoint.tensors[item]}

    def produce() -> Iterator[tuple[str, torch.Tensor]]:
        for item in progress(order, "export"):
            if isinstance(item, PackedLinear):
                yield from item.tensors(checkpoint)
            else:
                yield item, checkpoint.read(item)

    write_checkpoint(folder, layout, produce())
    write_json(folder / "config.json", {**checkpoint.config, "quantization_config": quantization_config(model, linears)})
    copy_companions(artifact, folder)
    write_manifest(folder, {"method": "compressed-tensors", "runtime": "transformers", "format": FORMAT})


def quantization_config(model: PreTrainedModel, linears: list[PackedLinear]) -> dict:
    """The config that compressed-tensors reads: groups of layers by full name, and the layers left in floating point."""
    groups: dict[tuple[int, int | None, bool], list[str]] = {}
    for linear in linears:
        groups.setdefault(linear.parts[0].packing[:3], []).append(linear.module)
    packed = {linear.module for linear in linears}
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                "targets": targets,
                "format": FORMAT,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "group" if group_size else "channel",
                    "group_size": group_size,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for i, ((bits, group_size, symmetric), targets) in enumerate(groups.items())
        },
        "ignore": [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in packed],
    }


def _skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model on the meta device, for the types and shapes of its modules, without memory for weights."""
    architecture = architecture_of(checkpoint.config)
    if architecture.transposed:
        names = ", ".join(sorted(architecture.transposed))
        raise InputError(f"{checkpoint.config['model_type']} keeps {names} in Conv1D modules, which compressed-tensors does not "
                         "quantize (it knows nn.Linear); use llama.cpp's GGUF for this model")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False),
                                                trust_remote_code=False, attn_implementation=architecture.attention)


def _packed_linear(model: PreTrainedModel, name: str, parts: Mapping[str, Mapping], schemes: list[Scheme]) -> PackedLinear:
    """The layer to write for a quantized module. Raises InputError if the format can't represent it."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise InputError(f"the artifact quantizes {name}, which {type(model).__name__} does not have; "
                         "the artifact and its config.json belong to different models") from None
    if any("rows" in part for part in parts.values()):
        raise InputError(f"{name} has {len(parts)} classes of rows, each with a scheme of its own; {FORMAT} has one scheme for a "
                         "matrix: quantize it again without classes")
    if not isinstance(module, nn.Linear):
        raise InputError(f"{name} is a quantized {type(module).__name__}; {FORMAT} is written for linear layers only: "
                         f"{REMEDY}")
    rows = []
    for role, part in parts.items():
        if part["scheme"] is None:
            raise InputError(f"{name} is one matrix of {', '.join(parts)}, and {role} stays in float; {FORMAT} has one scheme "
                             f"for a matrix: {REMEDY}")
        scheme = schemes[part["scheme"]]
        _check_scheme(name, scheme, module.in_features)
        rows.append(Rows(name if len(parts) == 1 else f"{name}.{role}", tuple(map(tuple, part["ranges"])), scheme))
    if len({part.packing for part in rows}) > 1:
        labels = ", ".join(f"{role} {part.scheme.label}" for role, part in zip(parts, rows, strict=True))
        raise InputError(f"{name} is one matrix in several schemes ({labels}); {FORMAT} has one for a matrix: "
                         "quantize it again with one scheme for all of them")
    ranges = sorted(r for part in rows for r in part.ranges)
    if [start for start, _ in ranges] + [module.out_features] != [0] + [stop for _, stop in ranges]:
        raise InputError(f"{name}: its parts have rows {ranges}, expected 0 to {module.out_features} in all; "
                         "quantize the model again")
    return PackedLinear(name, (module.out_features, module.in_features), tuple(rows))


def _words(count: int, bits: int) -> int:
    """32-bit words of a row of codes."""
    return -(-row_bytes(count, bits) // 4)


def _as_words(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, bytes] -> int32 [rows, words], each row padded with zeros."""
    return pad(codes, (0, -codes.shape[1] % 4)).view(torch.int32)


def _check_scheme(name: str, scheme: Scheme, columns: int) -> None:
    """Raise InputError unless codes and scales of this scheme have the same meaning in the format."""
    if scheme.codebook != "linear":
        raise InputError(f"{name} is {scheme.label}, a table of values; {FORMAT} has only equal steps: "
                         "quantize it again with codebook: linear")
    if scheme.bits not in BITS:
        raise InputError(f"{name} is {scheme.label}; {FORMAT} is served at 4 and 8 bits only: quantize it again at one of them")
    if not scheme.symmetric and scheme.zeros == "real":
        raise InputError(f"{name} is {scheme.label}: the value of its code 0 is a real number, and a zero point of {FORMAT} is "
                         "a whole one; quantize it again with zeros: whole, or symmetric: true")
    if scheme.double_quant:
        raise InputError(f"{name} is {scheme.label}: scales of 8 bits in blocks have no counterpart in {FORMAT}; quantize it "
                         "again with double_quant: false")
    if isinstance(scheme.group_size, int) and columns % scheme.group_size:
        raise InputError(f"{name} is {scheme.label}, and its rows of {columns} end with a shorter group; {FORMAT} has whole "
                         "groups only: quantize it again with a group_size that divides the rows, or row")


def _order(checkpoint: Checkpoint, model: PreTrainedModel, linears: list[PackedLinear]) -> list[str | PackedLinear]:
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
    order: dict[str | PackedLinear, None] = {}
    for tensor, info in checkpoint.tensors.items():
        if tensor not in linear_of and (parameters.get(tensor) != info.shape or tensor in packed):
            raise InputError(f"{tensor} {_described(info)} is not a tensor of {FORMAT} or {type(model).__name__}; "
                             "quantize it again with plain scales")
        order[linear_of.get(tensor, tensor)] = None
    return list(order)


def _described(info: TensorInfo | None) -> str:
    return "missing" if info is None else f"{str(info.dtype).removeprefix('torch.')} {list(info.shape)}"
