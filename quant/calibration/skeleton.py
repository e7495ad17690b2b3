"""The skeleton of a model: transformers' modules, of which only one decoder block at a time holds its weights.

So the memory that a pass over the blocks takes does not grow with the number of blocks, for every architecture of transformers:
the model's own code embeds the tokens, prepares masks and positions, and finishes after the last block.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from quant.model.architectures import architecture_of
from quant.model.checkpoint import Checkpoint
from quant.model.config import read_config
from quant.model.inventory import Weight
from quant.model.opening import opened_by_transformers
from quant.tensor.products import FastProducts


class Stop(Exception):
    """Ends a forward pass once its hook has what it needs."""


def open_float(folder: Path) -> nn.Module:
    """The whole model in `folder` in float32, for what needs all of it at once; without gradients."""
    disable_progress_bar()
    attention = architecture_of(read_config(folder)).attention
    with opened_by_transformers(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True,
                                                     trust_remote_code=False, attn_implementation=attention)
    return model.eval().requires_grad_(False)


class Skeleton:
    """A checkpoint's model on the CPU, in float32. Weights outside the blocks are loaded, those of blocks are not."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.inventory = checkpoint, checkpoint.inventory
        with opened_by_transformers(checkpoint.folder), init_empty_weights(include_buffers=False):
            config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False,
                                                     attn_implementation=self.inventory.architecture.attention)
        self.model = model.eval()
        for weight in self.inventory.weights:
            if weight.block is None:
                put(self.model, weight.name, checkpoint.read(weight.tensor).float())
        if self.inventory.is_tied:
            self.model.get_output_embeddings().weight = self.model.get_input_embeddings().weight
        self._blocks: nn.ModuleList = self.model.get_submodule(self.inventory.architecture.blocks)
        self._wraps = self._returns_tuple()

    @property
    def count(self) -> int:
        """Number of decoder blocks."""
        return len(self._blocks)

    def block(self, number: int) -> nn.Module:
        """A copy of a decoder block, with its weights in float32."""
        block = copy.deepcopy(self._blocks[number])
        prefix = f"{self.inventory.architecture.blocks}.{number}."
        for weight in self.weights_of(number):
            put(block, weight.name.removeprefix(prefix), self.checkpoint.read(weight.tensor).float())
        return block

    def weights_of(self, number: int) -> list[Weight]:
        """The weights and biases of a block."""
        return [weight for weight in self.inventory.weights if weight.block == number]

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """What enters the first block, float32 [windows, length, width]. weights: to use for those of these names."""
        seen: list[torch.Tensor] = []

        def first(_: int, hidden: torch.Tensor, __: dict) -> None:
            seen.append(hidden)
            raise Stop

        with self._replaced(weights or {}), self._each_block(first):
            run_until_stop(self.model, tokens)
        return seen[0]

    @torch.no_grad()
    def arguments(self, tokens: torch.Tensor) -> list[dict]:
        """The keyword arguments that the model gives each block, such as masks, for tokens of this shape."""
        seen: dict[int, dict] = {}

        def note(number: int, hidden: torch.Tensor, kwargs: dict) -> torch.Tensor:
            seen[number] = kwargs
            return hidden

        with self._each_block(note):
            self.model(tokens, use_cache=False, logits_to_keep=1)
        return [seen[number] for number in range(self.count)]

    @torch.no_grad()
    @FastProducts()
    def logits(self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The logits, float32 [windows, length, vocabulary], from what leaves the last block. weights: as for `embed`."""
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.long)
        with self._replaced(weights or {}), self._each_block(lambda *_: hidden):
            return self.model(tokens, use_cache=False).logits

    def _returns_tuple(self) -> bool:
        """Whether a block returns a tuple, its hidden states first, rather than the hidden states."""
        tokens, given = torch.zeros((1, 4), dtype=torch.long), {}

        def first(_: int, hidden: torch.Tensor, kwargs: dict) -> None:
            given["hidden"], given["kwargs"] = hidden, kwargs
            raise Stop

        self._wraps = False
        with torch.no_grad(), self._each_block(first):
            run_until_stop(self.model, tokens)
        with torch.no_grad():
            return isinstance(self.block(0)(given["hidden"], **given["kwargs"]), tuple)

    @contextmanager
    def _each_block(self, function: Callable[[int, torch.Tensor, dict], torch.Tensor]) -> Iterator[None]:
        """Call the function instead of each block: (number, hidden states, keyword arguments) -> hidden states."""
        def forward_of(number: int) -> Callable:
            names = list(_parameters(self._blocks[number]))

            def forward(*args, **kwargs):
                kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
                hidden = function(number, kwargs.pop("hidden_states"), kwargs)
                return (hidden, None) if self._wraps else hidden

            return forward

        for number, block in enumerate(self._blocks):
            block.forward = forward_of(number)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward

    @contextmanager
    def _replaced(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        before = {name: self.model.get_parameter(name).data for name in weights}
        for name, value in weights.items():
            self.model.get_parameter(name).data = value
        try:
            yield
        finally:
            for name, value in before.items():
                self.model.get_parameter(name).data = value


@FastProducts()
def run_block(block: nn.Module, hidden: torch.Tensor, kwargs: dict) -> torch.Tensor:
    """The hidden states that leave a block."""
    output = block(hidden, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def run_until_stop(model: nn.Module, tokens: torch.Tensor) -> None:
    with suppress(Stop):
        model(tokens, use_cache=False)


def put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Give a module's parameter of this name a value."""
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, nn.Parameter(value, requires_grad=False))


def _parameters(block: nn.Module) -> list[str]:
    """Names of the positional arguments of a block's forward."""
    return [name for name in inspect.signature(type(block).forward).parameters if name != "self"]
