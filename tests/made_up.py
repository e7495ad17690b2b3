"""Made-up results in the form that the stages evaluate, benchmark and compare write, steered by a test."""

import math
import random

from quant.files import write_json
from quant.report.metrics import METRICS
from quant.report.results import Result, Run
from quant.variants import variants

PARAMS = {
    "model": {"source": "made-up", "revision": None},
    "data": {"source": "grammar", "sentences": 3000},
    "device": "cpu",
    "quant": {"bits": 8, "group_size": "row", "symmetric": True, "codebook": "linear", "scale_dtype": "float32",
              "double_quant": False, "fit": "range", "levels": "narrow", "zeros": "real"},
    "variants": {
        "bf16": {"method": "float", "dtype": "bfloat16"},
        "whole": {"method": "quant", "include": ["*"]},
        "selective": {"method": "quant", "include": ["attention", "mlp"]},
        **{name: {"method": "quant", "include": ["attention", "mlp"], "bits": 4, "group_size": 64, "codebook": codebook}
           for name, codebook in (("int4", "linear"), ("nf4", "nf4"), ("fp4", "fp4"))},
        "bnb-nf4": {"method": "bitsandbytes", "type": "nf4"},
        "gguf-f16": {"method": "llama_cpp", "type": "F16"},
        "gguf-q4_0": {"method": "llama_cpp", "type": "Q4_0"},
    },
    "evaluate": {"protocol": "joined/1", "context": 256, "stride": 256, "line": " {} \n", "unk": "text"},
    "family": {"variants": ["whole"], "models": {"small": {"source": "smaller", "revision": None}}},
    "sensitivity": {"bits": 4, "group_size": 64, "windows": 8},
    "benchmark": {"prompts": [128, 512], "tokens": 64, "rounds": 4, "threads": 2},
}  # fmt: skip
CORPUS = {"source": "grammar", "sentences": 3000, "words": 35000, "sha256": "ab" * 32, "floor_nats": None}
MODEL = {"source": "made-up", "revision": None, "architecture": "gpt2", "dtype": "float16",
         "files": {"model.safetensors": {"sha256": "cd" * 32}, "tokenizer`<img src=x>`{=html}.json": {"sha256": "ef" * 32}}}
DEFAULTS = {"ppl": 20.0, "ppl_change_pct": 0.0, "kld_mnats": 1.0, "weights_mib": 100.0, "bits_per_weight": 32.0,
            "top1_agree_pct": 99.0, "disk_mib": 50.0}  # of the other metrics: 1
LEVELS = [1, 5, 25, 50, 75, 90, 95, 99, 99.9]
BLOCKS, TOKENS = 40, 1000


def with_rows(rows, params=PARAMS):
    """`params` with these rows of `variants`: values added to a row, or None in place of a row that goes."""
    kept = {name: row for name, row in params["variants"].items() if rows.get(name, row) is not None}
    changed = {name: kept.get(name, {}) | values for name, values in rows.items() if values is not None}
    return params | {"variants": kept | changed}


def with_only(*methods):
    """PARAMS with the variants of these methods only."""
    return PARAMS | {"variants": {name: row for name, row in PARAMS["variants"].items() if row["method"] in methods}}


def made_up(params=PARAMS, **changes):
    """A run of all variants of `params`. changes: variant (- as _) -> metrics that differ from DEFAULTS, and

    noise: how far a block of text strays from the mean change, in per cent of perplexity and in mnat (0.01);
    noisy: whether the timings varied too much (False); text: the generated text; gb_per_s: bandwidth of decoding; cuda: memory of
    a GPU; held: dtypes of the weights in memory; noted: entries of the variant's manifest.
    """
    results = tuple(_result(variant, dict(changes.get(variant.name.replace("-", "_"), {}))) for variant in variants(params))
    return Run(results, WEIGHTS, params, SENSITIVITY, [_relative(name, results) for name in params["family"]["models"]], TRAINED)


def write_results(run, reports):
    """Write the files of a run's results in the folder `reports`, as the stages leave them."""
    for result in run.results:
        for kind, found in (("quality", result.quality), ("speed", result.speed)):
            (reports / kind).mkdir(parents=True, exist_ok=True)
            write_json(reports / kind / f"{result.name}.json", found)
    write_json(reports / "studies" / "weights.json", run.weights)
    write_json(reports / "studies" / "sensitivity.json", run.sensitivity)
    if run.trained:
        write_json(reports / "studies" / "trained.json", run.trained)
    for relative in run.family:
        write_json(reports / "studies" / "family" / f"{relative['name']}.json", relative)


def _relative(name, results):
    """A model of a quarter of base's size, worse by a tenth, unquantized and as `whole`."""
    base = results[0].quality
    blocks = {**base["blocks"], "nll": [1.1 * nll for nll in base["blocks"]["nll"]]}
    row = {"bits_per_weight": 16.0, "bits_per_byte": 1.1, "interval": [1.05, 1.15], "ppl": 30.0, "kld_mnats": 0.0,
           "blocks": blocks}
    rows = [{"variant": "unquantized", "weights_mib": 30.0, **row}, {"variant": "whole", "weights_mib": 15.0, **row},
            {"variant": "int4", "refused": "groups of 64 do not divide 100"}]
    return {"name": name, "source": "smaller", "revision": None, "architecture": "gpt2", "parameters": base["parameters"] // 4,
            "rows": rows}


def _result(variant, changes):
    held, noted = changes.pop("held", ("float32",)), changes.pop("noted", None)
    noise, noisy, text = changes.pop("noise", 0.01), changes.pop("noisy", False), changes.pop("text", "the same words")
    speed = {key: changes.pop(key) for key in ("gb_per_s", "cuda") if key in changes}
    metrics = dict.fromkeys(METRICS, 1.0) | DEFAULTS | changes
    if variant.name == "base":
        metrics |= {"ppl_change_pct": 0.0, "kld_mnats": 0.0}
        noise = 0.0
    else:
        metrics["ppl"] = metrics["ppl"] * (1 + metrics["ppl_change_pct"] / 100)
    quality = _quality(variant, metrics, noise, held) | ({"manifest": noted} if noted else {})
    return Result(variant, metrics, quality, _speed(metrics, noisy, text, **speed))


def _quality(variant, metrics, noise, held):
    change, kld = metrics["ppl_change_pct"], metrics["kld_mnats"]
    text, own = random.Random("text"), random.Random(variant.name)
    base = [TOKENS * (3 + text.gauss(0, 0.2)) for _ in range(BLOCKS)]
    strays = [own.gauss(0, 1) for _ in range(BLOCKS)]
    strays = [noise * (stray - sum(strays) / BLOCKS) for stray in strays]
    half = 2 * noise / math.sqrt(BLOCKS)
    quantized = variant.method.name != "float"
    size = int(metrics["weights_mib"] * 2**20)
    part = {"group": "mlp", "role": "up", "tensors": 1}
    sizes = [part | {"part": "floats", "dtype": "float32", "bytes": size - 3 * (size // 4) if quantized else size}]
    if quantized:
        sizes += [part | {"part": "codes", "dtype": "uint8", "bytes": 2 * (size // 4)},
                   part | {"part": "scales", "dtype": "float32", "bytes": size // 4, "group": "attention", "role": "q+k+v"}]
    spread = {"levels_pct": LEVELS, "values": [kld * level / 50 for level in LEVELS]}
    return {
        "variant": variant.name,
        "metrics": metrics,
        "protocol": {"name": "joined", "version": 1, "split": "test", "source": "grammar", "sentences": 3000, "line": " {} \n",
                     "join": "", "context": 256, "stride": 256, "unk": "text", "tokens": BLOCKS * TOKENS, "words": 35000,
                     "bytes": 200000, "token_ids_sha256": "28" * 32},
        "parameters": size // 4,
        "held_bytes": dict.fromkeys(held, size // len(held)),
        "size_breakdown": sizes,
        "module_counts": {"Linear": 6, "Embedding": 2},
        "divergence": {
            "kld_mnats": {"mean": kld, "median": kld / 2, "p99": 10 * kld, "p999": 40 * kld, "max": 100 * kld,
                          "quantiles": spread},
            "top1_agree_pct": 99.0, "top5_agree_pct": 98.0,
            "true_token_change_pct": {"mean": 0.0, "rms": 0.1,
                                      "quantiles": {"levels_pct": LEVELS, "values": [0.0] * len(LEVELS)}},
        },
        "intervals": {"level": 0.95, "resamples": 1000, "seed": 0, "ppl_change_pct": [change - half, change + half],
                      "kld_mnats": [max(0.0, kld - half), kld + half], "bits_per_byte": [0.99, 1.01],
                      "is_significant": abs(change) > half},
        "blocks": {"bytes_per_block": 5000, "text_sha256": "12" * 32, "tokens": [TOKENS] * BLOCKS, "bytes": [5000] * BLOCKS,
                   "top1": [990] * BLOCKS,
                   "nll": [b + TOKENS * (math.log1p(change / 100) + s / 100) for b, s in zip(base, strays, strict=True)],
                   "kld": [TOKENS * (kld + s) / 1000 for s in strays]},
    }  # fmt: skip


def _spread(median, width=0.01):
    return {"median": median, "mad": median * width, "p90": median * (1 + 2 * width),
            "raw": [median * (1 + width * i) for i in (-2, -1, 0, 1, 2)]}


def _speed(metrics, noisy, text, gb_per_s=5.0, cuda=None):
    def phase(ms, speedup, prompt, tokens):
        width = 0.3 if noisy else 0.01
        return {"prompt_tokens": prompt, "asked_tokens": prompt, "tokens": tokens, "ms": _spread(ms, width),
                "base_ms": _spread(ms * speedup), "speedup": _spread(speedup, width), "tokens_per_s": 1000 / ms,
                "base_tokens_per_s": 1000 / ms / speedup, "is_noisy": noisy}

    decode = phase(metrics["decode_ms_per_token"], metrics["decode_speedup"], 128, 64)
    decode |= {"weight_bytes_per_token": 2**20, "base_weight_bytes_per_token": 2**22, "gb_per_s": gb_per_s, "base_gb_per_s": 5.0}
    prefill = phase(metrics["prefill_ms"], metrics["prefill_speedup"], 128, 128)
    return {
        "metrics": metrics,
        "memory": {"interpreter_mib": 250.0, "load_peak_mib": 100.0, "generate_peak_mib": metrics["peak_rss_mib"],
                   "resident_mib": 90.0, "cuda": cuda},
        "load": {"load_s": metrics["load_s"], "base_load_s": 1.0, "first_call_ms": 20.0, "base_first_call_ms": 15.0},
        "timing": {"prefill": prefill, "prefill_long": None, "decode": decode, "generate": phase(80.0, 1.0, 128, 64)},
        "attempts": 2 if noisy else 1,
        "set_aside": {"decode": {"ms": [1.0, 2.0], "base_ms": [1.0, 1.0]}} if noisy else None,
        "is_noisy": noisy,
        "is_timed": True,
        "machine_load": {"is_busy": False, "waited_s": 0.0, "rounds": 4},
        "plan": {"prompts": [128, 512], "tokens": 64, "rounds": 4, "threads": 2, "torch_threads": 2, "wait": 10},
        "generation": {"prompt": "the board said", "prompt_tokens": 128, "tokens": 64, "text": text,
                       "base_text": "the same words", "is_same": text == "the same words"},
        "environment": {"cpu": "a processor", "cpu_flags": ["avx2"], "cores": 2, "memory_gib": 8.0, "gpu": None,
                        "python": "3.11.7", "packages": {"torch": "2.13.0", "llama_cpp_python": None}, "platform": "Linux",
                        "commit": "c0" * 20, "memory_read_gb_per_s": 20.0},
    }  # fmt: skip


def _part(kind, name, kld):
    return {"kind": kind, "name": name, "weights": 1000, "kld_mnats": kld, "interval": [0.9 * kld, 1.1 * kld],
            "ppl_change_pct": 0.1}


SENSITIVITY = {
    "scheme": {"bits": 4, "group_size": 64}, "tokens": 2000,
    "parts": [_part("all", "all", 3.0), _part("role", "q", 2.0), _part("role", "up", 1.0), _part("block", "0", 1.2),
              _part("block", "1", 1.5)],
}  # fmt: skip


def _levels(scheme, levels, way, kld, **pairs):
    return {"scheme": scheme, "levels": levels, "way": way, "stored_as": scheme, "bits_per_weight": levels / 2 + 0.25,
            "least_bits_per_weight": math.log2(levels) + 0.25, "ppl": 20 + kld / 10, "ppl_change_pct": kld / 10,
            "kld_mnats": kld, "top1_agree_pct": 90.0,
            "intervals": {"ppl_change_pct": [kld / 11, kld / 9], "kld_mnats": [kld - 0.5, kld + 0.5]},
            **({"kld_mnats_minus_nearest": pairs} if pairs else {})}


TRAINED = {
    "model": "models/made-up", "parameters": 4000, "quantized_weights": 3000, "base": {"ppl": 20.0},
    "protocol": {"source": "austen"}, "intervals": {"level": 0.95, "resamples": 4000, "seed": 0},
    "training": {"tokens": 5000, "schedule": {"batch_size": 8, "epochs": 3}, "schemes": {
        name: {"steps": 1200, "tokens": 2457600, "epochs": 3, "best_epoch": 3, "validation_kld_mnats": 5.0}
        for name in ("int2", "ternary")}},
    "rows": [
        _levels("int2", 4, "nearest", 54.0),
        _levels("int2", 4, "trained", 9.0, int2=[-45.0, -46.0, -44.0], ternary=[-99.0, -101.0, -97.0], int3=[-5.0, -6.0, -4.0]),
        _levels("ternary", 3, "nearest", 108.0),
        _levels("ternary", 3, "trained", 13.5, int2=[-40.5, -41.0, -40.0], ternary=[-94.5, -95.0, -94.0], int3=[-0.5, -1.1, 0.1]),
        _levels("int3", 7, "nearest", 14.0)],
}  # fmt: skip


def _point(codebook, bits, error, kind="plain"):
    return {"label": f"{codebook} g64", "kind": kind, "codebook": codebook, "bits": bits, "group_size": 64,
            "bits_per_weight": bits + 0.5, "error_pct": error}


def _rounded(codebook, scale, codes, restored, zero=None):
    return {"codebook": codebook, "symmetric": zero is None, "scale": scale, "zero": zero, "codes": codes, "restored": restored,
            "error_pct": 10.0}


WEIGHTS = {
    "map": {"scheme": "int4 row", "roles": ["q", "up", "embedding"], "weights": 1000, "sampled": 500, "cells": [
        *({"block": block, "role": role, "error_pct": 12.0 + block} for block in (0, 1) for role in ("q", "up")),
        {"block": None, "role": "embedding", "error_pct": 13.0}]},
    "schemes": {"weights": 1000, "sampled": 500, "points": [
        *(_point("linear", bits, 160 / 2**bits) for bits in range(2, 9)), _point("nf4", 4, 9.0), _point("fp4", 4, 12.0),
        _point("nf4", 4, 9.1, "double"), _point("linear", 4, 9.5, "clipped")]},
    "histogram": {"module": "h.0.mlp.up", "group_size": 64, "sampled": 4096, "share_pct": [1.25] * 80, "kurtosis": 3.0, "grids": {
        name: {"values": [-1.0, -0.5, 0.0, 0.5, 1.0], "share_pct": [10.0, 20.0, 40.0, 20.0, 10.0], "entropy_bits": bits}
        for name, bits in (("linear", 3.4), ("nf4", 3.9), ("fp4", 3.6))}},
    "example": {
        "module": "h.0.mlp.up", "row": 0, "start": 0, "group_size": 64, "lowest": -0.13647, "highest": 0.16382,
        "weights": [-0.07159, 0.00424, 0.0477], "grids": [
            _rounded("linear", 0.0234026, [5, 8, 10], [-0.0702078, 0.0, 0.0468052]),
            _rounded("linear", 0.0200193, [3, 7, 9], [-0.0764121, 0.0036651, 0.0437037], -0.13647),
            _rounded("nf4", 0.16382, [3, 7, 10], [-0.0646954, 0.0, 0.0403181]),
            _rounded("fp4", 0.16382, [13, 1, 7], [-0.08191, 0.0008532, 0.040955])]},
}  # fmt: skip
