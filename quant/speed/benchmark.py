"""Speed and memory of one variant, in turn with the base; never cached."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TypeVar

import torch

from quant.text.corpus import Corpus
from quant.speed.environment import environment
from quant.speed.bandwidth import memory_read_gb_per_s
from quant.speed.latency import Clock, compare
from quant.speed.memory import MIB, PeakMemory, bytes_per_token
from quant.speed.samples import significant
from quant.quality.windows import Protocol, open_tokenizer, tokenize
from quant.runners import Runner, import_runtime, open_runner, resolve_device
from quant.variants import BASE, Variant

T = TypeVar("T")


def benchmark(variant: Variant, corpus: Corpus, clock: Clock, device: str) -> dict:
    """Speed against the base and peak memory. For a fresh process: memory is that of the first model it loads."""
    device = resolve_device(device)
    torch.set_num_threads(clock.threads)
    beginning = replace(corpus, lines=corpus.lines[: clock.room])  # a line has a token at least
    text = tokenize(beginning, BASE, Protocol()).ids
    prompt = text[: clock.prompts[0]]
    import_runtime(variant.folder)
    peak = PeakMemory(device)
    model, load_s = _timed(lambda: open_runner(variant.folder, variant.dtype, device, clock.threads, clock.room))
    loading = peak.phase()
    token, first_call_s = _timed(lambda: model.prefill(prompt))
    for _ in range(clock.tokens):
        token = model.decode(token)
    generating = peak.phase()
    import_runtime(BASE)
    base, base_load_s = _timed(lambda: open_runner(BASE, "float32", device, clock.threads, clock.room))
    _, base_first_call_s = _timed(lambda: base.prefill(prompt))
    result, generated = compare(model, base, text, clock)
    _add_bandwidth(result["timing"]["decode"], model, base)
    timing = result["timing"]
    metrics = {
        "peak_rss_mib": max(loading["peak"], generating["peak"]) / MIB,
        "load_s": load_s,
        "prefill_ms": timing["prefill"]["ms"]["median"],
        "prefill_speedup": timing["prefill"]["speedup"]["median"],
        "decode_ms_per_token": timing["decode"]["ms"]["median"],
        "decode_speedup": timing["decode"]["speedup"]["median"],
    }
    return {
        "variant": variant.name,
        "metrics": significant(metrics, 4),
        "load": significant({"load_s": load_s, "base_load_s": base_load_s, "first_call_ms": 1000 * first_call_s,
                             "base_first_call_ms": 1000 * base_first_call_s}),
        "memory": significant(_memory(peak, loading, generating), 4),
        **significant(result),
        "clock": {**asdict(clock), "torch_threads": torch.get_num_threads()},
        "generation": _generation(corpus, prompt, generated),
        "environment": {**environment(), "memory_read_gb_per_s": significant(memory_read_gb_per_s(device), 4)},
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` gives, and the seconds it took."""
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
    """Weight bytes read per token, and per second: to be held against what the machine's memory gives."""
    for prefix, runner in (("", model), ("base_", base)):
        size = bytes_per_token(runner.tensors())
        decode[f"{prefix}weight_bytes_per_token"] = size
        decode[f"{prefix}gb_per_s"] = size / (decode[f"{prefix}ms"]["median"] / 1000) / 1e9


def _generation(corpus: Corpus, prompt: torch.Tensor, generated: dict[str, list[int]]) -> dict:
    """What both wrote after the same prompt; the prompt itself only where its text may be passed on."""
    tokenizer = open_tokenizer(BASE)
    texts = {who: tokenizer.decode(ids) for who, ids in generated.items()}
    return {
        "prompt": None if corpus.source == "ptb" else tokenizer.decode(prompt.tolist()),
        "prompt_tokens": len(prompt),
        "tokens": len(generated["variant"]),
        "text": texts["variant"],
        "base_text": texts["base"],
        "is_same": generated["variant"] == generated["base"],
    }
