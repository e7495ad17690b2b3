"""Cuts transformers' overhead per token outside the matrix products; `generate` and its results stay as they are.

Profiled on GPT-2 at one token a call: the cache grows by copying all of it (quant.nn.cache), attention starts a team
of threads for a few microseconds' work, GELU is a formula in Python, and the rest is Python itself (quant.nn.blocks).
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from quant.model.architectures import ARCHITECTURES
from quant.nn.blocks import use_programs
from quant.nn.cache import grow_in_place

ATTENTION = "decode"  # the name under which transformers knows `attention`


def speed_up_decoding(model: nn.Module) -> None:
    """Speed up a model in place, so far as it has these: decoder blocks run compiled programs, sdpa becomes `attention`, the
    cache grows in place, GELU is one call of torch, and dropout is removed."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in (NewGELUActivation, GELUTanh):
                setattr(module, name, nn.GELU(approximate="tanh"))  # the same formula
            elif type(child) is nn.Dropout:
                setattr(module, name, nn.Identity())  # weights are quantized: the model is not trained
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
    architecture = ARCHITECTURES.get(model.config.model_type)
    if architecture and model.config._attn_implementation in (ATTENTION, architecture.attention):
        use_programs(model.get_submodule(architecture.blocks), model.config)
    model.register_forward_pre_hook(grow_in_place, with_kwargs=True)


def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, position_bias=None, **rest):
    """transformers' sdpa attention, with a faster path for a decoded token that attends to all keys."""
    is_plain = attention_mask is None and position_bias is None and rest.get("softcap") is None and not query.requires_grad
    if is_plain and query.device.type == "cpu" and not torch.compiler.is_compiling():
        from quant.kernels.attention import attend, can_attend  # here, because it is compiled when imported

        if can_attend(query, key, value):
            return attend(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, position_bias=position_bias, **rest
    )


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
