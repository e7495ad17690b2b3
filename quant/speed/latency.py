"""Times a variant and the base in alternation, so that a shared machine's drift affects both equally.

A round runs, for both in turn, a long prompt (prefill_long), the prompt (prefill: one call, until the next token is known),
and then single tokens with the cache (decode), SLICE tokens of one model before the other's turn. Prompt and all tokens together
are the phase `generate`. The first round only warms up; the samples of all others are kept. If samples scatter too widely, all
prompts are timed once more, and decoding too if decode or generate scattered. For each phase, the attempt that scatters less
counts and the other is set aside; a phase that still scatters is flagged as noisy. On a busy machine nothing is timed again, and
all phases are flagged: there, samples that agree may all be wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from quant.errors import InputError
from quant.progress import progress
from quant.runners import Runner
from quant.speed.plan import TimingPlan
from quant.speed.samples import ratios_of_pairs, spread

SLICE = 16  # tokens that one model decodes before the other's turn; one sample
MAX_SCATTER = 0.2  # median absolute deviation over median
Clock = Callable[[], float]  # seconds


@dataclass
class Samples:
    """Milliseconds by phase and model, where samples at the same place form a pair; and the tokens that each model generated."""

    ms: dict[str, dict[str, list[float]]]
    generated: dict[str, list[int]]

    @classmethod
    def empty(cls) -> Samples:
        return cls({}, {})

    def add(self, phase: str, model: str, ms: float) -> None:
        self.ms.setdefault(phase, {}).setdefault(model, []).append(ms)

    def scatter(self, phase: str) -> float:
        """Median absolute deviation over median, the largest of all models."""
        return max(found["mad"] / found["median"] for found in map(spread, self.ms[phase].values()))

    @property
    def noisy_phases(self) -> set[str]:
        return {phase for phase in self.ms if self.scatter(phase) > MAX_SCATTER}

    def calmer(self, other: Samples) -> tuple[Samples, dict]:
        """Choose for each phase the samples that scatter less. Returns all phases, and the rejected samples for JSON."""
        chosen, aside = dict(self.ms), {}
        for phase in other.ms:
            swap = other.scatter(phase) < self.scatter(phase)
            chosen[phase], left = (other.ms[phase], self.ms[phase]) if swap else (self.ms[phase], other.ms[phase])
            aside[phase] = {"ms": left["variant"], "base_ms": left["base"]}
        return Samples(chosen, self.generated), aside


def compare(variant: Runner, base: Runner, text: torch.Tensor, plan: TimingPlan, clock: Clock = time.perf_counter,
            is_quiet: Callable[[], bool] = lambda: True) -> tuple[dict, dict[str, list[int]]]:
    """Time both on the first ids of `text`, int64 [n] -> (timing, attempts, set_aside and is_noisy for JSON; generated tokens).

    Times are in ms, those of decode per token; speedups are the base's time over the variant's. is_quiet: says after each attempt
    whether the machine has been quiet. Raises InputError where the plan does not fit the text or the models' context.
    """
    context = min(variant.context, base.context)
    check_plan(plan, context, len(text))
    lengths = {"prefill_long": plan.long_prompt(min(context, len(text))), "prefill": plan.prompts[0]}
    prompts = {phase: text[:length] for phase, length in lengths.items() if length}
    models = {"variant": variant, "base": base}
    samples, aside = measure(models, prompts, plan.tokens, plan.rounds, clock), None
    quiet = is_quiet()
    if quiet and samples.noisy_phases:
        tokens = plan.tokens if samples.noisy_phases & {"decode", "generate"} else 0
        samples, aside = samples.calmer(measure(models, prompts, tokens, plan.rounds, clock))
        quiet = is_quiet()
    noisy = samples.noisy_phases if quiet else set(samples.ms)
    result = {
        "timing": {"prefill_long": None} | {
            phase: {**_phase(samples, phase, prompts, plan), "is_noisy": phase in noisy} for phase in samples.ms
        },
        "attempts": 2 if aside else 1,
        "set_aside": aside,
        "is_noisy": bool(noisy),
    }
    return result, samples.generated


def check_plan(plan: TimingPlan, context: int, text: int) -> None:
    """Raise InputError where a plan does not fit a context or a text of so many tokens."""
    if plan.prompts[0] + plan.tokens > context or plan.prompts[0] > text:
        raise InputError(f"the first of benchmark.prompts, {plan.prompts[0]}, and benchmark.tokens, {plan.tokens}, don't fit "
                         f"the model's context of {context} and the corpus of {text} tokens; make them smaller")


def measure(models: dict[str, Runner], prompts: dict[str, torch.Tensor], tokens: int, rounds: int,
            clock: Clock = time.perf_counter) -> Samples:
    """Run all rounds. prompts: phase -> ids, int64 [n], in the order of the phases, `prefill` last. tokens: to generate after the
    last prompt; with 0 there are no phases decode and generate."""
    _round(models, prompts, min(SLICE, tokens), -1, Samples.empty(), clock)  # warms up
    samples = Samples.empty()
    for number in progress(range(rounds), "benchmark"):
        _round(models, prompts, tokens, number, samples, clock)
    return samples


def _round(models: dict[str, Runner], prompts: dict[str, torch.Tensor], tokens: int, number: int, samples: Samples,
           clock: Clock) -> None:
    """Run one round. The order of the models rotates from round to round, and from slice to slice."""
    total = dict.fromkeys(models, 0.0)
    for phase, prompt in prompts.items():
        for name in _order(models, number):
            start = clock()
            token = models[name].prefill(prompt)
            total[name] = 1000 * (clock() - start)
            samples.generated[name] = [token]
            samples.add(phase, name, total[name])
    for slice_number, done in enumerate(range(0, tokens, SLICE)):
        count = min(SLICE, tokens - done)
        for name in _order(models, number + slice_number):
            model, generated = models[name], samples.generated[name]
            start = clock()
            for _ in range(count):
                generated.append(model.decode(generated[-1]))
            elapsed = 1000 * (clock() - start)
            total[name] += elapsed
            samples.add("decode", name, elapsed / count)
    for name in models if tokens else ():
        samples.add("generate", name, total[name])


def _order(models: dict[str, Runner], number: int) -> list[str]:
    """Names of the models, rotated by `number`."""
    names = list(models)
    first = number % len(names)
    return names[first:] + names[:first]


def _phase(samples: Samples, phase: str, prompts: dict[str, torch.Tensor], plan: TimingPlan) -> dict:
    ms, base_ms = samples.ms[phase]["variant"], samples.ms[phase]["base"]
    prompt = prompts.get(phase, prompts["prefill"])
    tokens = len(prompt) if phase in prompts else plan.tokens
    per_sample = 1 if phase == "decode" else tokens
    return {
        "prompt_tokens": len(prompt),
        "asked_tokens": plan.prompts[-1] if phase == "prefill_long" else plan.prompts[0],
        "tokens": tokens,
        "ms": spread(ms),
        "base_ms": spread(base_ms),
        "speedup": spread(ratios_of_pairs(base_ms, ms)),
        "tokens_per_s": 1000 * per_sample / median(ms),
        "base_tokens_per_s": 1000 * per_sample / median(base_ms),
    }
