"""Every weight of a model, known from its config and the headers of its checkpoint: counted once, here, for everybody.

Checkpoints name and tie their weights in several ways. Some lack the prefix of the model's body, some hold masks beside
the weights, and a weight that embedding and head share may be stored under either name, or under both. The inventory
has each weight once, under the name that the model in transformers gives it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from quant.errors import InputError
from quant.model.architectures import Architecture, Range, architecture_of, fused_rows
from quant.model.safetensors_file import TensorInfo


@dataclass(frozen=True)
class Weight:
    """One tensor of weights. name: in the model, `transformer.h.0.mlp.c_fc.weight`; tensor: in the checkpoint; stored: dtype
    and shape there. module: the name without `.weight` or `.bias`; roles: several where it is fused; block: number of its
    decoder block, or None outside; transposed: stored as [in, out]; tied_head: the head multiplies with it as well."""

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
        """Whether it is a matrix of a decoder block, which is what quantizers take by default."""
        return self.block is not None and not self.is_bias and len(self.shape) == 2

    @property
    def all_roles(self) -> tuple[str, ...]:
        """Its roles, and "head" behind them where the head shares it."""
        return (*self.roles, "head") if self.tied_head else self.roles

    def name_of(self, role: str) -> str:
        """Of a role's rows: the module's name, with the role behind it where the matrix is fused."""
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
        """Numbers of all weights, shared ones once."""
        return sum(weight.count for weight in self.weights)

    @cached_property
    def stored_bytes(self) -> int:
        return sum(weight.stored.bytes for weight in self.weights)

    @property
    def dtype(self) -> str:
        """The dtype that most of the bytes have, such as "float16"."""
        sizes: dict = {}
        for weight in self.weights:
            sizes[weight.stored.dtype] = sizes.get(weight.stored.dtype, 0) + weight.stored.bytes
        return str(max(sizes, key=sizes.get)).removeprefix("torch.")

    @property
    def head(self) -> Weight:
        """The weight that the logits are made with: the embedding's where they share it."""
        name = self.architecture.main_embedding if self.is_tied else self.architecture.head
        for weight in self.weights:
            if weight.name == f"{name}.weight":
                return weight
        raise InputError(f"the checkpoint has no {name}.weight, which makes the logits; fetch the model again")

    @property
    def blocks(self) -> set[int]:
        """Numbers of the decoder blocks."""
        return {weight.block for weight in self.weights} - {None}

    def rows(self, weight: Weight) -> dict[str, list[Range]]:
        """Which rows [start, stop) of a weight belong to each of its roles; a vector is one row."""
        return fused_rows(self.config, weight.roles, weight.shape[0] if len(weight.shape) > 1 else 1)


def take_inventory(config: Mapping, tensors: Mapping[str, TensorInfo]) -> Inventory:
    """The weights of a model. tensors: what its checkpoint holds, by name. Raises InputError for an unknown architecture."""
    architecture = architecture_of(config)
    tied, embedding, head = architecture.is_tied(config), architecture.main_embedding, architecture.head
    full_names = {tensor: architecture.full_name(tensor) for tensor in tensors}
    if tied and f"{embedding}.weight" in full_names.values():
        full_names = {tensor: name for tensor, name in full_names.items() if name != f"{head}.weight"}  # a second copy
    elif tied:  # stored as the head alone
        full_names = {tensor: f"{embedding}.weight" if name == f"{head}.weight" else name for tensor, name in full_names.items()}
    weights = []
    for tensor, name in full_names.items():
        if re.fullmatch(architecture.ignored, name):
            continue
        module = name.removesuffix(".weight").removesuffix(".bias")
        weights.append(Weight(
            name, tensor, tensors[tensor], module, architecture.roles_of(module), architecture.block_of(module),
            transposed=architecture.is_transposed(module) and name.endswith(".weight"), tied_head=tied and module == embedding,
        ))  # fmt: skip
    return Inventory(config, tuple(weights))
