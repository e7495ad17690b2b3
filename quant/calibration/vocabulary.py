"""Moments of the two largest matrices outside the blocks: the embedding and the head, which many models share.

Both are indexed by tokens, so what a row is worth differs by orders of magnitude from row to row.

    head         row v turns the last hidden state h into the logit of token v. A small change d of the row moves the divergence
                 by p_v (1 - p_v) (d h)^2 / 2, so its moments are E[(1 - sum p^2) h h^T], and its weight E[p_v (1 - p_v)]
    embedding    row v enters where token v stands. With g the gradient there of the log-likelihood of a token drawn from the
                 model itself (the Fisher information), its moments are E[g g^T], and its weight how often v stands there

Where they share a weight, both sums apply, and both grow with how often v occurs: the moments are added, and the head's row
weights serve for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from quant.model.inventory import Weight
from quant.progress import progress
from quant.tensor.products import product

BATCH_LOGITS = 2**23
RARE = 0.05  # of the mean row weight, added to each: rows that the text does not contain are still worth something


@dataclass(frozen=True)
class VocabularyMoments:
    """head, embedding: float64 [width, width]; head_rows, embedding_rows: weight of each row, float64 [vocabulary]."""

    head: torch.Tensor
    embedding: torch.Tensor
    head_rows: torch.Tensor
    embedding_rows: torch.Tensor

    def of(self, weight: Weight) -> tuple[torch.Tensor, torch.Tensor]:
        """Second moments and row weights of the embedding, the head, or the weight that they share."""
        if weight.tied_head:
            second, rows = self.head + self.embedding, self.head_rows
        elif "head" in weight.roles:
            second, rows = self.head, self.head_rows
        else:
            second, rows = self.embedding, self.embedding_rows
        return second, rows + RARE * rows.mean()


def vocabulary_moments(model: torch.nn.Module, tokens: torch.Tensor, seed: int) -> VocabularyMoments:
    """Take the moments over windows of a calibration text. model: the float model in transformers. tokens: int64
    [windows, length]. seed: of the tokens that are drawn."""
    vocabulary, width = model.get_output_embeddings().weight.shape
    generator = torch.Generator().manual_seed(seed)
    head, embedding = (torch.zeros(width, width, dtype=torch.float64) for _ in range(2))
    head_rows, embedding_rows = (torch.zeros(vocabulary, dtype=torch.float64) for _ in range(2))
    size = max(1, BATCH_LOGITS // (tokens.shape[1] * vocabulary))
    for batch in progress(tokens.split(size), "importance of the vocabulary"):
        states, gradients, probabilities = _one_batch(model, batch, generator)
        spread = 1 - probabilities.square().sum(-1)
        head += product((states * spread.unsqueeze(-1)).T, states).double()
        head_rows += (probabilities * (1 - probabilities)).sum(0, dtype=torch.float64)
        embedding += product(gradients.T, gradients).double()
        embedding_rows += torch.bincount(batch.flatten(), minlength=vocabulary).double()
    count = tokens.numel()
    return VocabularyMoments(head / count, embedding / count, head_rows / count, embedding_rows / count)


def _one_batch(model: torch.nn.Module, tokens: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """The head's inputs, the gradients of the embedding's rows, and the predicted probabilities: float32 [tokens, ...]."""
    embeddings = model.get_input_embeddings()
    seen: dict[str, torch.Tensor] = {}

    def follow(_, __, output: torch.Tensor) -> torch.Tensor:
        seen["embedded"] = output.detach().requires_grad_()
        return seen["embedded"]

    hooks = [embeddings.register_forward_hook(follow),
             model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.__setitem__("states", given[0]))]
    try:
        with torch.enable_grad():
            logits = model(tokens, use_cache=False).logits.flatten(0, 1)
            probabilities = logits.detach().softmax(-1)
            drawn = torch.multinomial(probabilities, 1, generator=generator).flatten()
            (gradients,) = torch.autograd.grad(cross_entropy(logits, drawn, reduction="sum"), seen["embedded"])
    finally:
        for hook in hooks:
            hook.remove()
    scale = float(getattr(embeddings, "embed_scale", 1))  # by which Gemma multiplies the rows
    return seen["states"].detach().flatten(0, 1), scale * gradients.flatten(0, 1), probabilities
