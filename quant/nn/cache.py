"""A key-value cache that grows in place, instead of being copied for every token."""

from __future__ import annotations

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

CAPACITY = 256  # tokens of a new cache's buffers; they double when full


class GrowingLayer(DynamicLayer):
    """Keys and values [batch, heads, length, width] of a layer, as views of buffers with capacity for more tokens.

    A program that appends a token (quant.nn.blocks) needs addresses, not tensors, so the views are made when they are asked for.
    """

    def __init__(self):
        self._buffers: list[torch.Tensor | None] = [None, None]  # of keys and values; None while `_held` is no view of one
        self._held: list[torch.Tensor | None] = [None, None]  # the views, as last made or set
        self._lengths = [0, 0]
        self._plain_count = 0  # sequences of a cache that a program can append to; 0: not known, or none can
        super().__init__()

    @property
    def keys(self) -> torch.Tensor | None:
        return self._view(0)

    @keys.setter
    def keys(self, keys: torch.Tensor | None) -> None:
        self._set(0, keys)

    @property
    def values(self) -> torch.Tensor | None:
        return self._view(1)

    @values.setter
    def values(self, values: torch.Tensor | None) -> None:
        self._set(1, values)

    def get_seq_length(self) -> int:
        return self._lengths[0]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_, **__) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of new tokens; returns those of all tokens so far."""
        if key_states.requires_grad:
            return super().update(key_states, value_states)  # in-place writes would spoil the backward pass
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        self._extend((key_states, value_states), key_states.shape[-2])
        self.keys[:, :, before:] = key_states
        self.values[:, :, before:] = value_states
        return self.keys, self.values

    def is_plain(self, count: int) -> bool:
        """Whether keys and values are of `count` sequences, float32 on the CPU, so that `append` can take a token of each."""
        return self._plain_count == count or self._check_plain(count)

    def append(self) -> tuple[int, ...]:
        """Lengthen a plain cache by a token of each sequence, whose keys and values the caller writes.

        Returns the addresses of keys and values, and their floats from a sequence to the next, and from a head to the next.
        """
        after = self._lengths[0] + 1
        if not self._fits(after):
            self._extend((self.keys, self.values), 1)
        self._lengths[:] = after, after
        keys, values = self._buffers
        return (keys.data_ptr(), values.data_ptr(), keys.stride(0), values.stride(0), keys.stride(1), values.stride(1))

    def _view(self, which: int) -> torch.Tensor | None:
        held, buffer = self._held[which], self._buffers[which]
        if buffer is not None and held.shape[2] != self._lengths[which]:
            held = self._held[which] = buffer.narrow(2, 0, self._lengths[which])
        return held

    def _set(self, which: int, tensor: torch.Tensor | None) -> None:
        """Take keys or values that somebody has made. Those that begin the buffer, as after a crop, are views of it."""
        buffer = self._buffers[which]
        if buffer is not None and (tensor is None or tensor.data_ptr() != buffer.data_ptr() or tensor.stride() != buffer.stride()
                                   or tensor.shape[:2] != buffer.shape[:2]):
            self._buffers[which] = None
        self._held[which], self._lengths[which] = tensor, 0 if tensor is None or tensor.dim() < 4 else tensor.shape[2]
        self._plain_count = 0

    def _extend(self, like: tuple[torch.Tensor, torch.Tensor], count: int) -> None:
        """Lengthen keys and values by `count` tokens, which the caller fills in. like: gives the other sizes, the dtype and the
        device of new buffers."""
        after = self.get_seq_length() + count
        if not self._fits(after):
            for which in (0, 1):
                self._buffers[which] = self._held[which] = _enlarged(self._view(which), like[which], after)
        self._lengths[:] = after, after

    def _fits(self, length: int) -> bool:
        """Whether the buffers have room for `length` tokens. Outside inference mode, those made in inference mode have none."""
        return all(buffer is not None and length <= buffer.shape[2] and
                   (torch.is_inference_mode_enabled() or not buffer.is_inference()) for buffer in self._buffers)

    def _check_plain(self, count: int) -> bool:
        is_plain = self.is_initialized and self._lengths[0] == self._lengths[1] > 0 and all(
            held.dtype == torch.float32 and held.device.type == "cpu" and held.shape[0] == count and not held.requires_grad
            for held in self._held
        )
        self._plain_count = count if is_plain else 0
        return is_plain


def _enlarged(held: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
    """Copy `held` into a larger buffer for at least `length` tokens. new: gives the other sizes, the dtype and the device."""
    size = max(CAPACITY, 2 ** (length - 1).bit_length())
    buffer = new.new_empty((*new.shape[:2], size, new.shape[3]))
    if held.numel():
        buffer[:, :, : held.shape[2]] = held
    return buffer


def grow_in_place(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Forward pre-hook: replace the layers of an empty cache, which grow by copying, with GrowingLayers."""
    if torch.compiler.is_compiling():
        return None
    cache = kwargs.get("past_key_values")
    if cache is None and kwargs.get("use_cache", model.config.use_cache) and not torch.is_grad_enabled():
        cache = kwargs["past_key_values"] = DynamicCache(config=model.config)
    if type(cache) is DynamicCache:
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = GrowingLayer
        if not all(type(layer) is GrowingLayer for layer in cache.layers):
            cache.layers = [
                GrowingLayer() if not layer.is_initialized and _keeps_all(layer, model) else layer for layer in cache.layers
            ]
    return args, kwargs


def _keeps_all(layer: DynamicLayer, model: nn.Module) -> bool:
    """Whether a layer keeps all tokens that the model can take: it has no window, or one as long as the model's context."""
    longest = getattr(model.config, "max_position_embeddings", 0)
    return type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= longest > 0)
