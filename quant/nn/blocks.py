"""A decoder block's whole work for one token as one program of compiled loops (quant.kernels.threads).

A token through a block is some forty calls of torch in Python, each a few microseconds, and a team of threads started for
each product. For the blocks named here the loops are called once, in the same order: norm, q k v, attention with the cache,
output, norm, feed-forward. The block's own forward does everything else: prompts, batches, masks, training, weights that
are not quantized, other dtypes and devices.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.cache_utils import DynamicCache

from quant.nn.cache import GrowingLayer
from quant.nn.modules import FusedLinear, QLinear, QNorm, QWeight


@dataclass(frozen=True)
class Parts:
    """Where a kind of block keeps what a program needs. up: into the activation; multiplier: of what comes out, or None."""

    attention: str
    qkv: tuple[str, ...]
    output: str
    norms: tuple[str, str]
    up: str
    multiplier: str | None
    activation: str
    down: str


GPT2 = Parts(
    attention="attn", qkv=("attn.c_attn",), output="attn.c_proj", norms=("ln_1", "ln_2"),
    up="mlp.c_fc", multiplier=None, activation="mlp.act", down="mlp.c_proj",
)  # fmt: skip
LLAMA = Parts(
    attention="self_attn", qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), output="self_attn.o_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    up="mlp.gate_proj", multiplier="mlp.up_proj", activation="mlp.act_fn", down="mlp.down_proj",
)  # fmt: skip


class BlockProgram:
    """The program of one block, made from its quantized weights; valid as long as `is_current`."""

    def __init__(self, block: nn.Module, parts: Parts, heads: int, key_heads: int, width: int, scaling: float):
        from quant.kernels import attention, loops
        from quant.kernels import threads as team

        self._team, self._attention = team, attention
        self._held: list = []  # tensors whose addresses the program has
        self._used: list[tuple[QWeight, object]] = []  # weights and the kernels that the program was made of
        self._hooks = [hooks for module in block.modules() if module is not block
                       for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._jobs: list[ctypes.Array] = []
        self._places: dict[str, list[int]] = {}  # by what is filled in: the numbers of the program it goes to
        self._offsets: list[tuple[int, int]] = []  # numbers of the program, and where in the room for results they point to
        self.hidden = _norm_weight(block.get_submodule(parts.norms[0])).numel()
        self._room = 0

        normed, qkv = self._results(self.hidden), self._results((heads + 2 * key_heads) * width)
        self._norm(block, parts.norms[0], "x", normed)
        at = qkv
        for name in parts.qkv:
            at += self._product(block, name, normed, at)
        attended = self._results(heads * width)
        job = team.Job()
        job[team.PARTS], job[team.WORK] = key_heads, attention.ATTEND_TO_CACHE
        job[attention.HEADS], job[attention.SHARED], job[attention.WIDTH] = key_heads, heads // key_heads, width
        job[attention.SCALING] = self._number(scaling)
        self._add(job, {
            attention.QUERY: qkv, attention.NEW_KEY: qkv + heads * width, attention.NEW_VALUE: qkv + (heads + key_heads) * width,
            attention.OUT: attended, attention.KEYS: "keys", attention.VALUES: "values", attention.LENGTH: "length",
            attention.KEYS_HEAD: "keys_head", attention.VALUES_HEAD: "values_head", attention.COS: "cos", attention.SIN: "sin",
        })  # fmt: skip
        middle = self._results(self.hidden)
        self._product(block, parts.output, attended, middle, loops.ADD, "x")
        self._norm(block, parts.norms[1], middle, normed)
        inner = self._results(_width(block, parts.up))
        self._product(block, parts.up, normed, inner, _activation(block.get_submodule(parts.activation)))
        if parts.multiplier:
            gated = self._results(_width(block, parts.multiplier))
            self._product(block, parts.multiplier, normed, gated, loops.MULTIPLY, inner)
            inner = gated
        self._product(block, parts.down, inner, "y", loops.ADD, middle)
        self._template = team.program_of(self._jobs)
        self._kind = ctypes.c_int64 * (len(self._template) // 8)

    def is_current(self) -> bool:
        """Whether weights are still those it was made of, and nobody wants to see what happens inside the block."""
        return all(weight._product is product for weight, product in self._used) and not any(self._hooks)

    def __call__(self, x: torch.Tensor, layer: GrowingLayer, turn: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """x float32 [1, 1, hidden]; the cache's layer, which gets one token longer; cos and sin of its position, or None."""
        layer.extend(layer.keys, layer.values, 1)
        keys, values = layer.keys, layer.values
        y, results = torch.empty_like(x), torch.empty(self._room)
        program = self._kind.from_buffer_copy(self._template)
        base = results.data_ptr()
        for place, offset in self._offsets:
            program[place] = base + 4 * offset
        numbers = {
            "x": x.data_ptr(), "y": y.data_ptr(), "keys": keys.data_ptr(), "values": values.data_ptr(), "length": keys.shape[2],
            "keys_head": keys.stride(1), "values_head": values.stride(1),
            "cos": turn[0].data_ptr() if turn else 0, "sin": turn[1].data_ptr() if turn else 0,
        }  # fmt: skip
        for name, places in self._places.items():
            for place in places:
                program[place] = numbers[name]
        self._team.perform(program)
        return y

    def _results(self, count: int) -> int:
        """Room for so many floats of a result; where it begins."""
        start, self._room = self._room, self._room + -(-count // 16) * 16  # whole lines of the cache
        return start

    def _number(self, value: float) -> int:
        self._held.append(torch.tensor([value], dtype=torch.float32))
        return self._held[-1].data_ptr()

    def _address(self, tensor: torch.Tensor | None) -> int:
        """Of float32 numbers that lie one after another; 0 of None. Raises Unfit for others."""
        if tensor is None:
            return 0
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Unfit
        self._held.append(tensor)
        return tensor.data_ptr()

    def _add(self, job: ctypes.Array, filled: dict[int, str | int]) -> None:
        """Append a job. filled: its numbers that are known when the program runs: by name, or where a result begins."""
        self._jobs.append(job)
        start = self._team.SIZE * len(self._jobs)  # the program's own job comes first
        for place, source in filled.items():
            if isinstance(source, str):
                self._places.setdefault(source, []).append(start + place)
            else:
                self._offsets.append((start + place, source))

    def _product(self, block: nn.Module, name: str, source: int, target, then: int = 0, other=None) -> int:
        """A linear's products, of all its parts; how many numbers they are."""
        from quant.kernels import cpu, loops

        linear = block.get_submodule(name)
        if isinstance(linear, FusedLinear) and linear.is_ordered:
            pieces = [getattr(linear, role) for role in linear.roles]
        else:
            pieces = [linear]
        bias, done = linear.bias, 0
        for piece in pieces:
            if not isinstance(piece, QLinear) or not isinstance(product := piece.weight.kernel(), cpu.Product):
                raise Unfit
            self._used.append((piece.weight, product))
            rows = piece.out_features
            job = product.step(self._address(None if bias is None else bias[done : done + rows]), then)
            filled = {loops.X: source, loops.Y: target if isinstance(target, str) else target + done}
            if other is not None:
                filled[loops.OTHER] = other
            self._add(job, filled)
            done += rows
        return done

    def _norm(self, block: nn.Module, name: str, source: str | int, target: int) -> None:
        from quant.kernels import norm

        module = block.get_submodule(name)
        kind = module.norm if isinstance(module, QNorm) else module
        if isinstance(module, QNorm):
            self._used.append((module.weight, module.weight._product))
        job = self._team.Job()
        job[self._team.PARTS], job[self._team.WORK], job[norm.WIDTH] = 1, norm.NORMALIZED, self.hidden
        job[norm.CENTERED] = int(isinstance(kind, nn.LayerNorm))
        job[norm.EPSILON] = self._number(kind.eps if isinstance(kind, nn.LayerNorm) else kind.variance_epsilon)
        job[norm.WEIGHT], job[norm.BIAS] = self._address(_norm_weight(module)), self._address(getattr(module, "bias", None))
        self._add(job, {norm.X: source, norm.Y: target})


class Unfit(Exception):
    """A block that has no program: something in it is not quantized, or not float32 on the CPU."""


def _width(block: nn.Module, name: str) -> int:
    """Of what a linear gives. Raises Unfit where it is not quantized."""
    linear = block.get_submodule(name)
    if not isinstance(linear, QLinear):
        raise Unfit
    return linear.out_features


def _activation(module: nn.Module) -> int:
    """Its number in quant.kernels.loops. Raises Unfit where that has none."""
    from quant.kernels import loops

    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return loops.GELU
    if isinstance(module, nn.SiLU | SiLUActivation):
        return loops.SILU
    raise Unfit


def _norm_weight(module: nn.Module) -> torch.Tensor:
    return module.weight.dense() if isinstance(module, QNorm) else module.weight


class DecodingBlock:
    """Comes before a block's own class: a token alone goes through its program, everything else to its own forward."""

    parts: Parts
    _program: BlockProgram | bool | None = None  # None: not made yet; False: there is none

    def shape(self) -> tuple[int, int, int, float]:
        """Heads, heads of keys, width of a head, and what scores are multiplied with."""
        raise NotImplementedError

    def decoded(self, x, cache, mask, turn) -> torch.Tensor | None:
        """What the block's forward returns, if this is a token alone that may see all before it; else None."""
        if x.shape[:2] != (1, 1) or mask is not None or type(cache) is not DynamicCache or x.requires_grad:
            return None
        index = self.get_submodule(self.parts.attention).layer_idx
        layer = cache.layers[index] if index < len(cache.layers) else None
        if type(layer) is not GrowingLayer or not layer.is_initialized or self._program is False:
            return None
        if x.dtype != torch.float32 or not x.is_contiguous() or x.device.type != "cpu":
            return None
        if any(t.dtype != torch.float32 or not t.is_contiguous() or t.numel() != layer.keys.shape[-1] for t in turn or ()):
            return None
        keys = layer.keys
        if keys.dtype != torch.float32 or keys.shape[0] != 1 or keys.requires_grad:
            return None
        if self._program is None or not self._program.is_current():
            try:
                self._program = BlockProgram(self, self.parts, *self.shape())
            except Unfit:
                self._program = False
                return None
            if not self._program.is_current():
                self._program = None
                return None
        return self._program(x, layer, turn)


class GPT2DecodingBlock(DecodingBlock):
    parts = GPT2

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
    parts = LLAMA

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


def take_over(block: nn.Module) -> None:
    """Give a block of a known kind its program, in place; others stay as they are."""
    kind = KINDS.get(type(block).__name__)
    if kind is not None:
        block.__class__ = type(type(block).__name__, (kind, type(block)), {})
