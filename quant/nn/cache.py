"""A cache of keys and values that grows where it is, instead of being copied for every token."""

from __future__ import annotations

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 256  # tokens that a cache has room for at first; it doubles when full


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
        self.extend(key_states, value_states, key_states.shape[-2])
        self.keys[:, :, before:] = key_states
        self.values[:, :, before:] = value_states
        return self.keys, self.values

    def extend(self, like_keys: torch.Tensor, like_values: torch.Tensor, count: int) -> None:
        """Lengthen keys and values by `count` tokens, for the caller to fill in; the shapes are those of `like_...`."""
        after = self.get_seq_length() + count
        if not self._holds(after):
            self._rooms = _roomier(self.keys, like_keys, after), _roomier(self.values, like_values, after)
        keys, values = self._rooms
        self.keys, self.values = keys[:, :, :after], values[:, :, :after]

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


def grow_in_place(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
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
