"""The inventory: every weight of a model once, under its name in transformers, from the config and the checkpoint's headers.

Checkpoints differ in how they name and tie their weights. Some lack the prefix of the model's body, some hold masks beside
the weights, and a weight that the embedding and the head share may be stored under either name, or under both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from quant.errors import InputError
from quant.model.architectures import Architecture, Range, architecture_of, fused_rows
from quant.model.config import BLOCK_COUNTS, check_shapes, first_of
from quant.model.safetensors_file import TensorInfo


@dataclass(frozen=True)
class Weight:
    """One weight, or bias, of a model.

    name: in the model, such as `transformer.h.0.mlp.c_fc.weight`. tensor: in the checkpoint. stored: dtype and shape there.
    module: the name without `.weight` or `.bias`. roles: several where it is fused. block: number of its decoder block; None
    outside. transposed: stored as [in, out]. tied_head: the head shares it.
    """

    name: str
    tensor: str
    stored: TensorInfo
    module: str
    roles: tuple[str, ...]
    block: int | None
    transposed: bool
    tied_head: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in], however it is stored; [n] for a vector."""
        return self.stored.shape[::-1] if self.transposed else self.stored.shape

    @property
    def count(self) -> int:
        return self.stored.count

    @property
    def is_bias(self) -> bool:
        return not self.name.endswith(".weight")

    @property
    def is_block_matrix(self) -> bool:
        """Whether it is a matrix of a decoder block; quantizers take these by default."""
        return self.block is not None and not self.is_bias and len(self.shape) == 2

    def name_of(self, role: str) -> str:
        """The name of a role's rows: the module's name, followed by the role where the matrix is fused."""
        return self.module if len(self.roles) == 1 else f"{self.module}.{role}"


@dataclass(frozen=True)
class Inventory:
    """All weights of a model, in the order of its checkpoint."""

    config: Mapping
    weights: tuple[Weight, ...]

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.config)

    @property
    def is_tied(self) -> bool:
        return self.architecture.is_tied(self.config)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, shared weights counted once."""
        return sum(weight.count for weight in self.weights)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of the weights in the checkpoint, without a second copy of a tied weight."""
        return sum(weight.stored.bytes for weight in self.weights)

    @property
    def dtype(self) -> str:
        """The dtype in which most bytes are stored, such as "float16"."""
        sizes: dict = {}
        for weight in self.weights:
            sizes[weight.stored.dtype] = sizes.get(weight.stored.dtype, 0) + weight.stored.bytes
        return str(max(sizes, key=sizes.get)).removeprefix("torch.")

    @property
    def head(self) -> Weight:
        """The weight that computes the logits: the embedding's where they share it."""
        name = self.architecture.main_embedding if self.is_tied else self.architecture.head
        return next(weight for weight in self.weights if weight.name == f"{name}.weight")

    @property
    def blocks(self) -> set[int]:
        """Numbers of the decoder blocks."""
        return {weight.block for weight in self.weights} - {None}

    def rows(self, weight: Weight) -> dict[str, list[Range]]:
        """Row ranges [start, stop) of each role of a weight; a vector is one row."""
        return fused_rows(self.config, weight.roles, weight.shape[0] if len(weight.shape) > 1 else 1)


def take_inventory(config: Mapping, tensors: Mapping[str, TensorInfo]) -> Inventory:
    """The weights of a model. tensors: of its checkpoint, by name.

    Raises InputError for an unknown architecture, and for a checkpoint that lacks a weight or has it under an unknown name:
    transformers would open it with random numbers in that weight's place.
    """
    architecture = architecture_of(config)
    tied, embedding = architecture.is_tied(config), architecture.main_embedding
    weights: dict[str, Weight] = {}
    for tensor, name in _names_in_model(architecture, tied, tensors).items():
        if re.fullmatch(architecture.ignored, name):
            continue
        if name in weights:
            raise InputError(f"the checkpoint stores {name} twice, as {weights[name].tensor} and as {tensor}; expected it once")
        module = name.removesuffix(".weight").removesuffix(".bias")
        weights[name] = Weight(
            name, tensor, tensors[tensor], module, architecture.roles_of(module), architecture.block_of(module),
            transposed=architecture.is_transposed(module) and name.endswith(".weight"), tied_head=tied and module == embedding,
        )  # fmt: skip
    _require_complete(architecture, config, tied, weights)
    inventory = Inventory(config, tuple(weights.values()))
    check_shapes(inventory)
    return inventory


def second_copy_of_tied(config: Mapping, tensors: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """The two tensors, embedding and head, of a checkpoint that stores a tied weight under both names; None if it does not."""
    architecture = architecture_of(config)
    tensor_of = {architecture.full_name(tensor): tensor for tensor in tensors}
    both = (f"{architecture.main_embedding}.weight", f"{architecture.head}.weight")
    return (tensor_of[both[0]], tensor_of[both[1]]) if architecture.is_tied(config) and set(both) <= set(tensor_of) else None


def _names_in_model(architecture: Architecture, tied: bool, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Tensor -> name in the model. A tied weight has the embedding's name; its second copy, as the head, is left out."""
    names = {tensor: architecture.full_name(tensor) for tensor in tensors}
    embedding, head = (f"{module}.weight" for module in (architecture.main_embedding, architecture.head))
    if not tied:
        return names
    if embedding in names.values():
        return {tensor: name for tensor, name in names.items() if name != head}
    return {tensor: embedding if name == head else name for tensor, name in names.items()}


def _require_complete(architecture: Architecture, config: Mapping, tied: bool, found: Mapping[str, Weight]) -> None:
    """Raise InputError for the first weight that every model of the architecture has and the checkpoint lacks."""
    embedding, head = architecture.main_embedding, architecture.head
    numbers = {weight.block for weight in found.values()} - {None}
    blocks = first_of(config, BLOCK_COUNTS) or max(numbers, default=-1) + 1
    inside = [module for module, role in architecture.inside.items() if role != "norm"]
    for module in [embedding, *(f"{architecture.blocks}.{block}.{module}" for block in range(blocks) for module in inside)]:
        if f"{module}.weight" not in found:
            raise InputError(f"the checkpoint has no {module}.weight{_stored_otherwise(module, found)}")
    if not tied and f"{head}.weight" not in found:
        raise InputError(f"the checkpoint has no {head}.weight, and its config does not tie the head to the embedding; fetch the "
                         "whole model, with its head, or set tie_word_embeddings to true in config.json if they share a weight")


def _stored_otherwise(module: str, found: Mapping[str, Weight]) -> str:
    """The end of a message about a missing weight: the tensor that seems to be it, and a remedy."""
    stored = [weight.tensor for weight in found.values() if weight.roles == ("other",)]
    tail = module.rpartition(".")[2]
    similar = [tensor for tensor in stored if re.search(rf"(^|\.){re.escape(tail)}\.weight$", tensor)]
    match = get_close_matches(f"{module}.weight", similar, n=1, cutoff=0)
    if match:
        return (f", but {match[0]}: the names carry the prefix of a wrapper, such as torch.compile, DataParallel or a multimodal "
                "model; save the inner language model with save_pretrained and give that folder")
    return "; fetch the model again"
