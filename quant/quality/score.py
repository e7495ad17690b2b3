"""Perplexity and divergence of a variant and the base, in one pass over the same windows.

Logits are not kept: each batch of windows is reduced to a few numbers per token. Log-softmax in float32, sums in float64.
Perplexity is exp(sum of nll / tokens). KLD is the divergence of the variant's distribution from the base's over the whole
vocabulary, sum of p_base (ln p_base - ln p_variant), in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy
import torch

from quant.errors import InputError, Refused
from quant.progress import progress
from quant.quality.protocol import ScoringProtocol
from quant.quality.windows import Places, Tokens, Window, windows
from quant.runners import Runner

BATCH_LOGITS = 2**22  # most logits of a batch: 16 MB per model; larger batches lose time to allocating memory
CHUNK_LOGITS = 2**18  # logits reduced together: 1 MB, which stays in the processor's cache from one step to the next
TOP = 5
LEVELS = (0, 0.1, 1, 2.5, 5, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 95, 97.5, 99, 99.9, 100)


@dataclass(frozen=True)
class Batch:
    """Windows of equal length and equal number of scored tokens, so that nothing is padded."""

    windows: tuple[Window, ...]

    @property
    def inputs(self) -> torch.Tensor:
        """int64 [windows, length]"""
        return torch.stack([window.inputs for window in self.windows])

    @property
    def scored(self) -> int:
        return self.windows[0].scored

    @property
    def wanted(self) -> torch.Tensor:
        """The scored tokens, int64 [windows * scored]."""
        return torch.cat([window.targets[window.length - window.scored :] for window in self.windows])


class Predictions(Protocol):
    """Source of the logits to score: a model, or stored predictions (quant.quality.reference)."""

    vocabulary: int
    context: int
    is_thread_safe: bool  # whether several threads may call `rows` at once

    def rows(self, batch: Batch) -> torch.Tensor:
        """Logits of a batch's scored tokens, float32 [windows * scored, vocabulary]."""


class ModelPredictions:
    """Predictions of a runner."""

    def __init__(self, runner: Runner):
        self.runner, self.vocabulary, self.context = runner, runner.vocabulary, runner.context
        self.is_thread_safe = runner.is_thread_safe

    def rows(self, batch: Batch) -> torch.Tensor:
        return self.runner.logits(batch.inputs)[:, -batch.scored :].flatten(0, 1)


@dataclass(frozen=True)
class Scores:
    """Results per scored token in text order, float32 [n], where these tokens stand, and the words and bytes of the scored text.

    nll, base_nll, kld: in nats. top1: 1 where the most likely token is the base's. top5: how many of the base's five most
    likely tokens are among the variant's five.
    """

    nll: numpy.ndarray
    base_nll: numpy.ndarray
    kld: numpy.ndarray
    top1: numpy.ndarray
    top5: numpy.ndarray
    words: int
    bytes: int
    places: Places

    def __len__(self) -> int:
        return len(self.nll)


@dataclass(frozen=True)
class ScoredPart:
    """Some of the scored tokens: their numbers in the text, int64 [n], and the five columns of Scores, float32 [5, n].

    threads: that shared a product of the model. With another number the last digits may differ.
    """

    places: torch.Tensor
    columns: torch.Tensor
    threads: int


def score(variant: Predictions, base: Predictions | None, tokens: Tokens, protocol: ScoringProtocol,
          most_windows: int | None = None) -> Scores:
    """Score every token of the protocol once. base None: the variant is the base, with no divergence from itself.
    most_windows: score no more than the first so many windows.

    Raises InputError where vocabularies or contexts of the two do not match.
    """
    return join_parts([score_part(variant, base, tokens, protocol, most_windows=most_windows)], tokens)


def score_part(variant: Predictions, base: Predictions | None, tokens: Tokens, protocol: ScoringProtocol,
               part: tuple[int, int] = (0, 1), most_windows: int | None = None) -> ScoredPart:
    """Score part i of n, as (i, n). Batches are the same for any n, and dealt out whole, so that a token's numbers are too."""
    if base is not None and variant.vocabulary != base.vocabulary:
        raise Refused(f"the variant has {variant.vocabulary} logits, the base {base.vocabulary}; quantize the variant again "
                      "from this base")
    context = min(variant.context, protocol.context)
    if base is not None and context != min(base.context, protocol.context):
        raise InputError(f"the variant takes {variant.context} tokens at once, the base {base.context}; they are compared in "
                         f"the same windows: make evaluate.context {min(variant.context, base.context)} or less")
    every_window = windows(tokens, protocol, context)[:most_windows]
    every_batch, (number, count) = list(batches(every_window, variant.vocabulary)), part
    mine = every_batch[len(every_batch) * number // count : len(every_batch) * (number + 1) // count]
    scored = torch.zeros(len(tokens.ids), dtype=torch.bool)
    columns = torch.zeros((5, len(tokens.ids)), dtype=torch.float32)
    is_small = all(batch.inputs.numel() * variant.vocabulary <= BATCH_LOGITS for batch in every_batch[:1])  # the longest
    is_beside = variant.is_thread_safe and is_small
    for batch, found in _score_all(variant, base, mine, is_beside):
        for row, window in enumerate(batch.windows):
            scored[window.scored_tokens] = True
            columns[:, window.scored_tokens] = found[:, row * batch.scored : (row + 1) * batch.scored]
    return ScoredPart(scored.nonzero().flatten(), columns[:, scored], 1 if is_beside else torch.get_num_threads())


def join_parts(parts: list[ScoredPart], tokens: Tokens) -> Scores:
    """All parts of a text, in the order of the text, whatever the order and number of the parts."""
    scored = torch.zeros(len(tokens.ids), dtype=torch.bool)
    columns = torch.zeros((5, len(tokens.ids)), dtype=torch.float32)
    for part in parts:
        scored[part.places] = True
        columns[:, part.places] = part.columns
    nll, base_nll, kld, top1, top5 = columns[:, scored].numpy()
    places, words = tokens.places(scored), int(tokens.words[scored].sum())
    return Scores(nll, base_nll, kld, top1, top5, words, int(places.bytes.sum()), places)


def _score_all(variant: Predictions, base: Predictions | None, items: list[Batch],
               is_beside: bool) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Score batches. is_beside: several at once, each on one thread, for a small model that allows it.

    Threads that share every small product wait for each other a third of the time. And one thread per product gives the same sums
    for any number of threads. The first batch runs alone, since kernels are set up at a first call.
    """
    if not items:
        return
    if not is_beside:
        yield from ((batch, _score_batch(variant, base, batch)) for batch in progress(items, "evaluate"))
        return
    threads, done = torch.get_num_threads(), progress(items, "evaluate")
    torch.set_num_threads(1)
    try:
        yield next(done), _score_batch(variant, base, items[0])
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            rest = pool.map(lambda batch: _score_batch(variant, base, batch), items[1:])
            yield from zip(done, rest, strict=True)
    finally:
        torch.set_num_threads(threads)


def batches(items: Iterable[Window], vocabulary: int) -> Iterator[Batch]:
    """Batches of equal windows, as large as BATCH_LOGITS allows; the longest first, so that a lack of memory shows early."""
    def shape(window: Window) -> tuple[int, int]:
        return window.length, window.scored

    for (length, _), alike in groupby(sorted(items, key=shape, reverse=True), key=shape):
        group, size = tuple(alike), max(1, BATCH_LOGITS // (length * vocabulary))
        for start in range(0, len(group), size):
            yield Batch(group[start : start + size])


def summarize(scores: Scores) -> dict[str, float]:
    """The quality metrics, by the keys of quant.report.metrics."""
    total, count = _sum(scores.nll), len(scores)
    return {
        "ppl": math.exp(total / count),
        "ppl_word": math.exp(total / scores.words),
        "bits_per_byte": total / math.log(2) / scores.bytes,
        "ppl_change_pct": 100 * math.expm1((total - _sum(scores.base_nll)) / count),
        "kld_mnats": 1000 * _sum(scores.kld) / count,
        "top1_agree_pct": 100 * _sum(scores.top1) / count,
    }


def divergence(scores: Scores) -> dict:
    """Distribution of the KLD in mnat, agreement of the most likely tokens in per cent, and the change of the true token's
    probability in percentage points."""
    kld, count = 1000 * scores.kld.astype(numpy.float64), len(scores)
    change = 100 * (numpy.exp(-scores.nll.astype(numpy.float64)) - numpy.exp(-scores.base_nll.astype(numpy.float64)))
    named = {"median": 50, "p99": 99, "p999": 99.9, "max": 100}
    return {
        "kld_mnats": {
            "mean": float(kld.mean()),
            **{name: float(numpy.percentile(kld, level)) for name, level in named.items()},
            "quantiles": _quantiles(kld),
        },
        "top1_agree_pct": 100 * _sum(scores.top1) / count,
        "top5_agree_pct": 100 * _sum(scores.top5) / count / TOP,
        "true_token_change_pct": {
            "mean": float(change.mean()),
            "rms": float(numpy.sqrt((change**2).mean())),
            "quantiles": _quantiles(change),
        },
    }


def _quantiles(values: numpy.ndarray) -> dict:
    return {"levels_pct": list(LEVELS), "values": numpy.percentile(values, LEVELS).tolist()}


def _sum(values: numpy.ndarray) -> float:
    return float(values.sum(dtype=numpy.float64))


def _score_batch(variant: Predictions, base: Predictions | None, batch: Batch) -> torch.Tensor:
    """The five columns of Scores for a batch, float32 [5, windows * scored]."""
    logits = variant.rows(batch)
    wanted = batch.wanted.to(logits.device).unsqueeze(-1)
    size = max(1, CHUNK_LOGITS // variant.vocabulary)
    if base is None:
        nll = torch.cat([_nll(torch.log_softmax(rows, -1), ids)
                         for rows, ids in zip(logits.split(size), wanted.split(size), strict=True)])
        return torch.stack([nll, nll, torch.zeros_like(nll), torch.ones_like(nll), torch.full_like(nll, TOP)]).cpu()
    base_logits = base.rows(batch).to(logits.device)
    parts = zip(logits.split(size), base_logits.split(size), wanted.split(size), strict=True)
    return torch.cat([_compare(*part) for part in parts], dim=1).cpu()


def _compare(rows: torch.Tensor, base_rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    log_p, base_log_p = torch.log_softmax(rows, -1), torch.log_softmax(base_rows, -1)
    count = min(TOP, rows.shape[-1])
    top, base_top = rows.topk(count, -1).indices, base_rows.topk(count, -1).indices
    shared = (top.unsqueeze(-1) == base_top.unsqueeze(-2)).any(-1).sum(-1)
    kld = torch.nn.functional.kl_div(log_p, base_log_p, reduction="none", log_target=True).sum(-1)
    return torch.stack([
        _nll(log_p, wanted),
        _nll(base_log_p, wanted),
        kld.clamp_(min=0),  # negative values are rounding errors
        (top[:, 0] == base_top[:, 0]).float(),
        shared.float(),
    ])


def _nll(log_p: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return -log_p.gather(-1, wanted).squeeze(-1)
