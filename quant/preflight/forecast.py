"""What each variant will weigh, and whether it can be made: from a checkpoint's header and config alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quant.model.architectures import Architecture, architecture_of
from quant.model.checkpoint import TensorInfo
from quant.errors import InputError
from quant.methods.bitsandbytes import build as bitsandbytes
from quant.methods.llama_cpp import quantize as gguf
from quant.methods.llama_cpp import sizes as gguf_sizes
from quant.tensor.qtensor import layout
from quant.tensor.scheme import Scheme
from quant.select import Recipe, plan


@dataclass(frozen=True)
class Forecast:
    """stage: the DVC stage that makes it; file_bytes on disk and held_bytes of weights in memory, scales included;
    obstacle: why it can't be made (then both are None); note: what else to know."""

    name: str
    stage: str
    file_bytes: float | None = None
    held_bytes: float | None = None
    obstacle: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Model:
    """A model as its files say without their weights: config, and dtype and shape of every tensor."""

    config: Mapping
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.config)

    @property
    def weights(self) -> dict[str, TensorInfo]:
        """By their full names, tied ones once, no masks."""
        architecture = self.architecture
        return {architecture.full_name(name): info for name, info in self.tensors.items()
                if architecture.counts(name, self.config)}

    @property
    def parameters(self) -> int:
        return sum(info.count for info in self.weights.values())

    def is_quantizable(self, name: str) -> bool:
        """Whether it is a matrix of a decoder block, which is what bitsandbytes and most recipes quantize."""
        return name.endswith(".weight") and self.architecture.block_of(name) is not None and len(self.weights[name].shape) == 2

    def matrix(self, name: str) -> tuple[int, ...]:
        """Its shape as [out, in], which some architectures store the other way round."""
        shape = self.weights[name].shape
        return tuple(shape[::-1] if self.architecture.is_transposed(name.removesuffix(".weight")) else shape)


def forecasts(model: Model, params: Mapping, gguf_obstacle: str | None) -> list[Forecast]:
    """Every variant of params.yaml, in the order of the table. gguf_obstacle: what keeps llama.cpp from this model."""
    files = sum(info.bytes for info in model.tensors.values())
    found = [Forecast("base", "-", files, 4 * model.parameters), Forecast("bf16", "-", files, 2 * model.parameters)]
    start = Scheme.from_dict(params["quant"])
    for name, values in (params["recipes"] or {}).items():
        found.append(_attempt(name, f"quantize@{name}", lambda values=values: _scratch(model, values or {}, start)))
    for name, values in (params["bnb"] or {}).items():
        found.append(_attempt(f"bnb-{name}", f"bnb@{name}", lambda values=values: _bitsandbytes(model, values or {})))
    for name, values in (params["gguf"] or {}).items():
        if gguf_obstacle:
            found.append(Forecast(f"gguf-{name}", f"gguf@{name}", obstacle=gguf_obstacle))
        else:
            found.append(_attempt(f"gguf-{name}", f"gguf@{name}", lambda values=values: _gguf(model, values or {})))
    return found


def _attempt(name: str, stage: str, make) -> Forecast:
    try:
        file_bytes, held_bytes, note = make()
    except InputError as error:
        return Forecast(name, stage, obstacle=str(error))
    return Forecast(name, stage, file_bytes, held_bytes, note=note)


def _scratch(model: Model, values: Mapping, start: Scheme) -> tuple[float, float, str | None]:
    recipe = Recipe.from_dict(values, start)
    file_bytes = held_bytes = 0
    kept = {name for name in model.tensors if model.architecture.counts(name, model.config)}
    for weight in plan(model.tensors, model.config, recipe):
        itemsize = model.tensors[weight.tensor].dtype.itemsize
        kept.discard(weight.tensor)
        for part in weight.parts:
            shape = weight.shape_of(part)
            if part.scheme:
                stored = sum(dtype.itemsize * math.prod(size) for dtype, size in layout(shape, part.scheme).values())
                file_bytes, held_bytes = file_bytes + stored, held_bytes + stored
            else:  # a runner holds in 32 bits what is not quantized
                file_bytes, held_bytes = file_bytes + itemsize * math.prod(shape), held_bytes + 4 * math.prod(shape)
    file_bytes += sum(model.tensors[name].bytes for name in kept)
    held_bytes += sum(4 * model.tensors[name].count for name in kept)
    return file_bytes, held_bytes, None


def _bitsandbytes(model: Model, values: Mapping) -> tuple[float, float, str | None]:
    spec = bitsandbytes.Spec.from_dict(values)
    total = 0.0
    for name, info in model.weights.items():
        if not model.is_quantizable(name):
            total += 4 * info.count
        elif spec.type == "int8":
            total += info.count + 4 * model.matrix(name)[0]
        else:
            blocks = math.ceil(info.count / 64)
            total += math.ceil(info.count / 2) + 4 * 16
            total += blocks + 4 * math.ceil(blocks / 256) + 4 * 256 + 4 if spec.double_quant else 4 * blocks
    return total, total, None


def _gguf(model: Model, values: Mapping) -> tuple[float, float, str | None]:
    spec = gguf.Spec.from_dict(values)
    total, unfit, matrices = 0.0, {}, 0
    for name in model.weights:
        roles = model.architecture.roles_of(name.removesuffix(".weight"))
        kinds = _gguf_types(model, name, roles, spec.type)
        total += sum(gguf_sizes.stored_bytes(kind, model.weights[name].shape) for kind in kinds) / len(kinds)
        if model.is_quantizable(name):
            matrices += 1
            row = model.matrix(name)[-1]
            if gguf_sizes.fitting(gguf_sizes.main_type(spec.type), row) != gguf_sizes.main_type(spec.type):
                unfit.setdefault((row, gguf_sizes.fitting(gguf_sizes.main_type(spec.type), row)), []).append(name)
    note = "; ".join(f"{len(names)} of {matrices} matrices have rows of {row}, which its blocks don't divide: {kind} instead"
                     for (row, kind), names in unfit.items())
    return total, total, note or None


def _gguf_types(model: Model, name: str, roles: Sequence[str], file_type: str) -> list[str]:
    architecture = model.architecture
    module = name.removesuffix(".weight")
    is_position = roles == ("embedding",) and module != architecture.main_embedding
    if is_position or roles in (("norm",), ("other",)):
        return ["F32"]
    gives_logits = module == architecture.head or (architecture.is_tied(model.config) and module == architecture.main_embedding)
    return gguf_sizes.types_of(file_type, roles, model.matrix(name), gives_logits)
