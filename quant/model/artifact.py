"""Writes an artifact: a quantized checkpoint, as a folder that transformers opens.

Tensors are read, quantized and written one at a time. They are named by the model's modules: `h.0.attn.c_proj.weight.codes`, or
`h.0.attn.c_attn.q.weight.codes` where the q rows of a fused matrix have a scheme of their own, or `wte.weight.class0.codes` where
the rows of a matrix are in classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch

from quant.cluster.pieces import over_machines
from quant.errors import InputError
from quant.files import atomic_folder, write_json, write_manifest, write_text
from quant.model.artifact_format import quantization_config
from quant.model.checkpoint import Checkpoint
from quant.model.folder import copy_companions
from quant.model.inventory import Inventory, Weight
from quant.model.needs import estimate
from quant.model.recipe import Recipe
from quant.model.safetensors_file import TensorInfo, shards_of, write_index, write_shard
from quant.model.selection import Part, RowClass, Selected, select
from quant.progress import progress
from quant.tensor.qtensor import QTensor, quantize
from quant.tensor.qtensor import layout as qtensor_layout

# Quantizes a part of a weight to a QTensor of the part's scheme, given its rows [part.rows, in] in the checkpoint's dtype, which
# are valid during the call only.
Quantizer = Callable[[Selected, Part | RowClass, torch.Tensor], QTensor]


def write_artifact(base: Path, recipe: Recipe, out: Path, about: Mapping | None = None,
                   tell: Callable[[str], None] = lambda _: None) -> None:
    """Quantize the checkpoint in `base` by `recipe` into the folder `out`; about and tell: see `write_selected`.

    Raises InputError, before anything is written, if the recipe does not fit the model or the artifact does not fit the disk.
    """
    checkpoint = Checkpoint(base)
    weights = select(checkpoint.inventory, recipe)
    write_selected(checkpoint, weights, out, {**(about or {}), "scheme": recipe.scheme.label}, tell)


def round_to_nearest(_: Selected, part: Part | RowClass, rows: torch.Tensor) -> QTensor:
    """The quantizer of a recipe: each weight gets the nearest code."""
    return quantize(rows, part.scheme)


def write_selected(checkpoint: Checkpoint, weights: list[Selected], out: Path, about: Mapping | None = None,
                   tell: Callable[[str], None] = lambda _: None, quantizer: Quantizer = round_to_nearest,
                   replaced: Mapping[str, torch.Tensor] | None = None, files: Mapping[str, str] | None = None) -> None:
    """Write the checkpoint, with its `weights` quantized, to the folder `out`, which appears whole or not at all.

    about: further entries of the manifest. tell: receives one line on the memory, disk and time needed, before the work starts.
    quantizer: is called for each part that has a scheme, in the order of the checkpoint; twice for a weight at the border of two
    files. On a cluster each file is a task, which gets a copy of the quantizer. replaced: new values of weights that are not
    quantized, such as biases, by their name in the model; they are stored in the dtype of the old ones.
    files: further files by name, with their text.
    Raises InputError, before anything is written, if a value to replace does not fit the model or the artifact not the disk.
    """
    values = _replacements(checkpoint.inventory, weights, replaced or {})
    layout = artifact_layout(checkpoint.inventory, weights)
    needs = estimate(checkpoint.tensors, layout, weights, out)
    needs.check(out)
    tell(str(needs))
    with atomic_folder(out) as folder:
        shards = shards_of(folder, layout)
        over_machines(partial(_make_shard, checkpoint, weights, quantizer, values), list(shards.items()))
        for left in folder.glob(".*.partial"):  # of tasks that died
            left.unlink()
        write_index(folder, shards)
        config = {**checkpoint.config, "quantization_config": quantization_config(weights)}
        write_json(folder / "config.json", config)
        copy_companions(checkpoint.folder, folder)
        for name, text in (files or {}).items():
            write_text(folder / name, text)
        write_manifest(folder, about or {})


def artifact_layout(inventory: Inventory, weights: list[Selected]) -> dict[str, TensorInfo]:
    """Every tensor of the artifact, in the order in which they are written."""
    quantized = {selected.weight.name: selected for selected in weights if selected.is_quantized}
    layout: dict[str, TensorInfo] = {}
    for weight in inventory.weights:
        layout |= _stored(quantized[weight.name]) if weight.name in quantized else {weight.name: weight.stored}
    return layout


def _make_shard(checkpoint: Checkpoint, weights: list[Selected], quantizer: Quantizer, replaced: Mapping[str, torch.Tensor],
                shard: tuple[Path, Mapping[str, TensorInfo]]) -> None:
    """Write one file of an artifact, with its tensors, from names alone: any machine can do it, and again."""
    path, layout = shard
    partial_path = path.with_name(f".{path.name}.{os.urandom(4).hex()}.partial")
    write_shard(partial_path, layout, _tensors(checkpoint, weights, quantizer, replaced, layout))
    partial_path.replace(path)


def _tensors(checkpoint: Checkpoint, weights: list[Selected], quantizer: Quantizer, replaced: Mapping[str, torch.Tensor],
             wanted: Mapping[str, TensorInfo]) -> Iterator[tuple[str, torch.Tensor]]:
    """Consecutive tensors of `artifact_layout`, computed one weight at a time. A weight at the border of two shards is computed
    for both."""
    quantized = {selected.weight.name: selected for selected in weights if selected.is_quantized}
    needed = [weight for weight in checkpoint.inventory.weights
              if wanted.keys() & (_stored(quantized[weight.name]) if weight.name in quantized else {weight.name})]
    buffer = checkpoint.buffer()
    for weight in progress(needed, "quantize", size=lambda weight: weight.stored.bytes):
        if weight.name in replaced:
            yield weight.name, replaced[weight.name]
        elif weight.name in quantized:
            made = _quantized(quantized[weight.name], checkpoint.read(weight.tensor, buffer), quantizer)
            yield from ((name, tensor) for name, tensor in made if name in wanted)
        else:
            yield weight.name, checkpoint.read(weight.tensor, buffer)


def _stored(selected: Selected) -> dict[str, TensorInfo]:
    """The tensors that store a quantized weight."""
    stored = {}
    if selected.classes:
        stored[f"{selected.weight.module}.weight.classes"] = TensorInfo(torch.uint8, selected.weight.shape[:1])
    for part in selected.parts:
        name, shape = selected.tensor_of(part), selected.shape_of(part)
        if part.scheme:
            for key, (dtype, size) in qtensor_layout(shape, part.scheme).items():
                stored[f"{name}.{key}"] = TensorInfo(dtype, size)
        else:
            stored[name] = TensorInfo(selected.weight.stored.dtype, shape)
    return stored


def _quantized(selected: Selected, value: torch.Tensor, quantizer: Quantizer) -> Iterator[tuple[str, torch.Tensor]]:
    value = value.T if selected.weight.transposed else value
    if selected.classes:
        yield f"{selected.weight.module}.weight.classes", selected.class_numbers
    for part in selected.parts:
        rows = value if len(selected.parts) == 1 else value[selected.rows_of(part)]
        if part.scheme is None:
            yield selected.tensor_of(part), rows
            continue
        try:
            tensor = quantizer(selected, part, rows)
        except InputError as error:
            raise error.within(selected.name_of(part)) from None
        if (tensor.shape, tensor.scheme) != (selected.shape_of(part), part.scheme):
            raise ValueError(f"{selected.name_of(part)} was quantized as {tensor.scheme.label} {list(tensor.shape)}, expected "
                             f"{part.scheme.label} {list(selected.shape_of(part))}")
        for key, stored in tensor.tensors().items():
            yield f"{selected.tensor_of(part)}.{key}", stored


def _replacements(inventory: Inventory, weights: list[Selected], replaced: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The values to replace, in the dtypes in which they are stored. Raises InputError for one that does not fit the model."""
    held: dict[str, Weight] = {weight.name: weight for weight in inventory.weights}
    quantized = {selected.weight.name for selected in weights if selected.is_quantized}
    values = {}
    for name, value in replaced.items():
        if name not in held:
            similar = ", ".join(get_close_matches(name, held)) or ", ".join(list(held)[:3])
            raise InputError(f"a new value is given for {name}, which the model does not have; expected one of its weights, such "
                             f"as {similar}")
        if name in quantized:
            raise InputError(f"a new value is given for {name}, which is quantized; leave one of the two out")
        stored = held[name].stored
        if tuple(value.shape) != stored.shape:
            raise InputError(f"the new value of {name} has shape {list(value.shape)}; expected {list(stored.shape)}")
        values[name] = value.detach().cpu().to(stored.dtype)
        if not torch.isfinite(values[name]).all():
            raise InputError(f"the new value of {name} is not finite in {str(stored.dtype).removeprefix('torch.')}; expected "
                             "finite numbers in the dtype of the checkpoint")
    return values
