"""Perplexity and divergence in one pass: a variant and the base run side by side over the same windows.

No logits are kept: a batch of windows goes through both models, leaves a few numbers per token, and is forgotten.
Log-softmax in float32, sums in float64. Perplexity is exp(sum of nll / tokens). KLD is that of the base's
distribution to the variant's, sum of p_base (ln p_base - ln p_variant), in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from quant.errors import InputError
from quant.measure.windows import Protocol, Tokens, Window, windows
from quant.progress import progress
from quant.runners import Runner

BATCH_LOGITS = 2**22  # most logits of one batch: 16 MB a model; larger ones spend their time on fresh memory


@dataclass(frozen=True)
class TokenScores:
    """Per scored token, float64 [n]: nll and base_nll in nats, kld in nats, agree (1 where the top tokens are equal)."""

    nll: torch.Tensor
    base_nll: torch.Tensor
    kld: torch.Tensor
    agree: torch.Tensor


def score(variant: Runner, base: Runner | None, tokens: Tokens, protocol: Protocol) -> TokenScores:
    """Score every token once. base None: the variant is the base, at no divergence from itself."""
    models = [variant] if base is None else [variant, base]
    if len({model.vocabulary for model in models}) > 1:
        raise InputError(f"the variant has {variant.vocabulary} logits, the base {models[1].vocabulary}; they can't be compared")
    context = min(model.context for model in models)
    every_window = list(windows(tokens, protocol, context))
    batches = list(_batches(every_window, max(1, BATCH_LOGITS // (min(protocol.context, context) * variant.vocabulary))))
    parts = [_score_batch(variant, base, batch) for batch in progress(batches, "evaluate")]
    nll, base_nll, kld, agree = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenScores(nll, base_nll, kld, agree)


def summarize(scores: TokenScores, tokens: Tokens) -> dict[str, float]:
    """The quality metrics, keys as in the table; see FIELD for their definitions."""
    total, base_total = float(scores.nll.sum()), float(scores.base_nll.sum())
    count = len(scores.nll)
    return {
        "ppl": math.exp(total / count),
        "ppl_word": math.exp(total / tokens.words),
        "bits_per_byte": total / math.log(2) / tokens.bytes,
        "ppl_change_pct": 100 * math.expm1((total - base_total) / count),
        "kld_mnats": 1000 * float(scores.kld.mean()),
        "top1_agree_pct": 100 * float(scores.agree.mean()),
    }


def _batches(items: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Up to `size` consecutive windows of equal length; only the last window is shorter, so nothing is padded."""
    batch: list[Window] = []
    for item in items:
        if batch and (len(batch) == size or len(item.inputs) != len(batch[0].inputs)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _score_batch(variant: Runner, base: Runner | None, batch: list[Window]) -> tuple[torch.Tensor, ...]:
    inputs = torch.stack([window.inputs for window in batch])
    targets = torch.stack([window.targets for window in batch])
    counts = torch.zeros(targets.shape, dtype=torch.bool)
    for row, window in enumerate(batch):
        counts[row, len(window.targets) - window.scored :] = True
    wanted = targets[counts]
    log_p = _log_probabilities(variant, inputs, counts)
    nll = _nll(log_p, wanted)
    if base is None:
        return nll, nll, torch.zeros_like(nll), torch.ones_like(nll)
    base_log_p = _log_probabilities(base, inputs, counts)
    agree = (log_p.argmax(-1) == base_log_p.argmax(-1)).double()
    base_nll = _nll(base_log_p, wanted)
    kld = torch.nn.functional.kl_div(log_p, base_log_p, reduction="none", log_target=True).sum(-1).double()
    return nll, base_nll, kld, agree


def _log_probabilities(model: Runner, inputs: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """float32 [scored tokens, vocabulary]"""
    logits = model.logits(inputs)
    return torch.log_softmax(logits[counts.to(logits.device)], dim=-1).cpu()


def _nll(log_p: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return -log_p.gather(-1, wanted.unsqueeze(-1)).squeeze(-1).double()
