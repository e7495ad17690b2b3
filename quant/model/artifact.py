"""From a checkpoint and a recipe to an artifact: a folder that transformers opens.

Streams: a tensor is read, quantized and written before the next is touched. Names in the artifact are those of the
model's modules: `h.0.attn.c_proj.weight.codes`, or `h.0.attn.c_attn.q.weight.codes` where the q rows of a fused
matrix are treated apart.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from quant.model.architectures import architecture_of
from quant.model.checkpoint import Checkpoint, TensorInfo, write_checkpoint
from quant.errors import InputError
from quant.files import whole_folder, write_json, write_manifest
from quant.model.needs import estimate
from quant.progress import progress
from quant.tensor.qtensor import layout as qtensor_layout
from quant.tensor.qtensor import quantize
from quant.select import Part, Recipe, Weight, plan

METHOD = "qtensor"
COMPANIONS = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
              "generation_config.json", "chat_template*", "spiece.model")
COMPANION_KINDS = (".json", ".txt", ".model", ".jinja")  # never code, never pickle


def write_artifact(base: Path, recipe: Recipe, out: Path, tell: Callable[[str], None] = lambda _: None) -> None:
    """Quantize the checkpoint in `base` by `recipe` into the folder `out`, which appears whole or not at all.

    tell: is given one line about the memory, disk and time it will take, before it starts.
    Raises InputError if the recipe does not fit the model or the artifact the disk; nothing has been written then.
    """
    checkpoint = Checkpoint(base)
    weights = plan(checkpoint.tensors, checkpoint.config, recipe)
    layout = artifact_layout(checkpoint, weights)
    needs = estimate(checkpoint.tensors, layout, weights, out)
    needs.check(out)
    tell(str(needs))
    with whole_folder(out) as folder:
        write_checkpoint(folder, layout, _tensors(checkpoint, weights))
        config = {**checkpoint.config, "quantization_config": quantization_config(weights)}
        write_json(folder / "config.json", config)
        copy_companions(base, folder)
        write_manifest(folder, {"method": METHOD, "scheme": recipe.scheme.label})


def copy_companions(base: Path, folder: Path) -> None:
    """The tokenizer and what else belongs to a model besides its weights and config."""
    for pattern in COMPANIONS:
        for path in sorted(Path(base).glob(pattern)):
            if path.suffix in COMPANION_KINDS:
                shutil.copyfile(path, folder / path.name)


def quantization_config(weights: list[Weight]) -> dict:
    """What transformers needs to build the modules: module -> parts by name -> scheme, each scheme written once."""
    schemes: list[dict] = []
    modules = {}
    for weight in weights:
        if not weight.is_quantized:
            continue
        parts = {}
        for part in weight.parts:
            if part.scheme and part.scheme.to_dict() not in schemes:
                schemes.append(part.scheme.to_dict())
            scheme = schemes.index(part.scheme.to_dict()) if part.scheme else None
            parts[part.name] = {"scheme": scheme, "ranges": [list(r) for r in part.ranges]}
        modules[weight.module] = parts
    return {"quant_method": METHOD, "schemes": schemes, "modules": modules}


def artifact_layout(checkpoint: Checkpoint, weights: list[Weight]) -> dict[str, TensorInfo]:
    """Every tensor of the artifact, in order, known before any is made."""
    quantized = {weight.tensor: weight for weight in weights if weight.is_quantized}
    architecture = architecture_of(checkpoint.config)
    layout: dict[str, TensorInfo] = {}
    for tensor in _counted(checkpoint):
        info = checkpoint.tensors[tensor]
        layout |= _stored(quantized[tensor], info) if tensor in quantized else {architecture.full_name(tensor): info}
    return layout


def _tensors(checkpoint: Checkpoint, weights: list[Weight]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the layout, made one weight at a time."""
    quantized = {weight.tensor: weight for weight in weights if weight.is_quantized}
    architecture = architecture_of(checkpoint.config)
    buffer = checkpoint.buffer()
    for tensor in progress(_counted(checkpoint), "quantize", size=lambda name: checkpoint.tensors[name].bytes):
        value = checkpoint.read(tensor, buffer)
        if tensor in quantized:
            yield from _quantized(quantized[tensor], value)
        else:
            yield architecture.full_name(tensor), value


def _counted(checkpoint: Checkpoint) -> list[str]:
    architecture = architecture_of(checkpoint.config)
    return [tensor for tensor in checkpoint.tensors if architecture.counts(tensor, checkpoint.config)]


def _stored(weight: Weight, info: TensorInfo) -> Mapping[str, TensorInfo]:
    """Layout of the tensors that a quantized weight turns into."""
    stored = {}
    for part in weight.parts:
        name, shape = weight.name_of(part), weight.shape_of(part)
        if part.scheme:
            for key, (dtype, size) in qtensor_layout(shape, part.scheme).items():
                stored[f"{name}.weight.{key}"] = TensorInfo(dtype, size)
        else:
            stored[f"{name}.weight"] = TensorInfo(info.dtype, shape)
    return stored


def _quantized(weight: Weight, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    value = value.T if weight.transposed else value
    for part in weight.parts:
        name, rows = weight.name_of(part), _rows(weight, part, value)
        if part.scheme is None:
            yield f"{name}.weight", rows
            continue
        try:
            tensor = quantize(rows, part.scheme)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        for key, stored in tensor.tensors().items():
            yield f"{name}.weight.{key}", stored


def _rows(weight: Weight, part: Part, value: torch.Tensor) -> torch.Tensor:
    if len(weight.parts) == 1:
        return value
    return torch.cat([value[start:stop] for start, stop in part.ranges])
