"""The parts of a decoder block that a token passes, read off the block and the table of roles, for any pre-norm architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation

from quant.model.architectures import ARCHITECTURES, fused_rows
from quant.nn.program import Heads, Piece, Unfit, pieces_of

ACTIVATIONS = ("act", "act_fn", "activation_fn")  # names of the function, which has no weights and so no role
STRIDES = ("keys to the next sequence", "values to the next sequence", "keys to the next head", "values to the next head")
NOT_PLANNED = ("pre_feedforward_layernorm",)  # blocks with these norms do something else


@dataclass(frozen=True)
class BlockPlan:
    """The parts of a block, as names of its modules.

    layer: its number in the cache. modules: role -> the linear, whose rows may have other roles too. norms: before attention, and
    before the feed-forward layer. head_norms: of queries and keys, or None. scaling: of the scores. window: most tokens that one
    attends to. is_parallel: whether the feed-forward layer reads what attention reads.
    """

    config: Mapping
    layer: int
    modules: Mapping[str, str]
    norms: tuple[str, str]
    head_norms: tuple[str, str] | None
    activation: str
    heads: int
    key_heads: int
    width: int
    scaling: float
    window: int
    is_parallel: bool

    @cached_property
    def cache_names(self) -> tuple[str, ...]:
        """Names of what GrowingLayer.append returns, in a program."""
        return tuple(f"{name} {self.layer}" for name in ("keys", "values", *STRIDES))

    def linears(self, block: nn.Module) -> list[tuple[str, list[Piece]]]:
        """The linears of q, k and v, and their pieces."""
        names = dict.fromkeys(self.modules[role] for role in "qkv")
        return [(name, pieces_of(block.get_submodule(name))) for name in names]

    def heads_of(self, role: str, block: nn.Module, starts: Mapping[tuple[str, int], int]) -> Heads:
        """Where the heads of q, k or v lie, if each piece of a linear has a buffer of its own. starts: name of the linear and
        number of the piece -> offset of its buffer."""
        name = self.modules[role]
        pieces = pieces_of(block.get_submodule(name))
        roles = tuple(other for other in "qkv" if self.modules[other] == name)
        ranges = fused_rows(self.config, roles, sum(piece.rows for piece in pieces))[role]
        rows = [row for first, stop in ranges for row in range(first, stop)]
        for number, piece in enumerate(pieces):
            place_of = {row: place for place, row in enumerate(row for first, stop in piece.ranges for row in range(first, stop))}
            if rows[0] not in place_of:
                continue
            places = [place_of.get(row) for row in rows]
            step = places[self.width] - places[0] if len(places) > self.width and places[self.width] is not None else self.width
            if places != [places[0] + head * step + i for head in range(len(rows) // self.width) for i in range(self.width)]:
                raise Unfit
            return Heads(starts[name, number] + places[0], step, piece.rows)
        raise Unfit

    def rows_of(self, block: nn.Module, role: str) -> tuple[str, Piece, range]:
        """The linear of a role, the piece that has all its rows, and where in the piece they are."""
        name = self.modules[role]
        roles = tuple(other for other in ("gate", "up") if self.modules.get(other) == name) or (role,)
        pieces = pieces_of(block.get_submodule(name))
        ranges = fused_rows(self.config, roles, sum(piece.rows for piece in pieces))[role]
        for piece in pieces:
            held = [row for first, stop in piece.ranges for row in range(first, stop)]
            if len(ranges) == 1 and ranges[0][0] in held:
                start, count = held.index(ranges[0][0]), ranges[0][1] - ranges[0][0]
                if held[start : start + count] == list(range(*ranges[0])):
                    return name, piece, range(start, start + count)
        raise Unfit

    def activation_of(self, block: nn.Module) -> int:
        """The number of the activation function in quant.kernels.frame. Raises Unfit for one that is not there."""
        from quant.kernels import frame

        module = block.get_submodule(self.activation)
        if isinstance(module, NewGELUActivation | GELUTanh) or (isinstance(module, nn.GELU) and module.approximate == "tanh"):
            return frame.GELU
        if isinstance(module, GELUActivation | nn.GELU):
            return frame.EXACT_GELU
        if isinstance(module, nn.SiLU | SiLUActivation):
            return frame.SILU
        if isinstance(module, nn.ReLU):
            return frame.RELU
        raise Unfit


def plan_of(block: nn.Module, model_type: str, config) -> BlockPlan:
    """Plan a block of a model. config: transformers' own. Raises Unfit for a block that is built otherwise."""
    inside = {name: (roles,) if isinstance(roles, str) else roles for name, roles in ARCHITECTURES[model_type].inside.items()}
    present = dict(block.named_modules())
    if any(name in present for name in NOT_PLANNED) or not getattr(block, "do_layer_norm_before", True):
        raise Unfit
    modules = {role: name for name, roles in inside.items() for role in roles if role != "norm" and name in present}
    norms = [name for name, roles in inside.items() if "norm" in roles and name in present]
    head_norms = tuple(name for name in norms if name.endswith(("q_norm", "k_norm")))
    of_block = tuple(name for name in norms if name not in head_norms)
    activation = next((name for name in present if name.rpartition(".")[2] in ACTIVATIONS), None)
    if len(of_block) != 2 or len(head_norms) not in (0, 2) or activation is None or not {*"qkvo", "up", "down"} <= set(modules):
        raise Unfit
    attention = block.get_submodule(modules["o"].rpartition(".")[0])
    heads = config.num_attention_heads
    return BlockPlan(
        config=config.to_dict(),
        layer=attention.layer_idx if hasattr(attention, "layer_idx") else attention.layer_id,
        modules=modules,
        norms=of_block,
        head_norms=head_norms or None,
        activation=activation,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        width=attention.head_dim if hasattr(attention, "head_dim") else attention.head_size,
        scaling=getattr(attention, "scaling", 1.0),  # GPT-Neo does not scale
        window=config.window_size if getattr(attention, "attention_type", None) == "local" else 2**31,
        is_parallel=getattr(block, "use_parallel_residual", False),
    )
