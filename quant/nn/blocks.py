"""Runs a decoder block on one token as a single program of compiled loops (quant.kernels.threads).

For one token, a block makes some forty torch calls from Python, a few microseconds each, and starts a team of threads for each
product. For the blocks in KINDS a single call runs all loops, in the same order: norm, q k v, attention with the cache, output,
norm, feed-forward. The block's own forward does everything else: prompts, batches, masks, training, weights that are not
quantized, other dtypes and devices.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.cache_utils import DynamicCache

from quant.model.architectures import ARCHITECTURES
from quant.nn.cache import GrowingLayer
from quant.nn.modules import FusedLinear, QLinear, QNorm, QWeight

LINE = 16  # floats in a cache line of the processor


@dataclass(frozen=True)
class Parts:
    """Names of the modules inside one kind of block. norms: before attention, and before the feed-forward layer; up feeds the
    activation; multiplier is the linear that the activation's result is multiplied with, or None."""

    attention: str
    qkv: tuple[str, ...]
    output: str
    norms: tuple[str, str]
    up: str
    multiplier: str | None
    activation: str
    down: str


def parts_of(model_type: str, activation: str) -> Parts:
    """Look up the modules of an architecture's block by the roles of their weights. activation: a name, as it has no weight."""
    names: dict[str, list[str]] = {}
    for name, roles in ARCHITECTURES[model_type].inside.items():
        for role in (roles,) if isinstance(roles, str) else roles:
            names.setdefault(role, []).append(name)
    (output,), (up,), (down,), gate = names["o"], names["up"], names["down"], names.get("gate")
    return Parts(
        attention=output.rpartition(".")[0],
        qkv=tuple(dict.fromkeys(names["q"] + names["k"] + names["v"])),
        output=output,
        norms=tuple(names["norm"][:2]),
        up=gate[0] if gate else up,
        multiplier=up if gate else None,
        activation=activation,
        down=down,
    )


class Layout:
    """Named buffers of float32, one after another in a single tensor; each starts on a cache line."""

    def __init__(self, **counts: int):
        self.size = 0
        self._starts: dict[str, int] = {}
        for name, count in counts.items():
            self._starts[name] = self.size
            self.size += -(-count // LINE) * LINE

    def __getitem__(self, name: str) -> int:
        """Offset of a buffer, in floats."""
        return self._starts[name]


class BlockProgram:
    """The program of one block, made from its quantized weights; valid while `is_current` returns true."""

    def __init__(self, block: nn.Module, parts: Parts, heads: int, key_heads: int, width: int, scaling: float):
        from quant.kernels import attention, loops, threads  # here, because they are compiled when imported

        self._threads = threads
        self._held: list[torch.Tensor] = []  # kept alive: the program has their addresses
        self._versions: list[tuple[QWeight, int]] = []  # the weights built in, and their versions at that time
        self._hooks = [hooks for module in block.modules() if module is not block
                       for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._jobs: list[ctypes.Array] = []
        self._places: dict[str, list[int]] = {}  # name of a number known at run time -> its places in the program
        self._offsets: list[tuple[int, int]] = []  # (place of a buffer's address in the program, its offset)
        self.hidden = _norm_weight(block.get_submodule(parts.norms[0])).numel()
        inner = _width(block, parts.up)
        self._layout = Layout(
            normed=self.hidden, qkv=(heads + 2 * key_heads) * width, attended=heads * width, middle=self.hidden,
            inner=inner, gated=inner if parts.multiplier else 0,
        )  # fmt: skip
        at = self._layout
        self._norm(block, parts.norms[0], "x", at["normed"])
        start = at["qkv"]
        for name in parts.qkv:
            start += self._linear(block, name, at["normed"], start)
        job = threads.Job()
        job[threads.PARTS], job[threads.WORK] = key_heads, attention.ATTEND_TO_CACHE
        job[attention.HEADS], job[attention.QUERIES_PER_KV], job[attention.WIDTH] = key_heads, heads // key_heads, width
        job[attention.SCALING] = self._number(scaling)
        self._add(job, {
            attention.QUERY: at["qkv"], attention.NEW_KEY: at["qkv"] + heads * width,
            attention.NEW_VALUE: at["qkv"] + (heads + key_heads) * width, attention.OUT: at["attended"],
            attention.KEYS: "keys", attention.VALUES: "values", attention.LENGTH: "length",
            attention.KEYS_HEAD: "keys_head", attention.VALUES_HEAD: "values_head", attention.COS: "cos", attention.SIN: "sin",
        })  # fmt: skip
        self._linear(block, parts.output, at["attended"], at["middle"], loops.ADD, "x")
        self._norm(block, parts.norms[1], at["middle"], at["normed"])
        self._linear(block, parts.up, at["normed"], at["inner"], _activation(block.get_submodule(parts.activation)))
        if parts.multiplier:
            self._linear(block, parts.multiplier, at["normed"], at["gated"], loops.MULTIPLY, at["inner"])
        self._linear(block, parts.down, at["gated" if parts.multiplier else "inner"], "y", loops.ADD, at["middle"])
        self._template = threads.program_of(self._jobs)
        self._kind = ctypes.c_int64 * (len(self._template) // 8)

    def is_current(self) -> bool:
        """Whether no weight has changed since it was made and no module inside the block has a hook, which it would skip."""
        return all(weight.version == version for weight, version in self._versions) and not any(self._hooks)

    def __call__(
        self, x: torch.Tensor, layer: GrowingLayer, cos_sin: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Run the block on one token: float32 [1, 1, hidden] -> [1, 1, hidden].

        layer: the block's in the cache; grows by one token. cos_sin: RoPE's at the token's position, [1, 1, width] each, or None.
        """
        layer.extend(layer.keys, layer.values, 1)
        keys, values = layer.keys, layer.values
        y, buffers = torch.empty_like(x), torch.empty(self._layout.size)
        program = self._kind.from_buffer_copy(self._template)
        base = buffers.data_ptr()
        for place, offset in self._offsets:
            program[place] = base + 4 * offset
        numbers = {
            "x": x.data_ptr(), "y": y.data_ptr(), "keys": keys.data_ptr(), "values": values.data_ptr(), "length": keys.shape[2],
            "keys_head": keys.stride(1), "values_head": values.stride(1),
            "cos": cos_sin[0].data_ptr() if cos_sin else 0, "sin": cos_sin[1].data_ptr() if cos_sin else 0,
        }  # fmt: skip
        for name, places in self._places.items():
            for place in places:
                program[place] = numbers[name]
        self._threads.perform(program)
        return y

    def _number(self, value: float) -> int:
        """The address of a float32 with this value."""
        self._held.append(torch.tensor([value], dtype=torch.float32))
        return self._held[-1].data_ptr()

    def _address(self, tensor: torch.Tensor | None) -> int:
        """The address of a contiguous float32 tensor on the CPU; 0 for None. Raises Unfit for other tensors."""
        if tensor is None:
            return 0
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Unfit
        self._held.append(tensor)
        return tensor.data_ptr()

    def _add(self, job: ctypes.Array, filled: dict[int, str | int]) -> None:
        """Append a job. filled: place in the job -> the name of a number known at run time, or a buffer's offset."""
        self._jobs.append(job)
        start = self._threads.SIZE * len(self._jobs)  # the program's head comes first
        for place, source in filled.items():
            if isinstance(source, str):
                self._places.setdefault(source, []).append(start + place)
            else:
                self._offsets.append((start + place, source))

    def _linear(self, block: nn.Module, name: str, source: int, target: int | str, then: int = 0,
                other: int | str | None = None) -> int:
        """Append the products of a linear, one for each of its parts; returns its output width."""
        from quant.kernels import cpu, loops

        linear = block.get_submodule(name)
        if isinstance(linear, FusedLinear) and linear.is_ordered:
            pieces = [getattr(linear, role) for role in linear.roles]
        else:
            pieces = [linear]
        bias, start = linear.bias, 0
        for piece in pieces:
            weight = piece.weight if isinstance(piece, QLinear) else None  # may also be a weight in classes of rows
            if not isinstance(weight, QWeight) or not isinstance(matmul := weight.matmul(), cpu.Matmul):
                raise Unfit
            self._versions.append((weight, weight.version))
            rows = piece.out_features
            job = matmul.job(self._address(None if bias is None else bias[start : start + rows]), then)
            filled = {loops.X: source, loops.Y: target if isinstance(target, str) else target + start}
            filled |= {} if other is None else {loops.OTHER: other}
            self._add(job, filled)
            start += rows
        return start

    def _norm(self, block: nn.Module, name: str, source: int | str, target: int) -> None:
        from quant.kernels import norm

        module = block.get_submodule(name)
        kind = module.norm if isinstance(module, QNorm) else module
        if isinstance(module, QNorm):
            self._versions.append((module.weight, module.weight.version))
        job = self._threads.Job()
        job[self._threads.PARTS], job[self._threads.WORK], job[norm.WIDTH] = 1, norm.NORMALIZE, self.hidden
        job[norm.CENTERED] = int(isinstance(kind, nn.LayerNorm))
        job[norm.EPSILON] = self._number(kind.eps if isinstance(kind, nn.LayerNorm) else kind.variance_epsilon)
        job[norm.WEIGHT], job[norm.BIAS] = self._address(_norm_weight(module)), self._address(getattr(module, "bias", None))
        self._add(job, {norm.X: source, norm.Y: target})


class Unfit(Exception):
    """Raised for a block that no program can run: something in it is not quantized, or not float32 on the CPU."""


def _width(block: nn.Module, name: str) -> int:
    """Output width of a quantized linear. Raises Unfit for others."""
    linear = block.get_submodule(name)
    if not isinstance(linear, QLinear):
        raise Unfit
    return linear.out_features


def _activation(module: nn.Module) -> int:
    """Number of an activation function in quant.kernels.loops. Raises Unfit for others."""
    from quant.kernels import loops

    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return loops.GELU
    if isinstance(module, nn.SiLU | SiLUActivation):
        return loops.SILU
    raise Unfit


def _norm_weight(module: nn.Module) -> torch.Tensor:
    return module.weight.dense() if isinstance(module, QNorm) else module.weight


class DecodingBlock:
    """Mixin placed before the block's class: a single token runs the compiled program, all else the block's own forward."""

    parts: Parts
    _program: BlockProgram | bool | None = None  # None: not made yet; False: no program can run it

    def shape(self) -> tuple[int, int, int, float]:
        """Number of heads, number of key heads, width of a head, and the factor that scales the scores."""
        raise NotImplementedError

    def __getstate__(self) -> dict:
        # Without the program: a copy's must not have addresses of this block's weights.
        return {name: value for name, value in self.__dict__.items() if name != "_program"}

    def decoded(self, x, cache, mask, cos_sin) -> torch.Tensor | None:
        """Output of the block for a single token that attends to all before it; None where the block's own forward must run."""
        if x.shape[:2] != (1, 1) or mask is not None or type(cache) is not DynamicCache or x.requires_grad:
            return None
        index = self.get_submodule(self.parts.attention).layer_idx
        layer = cache.layers[index] if index < len(cache.layers) else None
        if type(layer) is not GrowingLayer or not layer.is_initialized or self._program is False:
            return None
        if x.dtype != torch.float32 or not x.is_contiguous() or x.device.type != "cpu":
            return None
        width = layer.keys.shape[-1]
        if any(t.dtype != torch.float32 or not t.is_contiguous() or t.numel() != width for t in cos_sin or ()):
            return None
        if layer.keys.dtype != torch.float32 or layer.keys.shape[0] != 1 or layer.keys.requires_grad:
            return None
        if self._program is None or not self._program.is_current():
            try:
                self._program = BlockProgram(self, self.parts, *self.shape())
            except Unfit:
                self._program = False
                return None
            if not self._program.is_current():  # there is a hook
                self._program = None
                return None
        return self._program(x, layer, cos_sin)


class GPT2DecodingBlock(DecodingBlock):
    parts = parts_of("gpt2", activation="mlp.act")

    def shape(self):
        attention = self.attn
        return attention.num_heads, attention.num_heads, attention.head_dim, attention.scaling

    def forward(self, hidden_states, past_key_values=None, attention_mask=None, encoder_hidden_states=None, **rest):
        if encoder_hidden_states is None:
            y = self.decoded(hidden_states, past_key_values, attention_mask, None)
            if y is not None:
                return y
        return super().forward(hidden_states, past_key_values, attention_mask, encoder_hidden_states, **rest)


class LlamaDecodingBlock(DecodingBlock):
    parts = parts_of("llama", activation="mlp.act_fn")

    def shape(self):
        attention = self.self_attn
        heads, key_heads = attention.config.num_attention_heads, attention.config.num_key_value_heads
        return heads, key_heads, attention.head_dim, attention.scaling

    def forward(self, hidden_states, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False,
                position_embeddings=None, **rest):
        if position_embeddings is not None:
            y = self.decoded(hidden_states, past_key_values, attention_mask, position_embeddings)
            if y is not None:
                return y
        return super().forward(
            hidden_states, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **rest
        )


KINDS = {"GPT2Block": GPT2DecodingBlock, "LlamaDecoderLayer": LlamaDecodingBlock}


def use_program(block: nn.Module) -> None:
    """Give a block of a known kind its program, in place; other modules stay as they are."""
    kind = KINDS.get(type(block).__name__)
    if kind is not None:
        block.__class__ = type(type(block).__name__, (kind, type(block)), {})
