"""Milliseconds of a token for several sequences at once, which read the same weights: it should take little more than for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

import torch

from quant.kernels import precision
from quant.runners import Runner
from quant.speed.samples import spread

COUNTS = (1, 2, 4, 8)
_STEPS = 3  # of a batch, one after another; the last one is timed: it finds the caches as in a longer run


def batches(runners: Mapping[str, Runner], prompt: int, rounds: int, precisions: Sequence[str]) -> dict[str, dict]:
    """Runner -> precision -> sequences -> {median, mad, ...} of milliseconds, all of a runner in turn. prompt: tokens before."""
    return {name: _batches_of(runner.model, prompt, rounds, precisions) for name, runner in runners.items()}


def precisions_here() -> list[str]:
    """The precisions in which this processor multiplies a batch."""
    return ["exact", "int8"] if precision.HAS_INT8 else ["exact"]


@torch.inference_mode()
def _batches_of(model: torch.nn.Module, prompt: int, rounds: int, precisions: Sequence[str]) -> dict:
    random = torch.Generator().manual_seed(0)
    inputs = {count: torch.randint(0, 1000, (count, prompt), generator=random) for count in COUNTS}
    caches = {count: model(tokens, use_cache=True).past_key_values for count, tokens in inputs.items()}
    samples: dict[str, dict[int, list[float]]] = {choice: {count: [] for count in COUNTS} for choice in precisions}
    for _ in range(rounds + 1):  # the first round warms up
        for count, tokens in inputs.items():
            for choice in precisions:
                with precision.using(choice):
                    for _ in range(_STEPS):
                        start = perf_counter()
                        model(tokens[:, :1], past_key_values=caches[count], use_cache=True)
                        seconds = perf_counter() - start
                samples[choice][count].append(1000 * seconds)
    return {choice: {count: spread(ms[1:]) for count, ms in of_counts.items()} for choice, of_counts in samples.items()}
