"""One variant, two stages: its quality and size (the same bytes at every run), and its speed and memory (never cached)."""

from __future__ import annotations

import time
from pathlib import Path

from quant.architectures import architecture_of
from quant.checkpoint import Checkpoint
from quant.corpus import Corpus
from quant.measure.latency import Clock, compare
from quant.measure.memory import MIB, PeakMemory, disk_bytes, held_bytes
from quant.measure.quality import score, summarize
from quant.measure.statistics import significant
from quant.measure.windows import PROTOCOL_VERSION, Protocol, tokenize
from quant.runners import open_runner, resolve_device
from quant.variants import Variant

BASE = Path("models/base")


def evaluate(variant: Variant, corpus: Corpus, protocol: Protocol, device: str) -> dict:
    """Quality against the base, and the bytes of the weights; with the protocol that the numbers hold for."""
    device = resolve_device(device)
    tokens = tokenize(corpus, BASE, protocol)
    model = open_runner(variant.folder, variant.dtype, device)
    base = None if variant.name == "base" else open_runner(BASE, "float32", device)
    metrics = summarize(score(model, base, tokens, protocol), tokens)
    held = held_bytes(model)
    weights = sum(held.values())
    metrics |= {
        "bits_per_weight": 8 * weights / count_parameters(BASE),
        "weights_mib": weights / MIB,
        "disk_mib": disk_bytes(variant.folder) / MIB,
    }
    return {
        "variant": variant.name,
        "metrics": {key: significant(value) for key, value in metrics.items()},
        "held_bytes": held,
        "protocol": {
            "name": protocol.name, "version": PROTOCOL_VERSION, "context": min(protocol.context, model.context),
            "stride": min(protocol.stride, model.context), "line": protocol.line, "unk": "plain text",
            "tokens": tokens.scored, "words": tokens.words, "bytes": tokens.bytes, "token_ids_sha256": tokens.sha256,
        },
    }


def benchmark(variant: Variant, corpus: Corpus, protocol: Protocol, clock: Clock, device: str) -> dict:
    """Speed against the base and peak memory. For a fresh process: memory is that of the first model it loads."""
    device = resolve_device(device)
    text = tokenize(corpus, BASE, protocol).ids
    peak = PeakMemory()
    start = time.perf_counter()
    model = open_runner(variant.folder, variant.dtype, device, clock.threads)
    load_s = time.perf_counter() - start
    token = model.prefill(text[: clock.prompt])
    for _ in range(clock.tokens):
        token = model.decode(token)
    peak_rss = peak.bytes()
    base = open_runner(BASE, "float32", device, clock.threads)
    timing = compare(model, base, text, clock)
    metrics = {
        "peak_rss_mib": peak_rss / MIB,
        "load_s": load_s,
        "prefill_ms": timing["prefill"]["ms"]["median"],
        "prefill_speedup": timing["prefill"]["speedup"],
        "decode_ms_per_token": timing["decode"]["ms"]["median"],
        "decode_speedup": timing["decode"]["speedup"],
    }
    return {
        "variant": variant.name,
        "metrics": {key: significant(value, 4) for key, value in metrics.items()},
        "timing": timing,
    }


def count_parameters(base: Path) -> int:
    """Weights of the model, tied ones once."""
    checkpoint = Checkpoint(base)
    architecture = architecture_of(checkpoint.config)
    return sum(
        info.count for tensor, info in checkpoint.tensors.items() if architecture.counts(tensor, checkpoint.config)
    )
