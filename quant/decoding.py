"""What transformers spends on a token besides the products, made cheaper; `generate` and the results stay as they are.

Profiled on GPT-2 at one token a call: the cache grows by copying all of it, attention starts a team of threads for a few
microseconds' work, and GELU is a formula in Python. Each is replaced through what transformers offers for it.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import NewGELUActivation
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "decode"  # the name under which transformers knows `attention`
ROOM = 256  # tokens that a cache has room for at first; it doubles when full


def speed_up_decoding(model: nn.Module) -> None:
    """Swap in, where the model has what they replace: `attention`, a cache that grows in place, GELU in one call."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))  # the same formula
            elif type(child) is nn.Dropout:
                setattr(module, name, nn.Identity())  # weights are quantized: the model is not trained
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
    model.register_forward_pre_hook(_grow_in_place, with_kwargs=True)


def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, position_bias=None, **rest):
    """transformers' sdpa, but for a decoded token that may see all keys."""
    if attention_mask is None and position_bias is None and rest.get("softcap") is None and not query.requires_grad:
        from quant.kernels.attention import attend, can_attend  # here, because it is compiled when imported

        if can_attend(query, key, value):
            return attend(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, position_bias=position_bias, **rest
    )


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class GrowingLayer(DynamicLayer):
    """Keys and values [batch, heads, length, width] of a layer, as views of tensors with room for more tokens."""

    def __init__(self):
        super().__init__()
        self._rooms: tuple[torch.Tensor, ...] = ()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_, **__) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of new tokens; all so far."""
        if key_states.requires_grad:
            return super().update(key_states, value_states)  # backward would miss what is written over
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not self._holds(after):
            self._rooms = _roomier(self.keys, key_states, after), _roomier(self.values, value_states, after)
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, before:after] = new
        self.keys, self.values = (room[:, :, :after] for room in self._rooms)
        return self.keys, self.values

    def _holds(self, length: int) -> bool:
        """Whether there is room, and keys and values are still what was put there: reordering replaces them.

        A room made in inference mode can't be written to outside of it.
        """
        return bool(self._rooms) and length <= self._rooms[0].shape[2] and all(
            held.data_ptr() == room.data_ptr() and held.shape[:2] == room.shape[:2] and held.stride() == room.stride()
            and (torch.is_inference_mode_enabled() or not room.is_inference())
            for held, room in zip((self.keys, self.values), self._rooms, strict=True)
        )


def _roomier(held: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
    """What is held, in a tensor with room for `length` tokens of the shape of `new` and some more."""
    size = max(ROOM, 2 ** (length - 1).bit_length())
    room = new.new_empty((*new.shape[:2], size, new.shape[3]))
    if held.numel():
        room[:, :, : held.shape[2]] = held
    return room


def _grow_in_place(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Before a forward pass: layers of an empty cache, which would grow by copying, become GrowingLayers."""
    cache = kwargs.get("past_key_values")
    if cache is None and kwargs.get("use_cache", model.config.use_cache) and not torch.is_grad_enabled():
        cache = kwargs["past_key_values"] = DynamicCache(config=model.config)
    if type(cache) is DynamicCache:
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = GrowingLayer
        cache.layers = [
            GrowingLayer() if type(layer) is DynamicLayer and not layer.is_initialized else layer for layer in cache.layers
        ]
    return args, kwargs
