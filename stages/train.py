"""Train the embedded default model on lines of the embedded grammar: python -m stages.train

A frozen DVC stage: `dvc repro` does not run it, because the model is in git. About 20 minutes on 2 cores;
`dvc repro --force train` after `dvc unfreeze train` makes the model anew. It is a GPT-2 of 3 M parameters, width 256 (so
that llama.cpp's K-quants apply), with a byte-level BPE of its own, stored as fp16.
"""

import math
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from quant.text.corpus import as_text
from quant.text.grammar import treebank_like

OUT = Path("models/embedded")
LINES, VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 320_000, 2048, 256, 256, 3, 4
BATCH, PEAK_RATE, WARMUP = 16, 3e-3, 100
END = "<|endoftext|>"


def make_tokenizer(texts) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits as GPT-2 does
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=CONTEXT
    )


def make_windows(tokenizer, lines) -> torch.Tensor:
    """Windows of CONTEXT + 1 tokens over texts of 1 to 32 lines, each after the beginning-of-text token."""
    stream, at, length = [], 0, 1
    while at < len(lines):
        stream += [tokenizer.bos_token_id, *tokenizer.encode(as_text(lines[at : at + length]))]
        at, length = at + length, length % 32 + 1
    count = len(stream) // (CONTEXT + 1)
    return torch.tensor(stream[: count * (CONTEXT + 1)]).view(count, CONTEXT + 1)


def main() -> None:
    torch.manual_seed(0)
    lines = [" ".join(line.words) for line in treebank_like().lines(LINES, "train")]
    tokenizer = make_tokenizer(as_text([line]) for line in lines[:50_000])
    windows = make_windows(tokenizer, lines)
    windows = windows[torch.randperm(len(windows))]
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_ctx=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        activation_function="gelu_pytorch_tanh",  # GPT-2's GELU, computed in one step
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    ))
    steps = len(windows) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
    )
    start = time.monotonic()
    for step, batch in enumerate(windows[: steps * BATCH].view(steps, BATCH, CONTEXT + 1)):
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            elapsed = time.monotonic() - start
            left = elapsed / (step + 1) * (steps - step - 1) / 60
            print(f"step {step} of {steps}  loss {loss.item():.4f}  {left:.1f} min left", file=sys.stderr, flush=True)
    model.half().save_pretrained(OUT)
    tokenizer.save_pretrained(OUT)


if __name__ == "__main__":
    main()
