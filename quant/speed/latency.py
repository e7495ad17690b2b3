"""Time of a variant and of the base, in turn, so that the drift of a shared machine hits both alike.

A round is, for both in turn: a long prompt (prefill_long), then the prompt (prefill: one call, until the next token is
known), then tokens one a call with the cache (decode), a piece of SLICE tokens here and a piece there. The prompt and all
tokens together are `generate`. The first round warms up and is thrown away; what was measured is kept raw. Where samples
scatter too widely, all is measured once more, decoding only where it is what scatters; of each phase the calmer
samples count, the others are set aside, and what scatters still is flagged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

from quant.errors import InputError
from quant.progress import progress
from quant.runners import Runner
from quant.speed.plan import TimingPlan
from quant.speed.samples import ratios_of_pairs, spread

SLICE = 16  # tokens decoded before the other model has its turn; one sample
TOO_WIDE = 0.2  # median absolute deviation over median
WHO = ("variant", "base")


@dataclass
class Samples:
    """Raw milliseconds by phase and by model, the two pair by pair; and the tokens that each model generated."""

    ms: dict[str, dict[str, list[float]]]
    generated: dict[str, list[int]]

    @classmethod
    def empty(cls) -> Samples:
        return cls({}, {})

    def add(self, phase: str, who: str, ms: float) -> None:
        self.ms.setdefault(phase, {}).setdefault(who, []).append(ms)

    def scatter(self, phase: str) -> float:
        """Median absolute deviation over median, the widest of the models."""
        return max(found["mad"] / found["median"] for found in map(spread, self.ms[phase].values()))

    @property
    def wide(self) -> set[str]:
        """The phases whose samples scatter too widely."""
        return {phase for phase in self.ms if self.scatter(phase) > TOO_WIDE}

    def calmer(self, other: Samples) -> tuple[Samples, dict]:
        """Of each phase the samples that scatter less -> (all phases of this one; the samples not taken)."""
        chosen, aside = dict(self.ms), {}
        for phase in other.ms:
            swap = other.scatter(phase) < self.scatter(phase)
            chosen[phase], left = (other.ms[phase], self.ms[phase]) if swap else (self.ms[phase], other.ms[phase])
            aside[phase] = {"ms": left["variant"], "base_ms": left["base"]}
        return Samples(chosen, self.generated), aside


def compare(variant: Runner, base: Runner, text: torch.Tensor, plan: TimingPlan) -> tuple[dict, dict[str, list[int]]]:
    """Time both on the first ids of `text` -> (timing, attempts and set_aside of the result; the tokens each generated).

    Times in ms, of decode per token; speedups are base's time over the variant's.
    """
    room = min(variant.context, base.context)
    if plan.prompts[0] + plan.tokens > room or plan.prompts[0] > len(text):
        raise InputError(f"the first of benchmark.prompts, {plan.prompts[0]}, and benchmark.tokens, {plan.tokens}, don't fit "
                         f"the model's context of {room} and the corpus of {len(text)} tokens; make them smaller")
    lengths = {"prefill_long": plan.long_prompt(min(room, len(text))), "prefill": plan.prompts[0]}
    prompts = {phase: text[:length] for phase, length in lengths.items() if length}
    models = {"variant": variant, "base": base}
    samples, aside = measure(models, prompts, plan.tokens, plan.rounds), None
    if samples.wide:
        tokens = plan.tokens if samples.wide & {"decode", "generate"} else 0
        samples, aside = samples.calmer(measure(models, prompts, tokens, plan.rounds))
    result = {
        "timing": {"prefill_long": None} | {phase: _phase(samples, phase, prompts, plan) for phase in samples.ms},
        "attempts": 2 if aside else 1,
        "set_aside": aside,
        "is_noisy": bool(samples.wide),
    }
    return result, samples.generated


def measure(models: dict[str, Runner], prompts: dict[str, torch.Tensor], tokens: int, rounds: int) -> Samples:
    """All rounds of the models by name; prompts: phase -> ids, in the order they are run, `prefill` last.
    tokens: to generate after it; 0 leaves decode and generate out."""
    _round(models, prompts, min(SLICE, tokens), -1, Samples.empty())  # warms up
    samples = Samples.empty()
    for number in progress(range(rounds), "benchmark"):
        _round(models, prompts, tokens, number, samples)
    return samples


def _round(models: dict[str, Runner], prompts: dict[str, torch.Tensor], tokens: int, number: int, samples: Samples) -> None:
    """All models through every phase, in turn; who begins changes from round to round, and from piece to piece."""
    whole = dict.fromkeys(models, 0.0)
    for phase, prompt in prompts.items():
        for who in _turn(models, number):
            start = time.perf_counter()
            token = models[who].prefill(prompt)
            whole[who] = _ms_since(start)
            samples.generated[who] = [token]
            samples.add(phase, who, whole[who])
    for piece, done in enumerate(range(0, tokens, SLICE)):
        count = min(SLICE, tokens - done)
        for who in _turn(models, number + piece):
            model, generated = models[who], samples.generated[who]
            start = time.perf_counter()
            for _ in range(count):
                generated.append(model.decode(generated[-1]))
            elapsed = _ms_since(start)
            whole[who] += elapsed
            samples.add("decode", who, elapsed / count)
    for who in models if tokens else ():
        samples.add("generate", who, whole[who])


def _turn(models: dict[str, Runner], number: int) -> list[str]:
    names = list(models)
    first = number % len(names)
    return names[first:] + names[:first]


def _ms_since(start: float) -> float:
    return 1000 * (time.perf_counter() - start)


def _phase(samples: Samples, phase: str, prompts: dict[str, torch.Tensor], plan: TimingPlan) -> dict:
    mine, theirs = (samples.ms[phase][who] for who in WHO)
    prompt = prompts.get(phase, prompts["prefill"])
    tokens = len(prompt) if phase in prompts else plan.tokens
    per_sample = 1 if phase == "decode" else tokens
    return {
        "prompt_tokens": len(prompt),
        "asked_tokens": plan.prompts[-1] if phase == "prefill_long" else plan.prompts[0],
        "tokens": tokens,
        "ms": spread(mine),
        "base_ms": spread(theirs),
        "speedup": spread(ratios_of_pairs(theirs, mine)),
        "tokens_per_s": 1000 * per_sample / median(mine),
        "base_tokens_per_s": 1000 * per_sample / median(theirs),
        "is_noisy": phase in samples.wide,
    }
