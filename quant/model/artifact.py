"""Writes an artifact: a checkpoint quantized by a recipe, as a folder that transformers opens.

Tensors are read, quantized and written one at a time. They are named by the model's modules: `h.0.attn.c_proj.weight.codes`, or
`h.0.attn.c_attn.q.weight.codes` where the q rows of a fused matrix have a scheme of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from quant.errors import InputError
from quant.files import atomic_folder, write_json, write_manifest
from quant.model.artifact_format import quantization_config
from quant.model.checkpoint import Checkpoint
from quant.model.folder import copy_companions
from quant.model.inventory import Inventory
from quant.model.needs import estimate
from quant.model.recipe import Recipe
from quant.model.safetensors_file import TensorInfo, write_checkpoint
from quant.model.selection import Part, Selected, select
from quant.progress import progress
from quant.tensor.qtensor import layout as qtensor_layout
from quant.tensor.qtensor import quantize


def write_artifact(base: Path, recipe: Recipe, out: Path, about: Mapping | None = None,
                   tell: Callable[[str], None] = lambda _: None) -> None:
    """Quantize the checkpoint in `base` by `recipe` into the folder `out`, which appears whole or not at all.

    about: further entries of the manifest. tell: receives one line on the memory, disk and time needed, before the work starts.
    Raises InputError, before anything is written, if the recipe does not fit the model or the artifact does not fit the disk.
    """
    checkpoint = Checkpoint(base)
    weights = select(checkpoint.inventory, recipe)
    layout = artifact_layout(checkpoint.inventory, weights)
    needs = estimate(checkpoint.tensors, layout, weights, out)
    needs.check(out)
    tell(str(needs))
    with atomic_folder(out) as folder:
        write_checkpoint(folder, layout, _tensors(checkpoint, weights))
        config = {**checkpoint.config, "quantization_config": quantization_config(weights)}
        write_json(folder / "config.json", config)
        copy_companions(base, folder)
        write_manifest(folder, {**(about or {}), "scheme": recipe.scheme.label})


def artifact_layout(inventory: Inventory, weights: list[Selected]) -> dict[str, TensorInfo]:
    """Every tensor of the artifact, in the order in which they are written."""
    quantized = {selected.weight.name: selected for selected in weights if selected.is_quantized}
    layout: dict[str, TensorInfo] = {}
    for weight in inventory.weights:
        layout |= _stored(quantized[weight.name]) if weight.name in quantized else {weight.name: weight.stored}
    return layout


def _tensors(checkpoint: Checkpoint, weights: list[Selected]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of `artifact_layout`, computed one weight at a time."""
    quantized = {selected.weight.name: selected for selected in weights if selected.is_quantized}
    buffer = checkpoint.buffer()
    for weight in progress(checkpoint.inventory.weights, "quantize", size=lambda weight: weight.stored.bytes):
        value = checkpoint.read(weight.tensor, buffer)
        if weight.name in quantized:
            yield from _quantized(quantized[weight.name], value)
        else:
            yield weight.name, value


def _stored(selected: Selected) -> dict[str, TensorInfo]:
    """The tensors that store a quantized weight."""
    stored = {}
    for part in selected.parts:
        name, shape = selected.name_of(part), selected.shape_of(part)
        if part.scheme:
            for key, (dtype, size) in qtensor_layout(shape, part.scheme).items():
                stored[f"{name}.weight.{key}"] = TensorInfo(dtype, size)
        else:
            stored[f"{name}.weight"] = TensorInfo(selected.weight.stored.dtype, shape)
    return stored


def _quantized(selected: Selected, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    value = value.T if selected.weight.transposed else value
    for part in selected.parts:
        name, rows = selected.name_of(part), _rows(selected, part, value)
        if part.scheme is None:
            yield f"{name}.weight", rows
            continue
        try:
            tensor = quantize(rows, part.scheme)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        for key, stored in tensor.tensors().items():
            yield f"{name}.weight.{key}", stored


def _rows(selected: Selected, part: Part, value: torch.Tensor) -> torch.Tensor:
    if len(selected.parts) == 1:
        return value
    return torch.cat([value[start:stop] for start, stop in part.ranges])
