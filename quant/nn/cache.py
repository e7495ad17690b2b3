"""A key-value cache that grows in place, instead of being copied for every token."""

from __future__ import annotations

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

CAPACITY = 256  # tokens of a new cache's buffers; they double when full


class GrowingLayer(DynamicLayer):
    """Keys and values [batch, heads, length, width] of a layer, as views of buffers with capacity for more tokens."""

    def __init__(self):
        super().__init__()
        self._buffers: tuple[torch.Tensor, ...] = ()
        self._views: tuple[torch.Tensor | None, ...] = (None, None)  # keys and values as last set here
        self._is_one_sequence = False

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_, **__) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of new tokens; returns those of all tokens so far."""
        if key_states.requires_grad:
            return super().update(key_states, value_states)  # in-place writes would spoil the backward pass
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        self.extend(key_states, value_states, key_states.shape[-2])
        self.keys[:, :, before:] = key_states
        self.values[:, :, before:] = value_states
        return self.keys, self.values

    def extend(self, like_keys: torch.Tensor, like_values: torch.Tensor, count: int) -> None:
        """Lengthen keys and values by `count` tokens, which the caller fills in.

        like_keys, like_values: give the other sizes, the dtype and the device of new buffers.
        """
        after = self.get_seq_length() + count
        if not self._fits(after):
            self._buffers = _enlarged(self.keys, like_keys, after), _enlarged(self.values, like_values, after)
        keys, values = self._buffers
        self.keys, self.values = self._views = keys.narrow(2, 0, after), values.narrow(2, 0, after)

    def is_one_sequence(self) -> bool:
        """Whether keys and values are of one sequence, float32 on the CPU, so that a program can append to them."""
        if self._are_unchanged() and self._is_one_sequence:
            return True
        self._is_one_sequence = self.is_initialized and all(
            held.dtype == torch.float32 and held.device.type == "cpu" and held.shape[0] == 1 and not held.requires_grad
            for held in (self.keys, self.values)
        )
        return self._is_one_sequence

    def _are_unchanged(self) -> bool:
        """Whether keys and values are still the views that were made here."""
        return self._views[0] is self.keys is not None and self._views[1] is self.values

    def _fits(self, length: int) -> bool:
        """Whether the buffers have room for `length` tokens and still hold keys and values, which reordering the cache replaces.

        Outside inference mode, a buffer made in inference mode can't be written to.
        """
        if self._are_unchanged() and torch.is_inference_mode_enabled():
            return length <= self._buffers[0].shape[2]
        return bool(self._buffers) and length <= self._buffers[0].shape[2] and all(
            held.data_ptr() == buffer.data_ptr() and held.shape[:2] == buffer.shape[:2] and held.stride() == buffer.stride()
            and (torch.is_inference_mode_enabled() or not buffer.is_inference())
            for held, buffer in zip((self.keys, self.values), self._buffers, strict=True)
        )


def _enlarged(held: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
    """Copy `held` into a larger buffer for at least `length` tokens. new: gives the other sizes, the dtype and the device."""
    size = max(CAPACITY, 2 ** (length - 1).bit_length())
    buffer = new.new_empty((*new.shape[:2], size, new.shape[3]))
    if held.numel():
        buffer[:, :, : held.shape[2]] = held
    return buffer


def grow_in_place(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Forward pre-hook: replace the layers of an empty cache, which grow by copying, with GrowingLayers."""
    cache = kwargs.get("past_key_values")
    if cache is None and kwargs.get("use_cache", model.config.use_cache) and not torch.is_grad_enabled():
        cache = kwargs["past_key_values"] = DynamicCache(config=model.config)
    if type(cache) is DynamicCache:
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = GrowingLayer
        cache.layers = [
            GrowingLayer() if not layer.is_initialized and _keeps_all(layer, model) else layer for layer in cache.layers
        ]
    return args, kwargs


def _keeps_all(layer: DynamicLayer, model: nn.Module) -> bool:
    """Whether a layer keeps all tokens that the model can take: it has no window, or one as long as the model's context."""
    longest = getattr(model.config, "max_position_embeddings", 0)
    return type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= longest > 0)
