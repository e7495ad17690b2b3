"""Time of a variant and of the base, in turn, so that the drift of a shared machine hits both alike.

Prefill: one call on a prompt, until the next token is known. Decode: then one token a call, with the cache.
The first round warms up and is thrown away.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from quant.errors import InputError
from quant.measure.statistics import ratio_of_pairs, spread
from quant.progress import progress
from quant.runners import Runner
from quant.scheme import known_keys


@dataclass(frozen=True)
class Clock:
    """prompt, tokens: lengths in tokens; rounds: counted repetitions; threads: of every runtime."""

    prompt: int = 128
    tokens: int = 32
    rounds: int = 7
    threads: int = 2

    def __post_init__(self) -> None:
        for key in ("prompt", "tokens", "rounds", "threads"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"benchmark.{key} is {value!r}; expected a whole number from 1")

    @classmethod
    def from_dict(cls, values: dict) -> Clock:
        return cls(**known_keys(cls, values, "benchmark"))


def compare(variant: Runner, base: Runner, text: torch.Tensor, clock: Clock) -> dict:
    """Time both on the first `prompt` ids of `text`; times in ms, speedups as base's time over the variant's."""
    room = min(variant.context, base.context)
    if clock.prompt + clock.tokens > room or clock.prompt > len(text):
        raise InputError(f"benchmark.prompt {clock.prompt} and benchmark.tokens {clock.tokens} don't fit the model's context "
                         f"of {room} and the corpus of {len(text)} tokens; make them smaller")
    prompt = text[: clock.prompt]
    times: dict[str, dict[str, list[float]]] = {who: {"prefill": [], "decode": []} for who in ("variant", "base")}
    for number in progress(range(clock.rounds + 1), "benchmark"):
        turn = [("variant", variant), ("base", base)]
        for who, runner in turn if number % 2 else reversed(turn):
            prefill, decode = _one_round(runner, prompt, clock.tokens)
            if number:
                times[who]["prefill"].append(prefill)
                times[who]["decode"].append(decode)
    result: dict = {}
    for phase in ("prefill", "decode"):
        mine, theirs = times["variant"][phase], times["base"][phase]
        result[phase] = {"ms": spread(mine), "base_ms": spread(theirs), "speedup": ratio_of_pairs(theirs, mine)}
    return result


def _one_round(runner: Runner, prompt: torch.Tensor, count: int) -> tuple[float, float]:
    """Milliseconds of the prefill, and of one decoded token on average."""
    start = time.perf_counter()
    token = runner.prefill(prompt)
    middle = time.perf_counter()
    for _ in range(count):
        token = runner.decode(token)
    stop = time.perf_counter()
    return 1000 * (middle - start), 1000 * (stop - middle) / count
