"""Runs consecutive decoder blocks on a token as a single program of compiled loops (quant.compiled.threads).

For one token, of one or of a few sequences, a block makes some forty torch calls from Python, a few microseconds each, and starts
a team of threads for each product. Here the first of some blocks runs the loops of all of them in a single call, in the same
order: norm, q k v, attention with the cache, output, norm, feed-forward. The others see that the token has passed through them,
and return it as it is. A block's own forward does everything else: prompts, large batches, masks, training, other dtypes and
devices, and blocks that no program can run.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from quant.nn.cache import GrowingLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from quant.nn.block_plan import BlockPlan
    from quant.nn.program import Heads, Program, ProgramBuilder

MOST_SEQUENCES = 8
PASSED = "_passed_blocks"  # attribute of a token's hidden state: the stack, and the number of blocks that it has passed


@dataclass
class Stack:
    """All decoder blocks of a model. is_used: false lets every block run its own forward. programs: number of the first block and
    number of sequences, and precision -> the program from there on, and its plans; None where no program can run the block."""

    blocks: list[nn.Module]
    config: PreTrainedConfig
    is_used: bool = True
    programs: dict[tuple[int, int, str], tuple[Program, list[BlockPlan]] | None] = field(default_factory=dict)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "programs": {}}  # a copy's programs must not have addresses of these blocks' weights

    def program_at(self, number: int, count: int) -> tuple[Program, list[BlockPlan]] | None:
        """The program of the most blocks from a number on that has no hook in its way, for `count` sequences."""
        from quant.kernels import precision  # here, because numba is slow to import

        key = number, count, precision.current()
        found = self.programs.get(key, False)
        if found is False or (found and not found[0].is_current()):
            found = self.programs[key] = self._build(number, count)
            if found and not found[0].is_current():  # there is a hook
                del self.programs[key]
                return None
        return found

    def _build(self, number: int, count: int) -> tuple[Program, list[BlockPlan]] | None:
        from quant.nn.block_plan import plan_of  # here, because loops are compiled when imported
        from quant.nn.program import Program, ProgramBuilder, Unfit

        plans: list[BlockPlan] = []
        for block in self.blocks[number:]:
            if plans and (_has_hooks(block) or _has_hooks(self.blocks[number + len(plans) - 1])
                          or any(_has_hooks(module) for module in block.modules())):
                break
            try:
                plan = plan_of(block, self.config.model_type, self.config)
                _append(ProgramBuilder(count), block, plan, "x", "y")  # alone, to see whether it fits
            except Unfit:
                break
            plans.append(plan)
        if not plans:
            return None
        builder = ProgramBuilder(count)
        chosen = self.blocks[number : number + len(plans)]
        width = _width(chosen[0], plans[0])
        between = [builder.buffer(width), builder.buffer(width)]
        for place, (block, plan) in enumerate(zip(chosen, plans, strict=True)):
            source = between[place % 2] if place else "x"
            _append(builder, block, plan, source, between[(place + 1) % 2] if place + 1 < len(plans) else "y")
            builder.skip([module for module in block.modules() if module is not block or len(plans) > 1])
        return Program(builder), plans


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _width(block: nn.Module, plan: BlockPlan) -> int:
    """Width of the hidden state."""
    return len(plan.rows_of(block, "down")[2])


def _append(builder: ProgramBuilder, block: nn.Module, plan: BlockPlan, source: int | str, target: int | str) -> None:
    """Append the jobs of one block. Raises Unfit where one of its modules has no loop."""
    from quant.kernels import attention, frame

    hidden = _width(block, plan)
    normed, middle = builder.buffer(hidden), builder.buffer(hidden)
    attended = builder.buffer(plan.heads * plan.width)

    builder.norm(block.get_submodule(plan.norms[0]), source, normed)
    starts: dict[tuple[str, int], int] = {}
    for name, pieces in plan.linears(block):
        for number, piece in enumerate(pieces):
            starts[name, number] = builder.buffer(piece.rows)
            builder.linear(block.get_submodule(name), piece, normed, starts[name, number])
    query, key, value = (plan.heads_of(role, block, starts) for role in "qkv")
    for norm, heads, count in zip(plan.head_norms or (), (query, key), (plan.heads, plan.key_heads), strict=False):
        _check_adjacent(heads, count, plan.width)
        builder.norm(block.get_submodule(norm), heads.first, heads.first, count)
    sizes = {attention.HEADS: plan.key_heads, attention.QUERIES_PER_KV: plan.heads // plan.key_heads, attention.WIDTH: plan.width,
             attention.WINDOW: plan.window}
    cache = {attention.LENGTH: "length", attention.COS: "cos", attention.SIN: "sin", attention.ROTATED: "rotated",
             attention.POSITION_BATCH: "position to the next sequence"}
    cache |= zip((attention.KEYS, attention.VALUES, attention.KEYS_BATCH, attention.VALUES_BATCH, attention.KEYS_HEAD,
                  attention.VALUES_HEAD), plan.cache_names, strict=True)
    builder.attention(query, key, value, attended, plan.scaling, sizes, cache)
    name, piece, rows = plan.rows_of(block, "o")
    builder.linear(block.get_submodule(name), piece, attended, middle, rows, frame.ADD, source)

    builder.norm(block.get_submodule(plan.norms[1]), source if plan.is_parallel else middle, normed)
    first = "gate" if "gate" in plan.modules else "up"
    name, piece, rows = plan.rows_of(block, first)
    inner = builder.buffer(len(rows))
    builder.linear(block.get_submodule(name), piece, normed, inner, rows, plan.activation_of(block))
    if first == "gate":
        name, piece, rows = plan.rows_of(block, "up")
        gated = builder.buffer(len(rows))
        builder.linear(block.get_submodule(name), piece, normed, gated, rows, frame.MULTIPLY, inner)
        inner = gated
    name, piece, rows = plan.rows_of(block, "down")
    builder.linear(block.get_submodule(name), piece, inner, target, rows, frame.ADD, middle)


def _check_adjacent(heads: Heads, count: int, width: int) -> None:
    """Raise Unfit unless all heads of all sequences follow one another."""
    from quant.nn.program import Unfit

    if heads.to_next_head != width or heads.to_next_sequence != count * width:
        raise Unfit


class DecodingBlock:
    """Mixin placed before a block's class: a single token, of a few sequences, runs the program, all else the own forward."""

    _stack: Stack
    _number: int
    _arguments: Sequence[str]  # names of the own forward's arguments after the hidden state
    _returns_tuple: bool

    def forward(self, hidden_states, *args, **kwargs):
        if torch.compiler.is_compiling():
            return super().forward(hidden_states, *args, **kwargs)
        passed = getattr(hidden_states, PASSED, None)
        if passed is None or passed[0] is not self._stack or passed[1] <= self._number:
            given = dict(zip(self._arguments, args, strict=False)) | kwargs
            hidden = self._decoded(hidden_states, given)
            if hidden is None:
                return super().forward(hidden_states, *args, **kwargs)
            hidden_states = hidden
        return (hidden_states, None) if self._returns_tuple else hidden_states

    def _decoded(self, x: torch.Tensor, given: dict) -> torch.Tensor | None:
        """Run the program on a token that attends to all before it; None where the block's own forward must run."""
        cache = given.get("past_key_values", given.get("layer_past"))
        count = x.shape[0]
        if x.dim() != 3 or x.shape[1] != 1 or count > MOST_SEQUENCES or x.dtype != torch.float32:
            return None
        if type(cache) is not DynamicCache or x.requires_grad:
            return None
        if not self._stack.is_used or not x.is_contiguous() or x.device.type != "cpu":
            return None
        if given.get("encoder_hidden_states") is not None or not _sees_all(given.get("attention_mask")):
            return None
        cos_sin = given.get("position_embeddings") or ()
        if any(t.dtype != torch.float32 or not t.is_contiguous() or t.shape[:2] not in ((1, 1), (count, 1)) for t in cos_sin):
            return None
        found = self._stack.program_at(self._number, count)
        if not found:
            return None
        program, plans = found
        layers = [cache.layers[plan.layer] if plan.layer < len(cache.layers) else None for plan in plans]
        if not all(type(layer) is GrowingLayer and layer.is_plain(count) for layer in layers):
            return None
        length = layers[0].get_seq_length() + 1
        if any(layer.get_seq_length() + 1 != length for layer in layers):
            return None
        y = torch.empty_like(x)
        numbers = {"x": x.data_ptr(), "y": y.data_ptr(), "length": length, "cos": 0, "sin": 0, "rotated": 0,
                   "position to the next sequence": 0}
        if cos_sin:
            cos, sin = cos_sin
            numbers |= {"cos": cos.data_ptr(), "sin": sin.data_ptr(), "rotated": cos.shape[-1],
                        "position to the next sequence": cos.stride(0) if len(cos) > 1 else 0}
        for plan, layer in zip(plans, layers, strict=True):
            numbers.update(zip(plan.cache_names, layer.append(), strict=True))
        program.run(numbers)
        setattr(y, PASSED, (self._stack, self._number + len(plans)))
        return y


def _sees_all(mask: torch.Tensor | None) -> bool:
    """Whether a mask lets the token attend to all: none, or one that adds 0 or is true everywhere."""
    if mask is None:
        return True
    return bool(mask.all()) if mask.dtype == torch.bool else not mask.any()


def use_programs(blocks: Sequence[nn.Module], config: PreTrainedConfig) -> Stack:
    """Give the decoder blocks of a model programs, in place. config: transformers' own, of the model."""
    stack = Stack(list(blocks), config)
    for number, block in enumerate(blocks):
        kind = type(block)
        block.__class__ = type(kind.__name__, (DecodingBlock, kind), {})
        block._stack, block._number = stack, number
        block._arguments = tuple(inspect.signature(kind.forward).parameters)[2:]
        block._returns_tuple = kind.__name__ == "GPTNeoBlock"
    return stack
