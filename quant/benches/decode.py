"""How fast quantized models are: python -m quant.benches.decode [gpt2-124m] [llama-1b]    (make bench: both)

Models of real shapes with random weights, all quantized here, run in one process in turn, so that the drift of a shared
machine hits all alike: transformers in float32 and bfloat16, the weights dequantized at every call as a first attempt has
them, this project's int8, int4 and NF4 (every weight, embedding and head too), bitsandbytes, and llama.cpp.

A decoded token reads every weight once, so beside its time stands the rate at which weights were read, as a share of what
memory gives. Writes reports/bench.json, raw samples too; a model that is not named keeps what an earlier run found.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from quant.benches.random_model import GPT2_124M, LLAMA_1B, write_random_model
from quant.errors import InputError
from quant.files import read_json, significant, write_json
from quant.kernels import reference
from quant.nn.decoding import speed_up_decoding
from quant.nn.modules import QWeight
from quant.runners import Runner, open_runner
from quant.runners.sizes import bytes_per_token
from quant.speed.bandwidth import memory_read_gb_per_s
from quant.speed.environment import environment
from quant.speed.latency import Samples, measure
from quant.speed.samples import ratios_of_pairs, spread
from quant.tensor.qtensor import dequantize
from quant.variants import variants

THREADS = 2
OURS = ("int8", "int4", "nf4")
ROWS = {  # of params.yaml, but for the defaults
    "int8": {"method": "quant", "include": ["*"]},
    "int4": {"method": "quant", "include": ["*"], "bits": 4, "group_size": 64},
    "nf4": {"method": "quant", "include": ["*"], "bits": 4, "group_size": 64, "codebook": "nf4"},
    "bnb_int8": {"method": "bitsandbytes", "type": "int8"},
    "bnb_nf4": {"method": "bitsandbytes", "type": "nf4"},
    "llamacpp_q8_0": {"method": "llama_cpp", "type": "Q8_0"},
    "llamacpp_q4_0": {"method": "llama_cpp", "type": "Q4_0"},
}
OUT = Path("reports/bench.json")


@dataclass(frozen=True)
class BenchmarkModel:
    """A model's shape, and how it is timed: prompts of these lengths, then so many tokens, in so many rounds."""

    config: PreTrainedConfig
    prompts: dict[str, int]
    tokens: int
    rounds: int


MODELS = {
    "gpt2-124m": BenchmarkModel(GPT2_124M, {"prefill_long": 512, "prefill": 128}, tokens=64, rounds=6),
    "llama-1b": BenchmarkModel(LLAMA_1B, {"prefill": 128}, tokens=8, rounds=4),
}
MAIN = "gpt2-124m"  # whose ratios stand first
# speed over speed of decoding, unless it says prefill
RATIOS = (
    ("int8", "fp32"), ("int4", "fp32"), ("nf4", "fp32"), ("int8", "llamacpp_q8_0"), ("int4", "llamacpp_q4_0"),
    ("int8", "bnb_int8"), ("nf4", "bnb_nf4"),
)  # fmt: skip


def quantize_all(base: Path, folder: Path, tell: Callable[[str], None]) -> dict[str, Path]:
    """Every variant of the model in `base` that has files of its own: name -> folder."""
    made, prepared = {}, folder / "prepared"
    for variant in variants({"variants": ROWS})[1:]:
        method = variant.method
        if method.prepare and not (prepared / method.name).exists():
            tell(f"preparing for {method.label}")
            method.prepare(base, prepared / method.name)
        tell(f"quantizing: {variant.name}")
        method.build(base, prepared / method.name, variant.values, folder / variant.name, lambda _: None)
        made[variant.name] = folder / variant.name
    shutil.rmtree(prepared)
    return made


def open_all(base: Path, made: dict[str, Path], max_tokens: int) -> dict[str, Runner]:
    """All of them loaded; what can share weights does."""
    runners = {"fp32": open_runner(base, threads=THREADS), "bf16": open_runner(base, "bfloat16", threads=THREADS)}
    runners["fp32_our_decoding"] = _sharing_weights(runners["fp32"])
    speed_up_decoding(runners["fp32_our_decoding"].model)
    runners |= {name: open_runner(folder, threads=THREADS, max_tokens=max_tokens) for name, folder in made.items()}
    runners["int8_dequantized_each_call"] = _sharing_weights(runners["int8"])
    for module in runners["int8_dequantized_each_call"].model.modules():
        if isinstance(module, QWeight):
            module.multiply_with(_Dequantizing(module.qtensor))
    return runners


def _sharing_weights(runner: Runner) -> Runner:
    model = runner.model
    twin = copy.copy(runner)
    twin.model = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    return twin


class _Dequantizing(reference.Product):
    """The whole weight is dequantized at every call."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, dequantize(self.weight), bias)


def timed(model: BenchmarkModel, runners: dict[str, Runner]) -> dict:
    """What a table of one model shows, and the raw samples."""
    random = torch.Generator().manual_seed(0)
    prompts = {
        phase: torch.randint(0, 2000, (length,), generator=random) for phase, length in model.prompts.items()
    }
    bandwidths = [memory_read_gb_per_s("cpu")]
    samples = measure(runners, prompts, model.tokens, model.rounds)
    bandwidths.append(memory_read_gb_per_s("cpu"))
    bandwidth = max(bandwidths)
    variants = {}
    for name, runner in runners.items():
        size = bytes_per_token(runner.tensors())
        rate = size / (spread(samples.ms["decode"][name])["median"] / 1000) / 1e9
        variants[name] = {"weight_bytes_per_token": size, "gb_per_s": rate, "share_of_bandwidth": rate / bandwidth} | {
            phase: {"ms": spread(found[name]), "speed_over_fp32": spread(ratios_of_pairs(found["fp32"], found[name]))}
            for phase, found in samples.ms.items()
        }
    return {
        "environment": environment(), "threads": THREADS, "memory_read_gb_per_s": bandwidth, "tokens": model.tokens,
        "rounds": model.rounds, "prompts": model.prompts, "variants": variants, "ratios": _ratios(samples),
    }  # fmt: skip


def _ratios(samples: Samples) -> dict[str, float]:
    """Median over the pairs of each round; of prefill the slowest of our formats, at the longest prompt."""
    decode, prefill = samples.ms["decode"], samples.ms.get("prefill_long", samples.ms["prefill"])
    ratios = {f"{a}_vs_{b}": spread(ratios_of_pairs(decode[b], decode[a]))["median"] for a, b in RATIOS}
    slowest = min(spread(ratios_of_pairs(prefill["fp32"], prefill[name]))["median"] for name in OURS)
    return ratios | {"prefill_vs_fp32": slowest}


def table(name: str, result: dict) -> list[str]:
    """The lines that are printed for one model."""
    phases = {phase: f"prefill {length}" for phase, length in result["prompts"].items()}
    lines = [
        f"{name}: {result['threads']} threads, memory reads {result['memory_read_gb_per_s']:.1f} GB/s; medians ± MAD of "
        f"{result['rounds']} rounds in turn, speeds against fp32",
        f"{'':27} {'MB/token':>8} {'decode ms':>15} {'speed':>13} {'GB/s':>5} {'of read':>7}"
        + "".join(f" {title + ' ms':>17} {'speed':>12}" for title in phases.values()),
    ]
    for variant, found in result["variants"].items():
        decode = found["decode"]
        line = f"{variant:27} {found['weight_bytes_per_token'] / 1e6:8.1f} {_with_mad(decode['ms'], 15)}"
        line += f" {_with_mad(decode['speed_over_fp32'], 13)} {found['gb_per_s']:5.1f} {found['share_of_bandwidth']:7.0%}"
        for phase in phases:
            line += f" {_with_mad(found[phase]['ms'], 17)} {_with_mad(found[phase]['speed_over_fp32'], 12)}"
        lines.append(line)
    lines += ["", "speeds over speeds: " + ", ".join(f"{pair} {ratio:.2f}" for pair, ratio in result["ratios"].items()), ""]
    return lines


def _with_mad(found: dict, width: int) -> str:
    return f"{found['median']:.2f} ± {found['mad']:.2f}".rjust(width)


def main(*names: str) -> None:
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise InputError(f"unknown model {', '.join(unknown)}; known: {', '.join(MODELS)}")
    found = read_json(OUT)["models"] if OUT.is_file() else {}
    for name in names or MODELS:
        model = MODELS[name]
        with tempfile.TemporaryDirectory() as temporary:
            base = Path(temporary) / "base"
            _tell(f"{name}: writing random weights")
            write_random_model(model.config, base)
            made = quantize_all(base, Path(temporary), lambda line, name=name: _tell(f"{name}: {line}"))
            _tell(f"{name}: loading")
            runners = open_all(base, made, sum(model.prompts.values()) + model.tokens)
            found[name] = timed(model, runners)
        print("\n".join(table(name, found[name])), flush=True)
        whose = MAIN if MAIN in found else name
        write_json(OUT, significant({"ratios": found[whose]["ratios"], "ratios_are_of": whose, "models": found}, 5))
    print(f"written to {OUT}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
