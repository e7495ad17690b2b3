"""What a model has learnt: its perplexity on text it was not trained on, beside n-gram models of the same training text."""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel

from quant.files import significant
from quant.progress import progress
from quant.training.ngram import KneserNey

ORDERS = (2, 3, 4, 5)
BATCH = 16  # windows at once


@torch.no_grad()
def mean_nats(model: PreTrainedModel, stream: torch.Tensor, context: int) -> float:
    """Mean negative log-likelihood of all tokens of a stream but the first, in nats, computed in float32.

    The windows are those of the scoring protocol joined/1 where its stride is its context: `context` tokens, side by side.
    """
    model.eval()
    whole = (len(stream) - 1) // context * context
    inputs, targets = ([*part[:whole].view(-1, context).split(BATCH), part[whole:].view(1, -1)]
                       for part in (stream[:-1], stream[1:]))
    total = 0.0
    for tokens, wanted in zip(inputs, targets, strict=True):
        if tokens.numel():
            logits = model(tokens, use_cache=False).logits.float()
            lost = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
            total += lost.double().sum().item()
    return total / (len(stream) - 1)


def learnt(model: PreTrainedModel, training: torch.Tensor, validation: torch.Tensor, test: torch.Tensor, context: int) -> dict:
    """Perplexities per token of the model, and of Kneser-Ney models of several orders on the test text, for JSON.

    All take streams of tokens; of each, all tokens but the first are predicted. The n-gram models count the same training tokens.
    """
    tokens, vocabulary = training.tolist(), model.config.vocab_size
    baselines = {order: KneserNey(tokens, order, vocabulary).perplexity(test.tolist())
                 for order in progress(ORDERS, "n-gram models")}
    return significant({
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "training": {"tokens": len(training)},
        "validation": _measured(model, validation, context),
        "test": _measured(model, test, context),
        "kneser_ney": {"best_order": min(baselines, key=baselines.get),
                       "test_perplexity": {str(order): value for order, value in baselines.items()}},
    }, 5)  # fmt: skip


def _measured(model: PreTrainedModel, stream: torch.Tensor, context: int) -> dict:
    nats = mean_nats(model, stream, context)
    return {"tokens": len(stream), "nats_per_token": nats, "perplexity": math.exp(nats)}
