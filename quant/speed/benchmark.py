"""Measures a variant's speed and memory, alternating with the base; never cached."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch

from quant.device import resolve_device
from quant.files import significant
from quant.progress import MIB
from quant.quality.protocol import ScoringProtocol
from quant.quality.windows import open_tokenizer, tokenize
from quant.runners import Runner, import_runtime, open_runner
from quant.runners.sizes import bytes_per_token
from quant.speed.bandwidth import memory_read_gb_per_s
from quant.speed.environment import environment
from quant.speed.latency import check_plan, compare
from quant.speed.memory import PeakMemory
from quant.speed.plan import TimingPlan
from quant.speed.watch import Watch, watch_machine
from quant.text.corpus import Corpus

T = TypeVar("T")


def benchmark(folder: Path, base: Path, corpus: Corpus, plan: TimingPlan, device: str, modules: tuple[str, ...] = (),
              watch: Watch | None = None) -> dict:
    """Speed of the variant in `folder` compared with the base, and its peak memory, for JSON.

    Call it in a fresh process, so that the peak is this variant's alone. modules: to import before loading is timed. watch: of
    the machine, which has waited for quiet; without one, the wait is here, before loading, which is timed too. If the machine is
    busy, fewer rounds are run, and all timings count as noisy.
    """
    device = resolve_device(device)
    watch = watch or watch_machine(plan.threads, plan.wait)
    torch.set_num_threads(plan.threads)
    beginning = replace(corpus, lines=corpus.lines[: plan.max_tokens])  # every line has at least one token
    text = tokenize(beginning, base, ScoringProtocol()).ids
    prompt = text[: plan.prompts[0]]
    import_runtime(folder, modules)
    peak = PeakMemory(device)
    model, load_s = _timed(lambda: open_runner(folder, None, device, plan.threads, plan.max_tokens))
    loading = peak.phase()
    check_plan(plan, model.context, len(text))
    token, first_call_s = _timed(lambda: model.prefill(prompt))
    for _ in range(plan.tokens):
        token = model.decode(token)
    generating = peak.phase()
    import_runtime(base)
    base_model, base_load_s = _timed(lambda: open_runner(base, None, device, plan.threads, plan.max_tokens))
    _, base_first_call_s = _timed(lambda: base_model.prefill(prompt))
    shortened = replace(plan, rounds=watch.shorten(plan.rounds))
    result, generated = compare(model, base_model, text, shortened, is_quiet=watch.still_quiet)
    _add_bandwidth(result["timing"]["decode"], model, base_model)
    timing = result["timing"]
    timing["decode"] |= {"is_compiled": model.is_compiled, "base_is_compiled": base_model.is_compiled}
    metrics = {
        "peak_rss_mib": max(loading["peak"], generating["peak"]) / MIB,
        "load_s": load_s,
        "prefill_ms": timing["prefill"]["ms"]["median"],
        "prefill_speedup": timing["prefill"]["speedup"]["median"],
        "decode_ms_per_token": timing["decode"]["ms"]["median"],
        "decode_speedup": timing["decode"]["speedup"]["median"],
    }
    return {
        "metrics": significant(metrics, 4),
        "load": significant({"load_s": load_s, "base_load_s": base_load_s, "first_call_ms": 1000 * first_call_s,
                             "base_first_call_ms": 1000 * base_first_call_s}),
        "memory": significant(_memory(peak, loading, generating), 4),
        **significant(result),
        "machine_load": watch.to_dict(),
        "plan": {**asdict(plan), "torch_threads": torch.get_num_threads()},
        "generation": _generation(base, corpus, prompt, generated),
        "environment": {**environment(), "memory_read_gb_per_s": significant(memory_read_gb_per_s(device), 4)},
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Result of `work`, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _memory(peak: PeakMemory, loading: dict[str, int], generating: dict[str, int]) -> dict:
    return {
        "interpreter_mib": peak.interpreter / MIB,
        "resident_mib": generating["resident"] / MIB,
        "load_peak_mib": loading["peak"] / MIB,
        "generate_peak_mib": generating["peak"] / MIB,
        "cuda": None if "gpu" not in loading else {
            "allocated_mib": loading["gpu"] / MIB,
            "load_peak_mib": loading["gpu_peak"] / MIB,
            "generate_peak_mib": generating["gpu_peak"] / MIB,
        },
    }


def _add_bandwidth(decode: dict, model: Runner, base: Runner) -> None:
    """Add the bytes of weights read per token and per second, to compare with the bandwidth of memory."""
    for prefix, runner in (("", model), ("base_", base)):
        size = bytes_per_token(runner.tensors())
        decode[f"{prefix}weight_bytes_per_token"] = size
        decode[f"{prefix}gb_per_s"] = size / (decode[f"{prefix}ms"]["median"] / 1000) / 1e9


def _generation(base: Path, corpus: Corpus, prompt: torch.Tensor, generated: dict[str, list[int]]) -> dict:
    """The texts that both generated after the same prompt, and the prompt, if its text may be published."""
    tokenizer = open_tokenizer(base)
    texts = {name: tokenizer.decode(ids) for name, ids in generated.items()}
    return {
        "prompt": None if corpus.private else tokenizer.decode(prompt.tolist()),
        "prompt_tokens": len(prompt),
        "tokens": len(generated["variant"]),
        "text": texts["variant"],
        "base_text": texts["base"],
        "is_same": generated["variant"] == generated["base"],
    }
