"""A Llama of 1.2 B parameters on a GPU, through the runner: prefill, decoding compiled and step by step, and peak memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from quant.nn.modules import QWeight
from quant.progress import MIB
from quant.runners import Runner, open_runner

ROWS = {  # as in params.yaml, without defaults
    "int8": {"method": "quant", "include": ["*"]},
    "int4": {"method": "quant", "include": ["*"], "bits": 4, "group_size": 64},
    "nf4": {"method": "quant", "include": ["*"], "bits": 4, "group_size": 64, "codebook": "nf4"},
    "bnb nf4": {"method": "bitsandbytes", "type": "nf4"},
}
PROMPT, TOKENS, ROUNDS = 512, 32, 3


def build(base: Path, name: str, out: Path) -> None:
    """Make a variant of ROWS from the model in `base`."""
    from quant.variants import variants

    variant = variants({"variants": {name.replace(" ", "-"): ROWS[name]}})[1]
    variant.method.build(base, out.parent / "prepared", variant.values, out, lambda _: None)


def measure(folder: Path, dtype: str | None, device: str, prompt: int | None = None, tokens: int = TOKENS) -> dict:
    """Load a model alone on the device, and time it. load_peak_mib, prefill_peak_mib, peak_mib: of loading alone, with prompts,
    and with decoding; decode_ms: None where nothing was compiled."""
    prompt = prompt or PROMPT
    torch.compiler.reset()  # graphs hold the model they were made of
    gc.collect()
    before = 0
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    runner = open_runner(folder, dtype, device, max_tokens=prompt + 2 * tokens)
    peaks = [_peak_mib(device, before)]
    ids = torch.arange(prompt) % 1000
    prefill = _median_ms(lambda: runner.prefill(ids), ROUNDS + 1)
    peaks.append(_peak_mib(device, before))
    decode = _decode_ms(runner, ids, tokens)
    peaks.append(_peak_mib(device, before))
    is_compiled = runner.is_compiled
    runner.decode_step_by_step()
    steps = _decode_ms(runner, ids, tokens)
    weights = sum(tensor.bytes for tensor in runner.tensors())
    found = {"prefill_ms": prefill, "decode_ms": decode if is_compiled else None, "is_compiled": is_compiled, "steps_ms": steps,
             **dict(zip(("load_peak_mib", "prefill_peak_mib", "peak_mib"), peaks, strict=True)), "weights_mib": weights / MIB}
    largest = max((2 * module.shape[0] * module.shape[-1] for module in runner.model.modules() if isinstance(module, QWeight)),
                  default=0)
    return found | ({"may_take_mib": (weights + largest) / MIB} if largest else {})


def _peak_mib(device: str, before: int) -> float:
    """Of torch's memory on the GPU so far, above the bytes of before."""
    return (torch.cuda.max_memory_allocated() - before) / MIB if device == "cuda" else 0.0


def _decode_ms(runner: Runner, ids: torch.Tensor, tokens: int) -> float:
    """Milliseconds a token, the median of some rounds after one that warms up and compiles."""
    times = []
    for _ in range(ROUNDS + 1):
        token = runner.prefill(ids)
        start = time.perf_counter()
        for _ in range(tokens):
            token = runner.decode(token)  # waits for the GPU, as it returns a number
        times.append(1000 * (time.perf_counter() - start) / tokens)
    return median(times[1:])


def _median_ms(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return median(times[1:])
