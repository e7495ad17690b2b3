"""The models that are trained here: GPT-2's architecture, small."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

CONTEXT, HEADS, SEED = 256, 4, 0


def new_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, dropout: float) -> GPT2LMHeadModel:
    """A model for the tokenizer's vocabulary with random weights, the same every time."""
    torch.manual_seed(SEED)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_ctx=CONTEXT, n_embd=width, n_layer=layers, n_head=HEADS,
        activation_function="gelu_pytorch_tanh",  # GPT-2's GELU, computed in one step
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    ))  # fmt: skip


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model, in 16 bits, and its tokenizer; the model then has the weights as they are stored, in float32."""
    disable_progress_bar()
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.float()
