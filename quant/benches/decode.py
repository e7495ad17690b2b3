"""Speed of quantized models: python -m quant.benches.decode [--threads N] [gpt2-124m] [llama-1b]    (make bench: both)

Models of real shapes with random weights, all quantized here, run in one process in alternation, so that a shared machine's
drift affects all equally: transformers in float32 and bfloat16, weights dequantized at every call (the naive way), this
project's variants from 8 to 2 bits and a mix of widths (every weight, embedding and head included), bitsandbytes, and llama.cpp.

Several sequences at once are timed too, exactly and, where the processor can, in 8 bits (quant.kernels.precision).

Decoding a token reads every weight once, so its time is printed with the rate at which weights were read, and that rate's share
of the memory bandwidth. Writes reports/bench.json with all raw samples; models that are not named keep their earlier results.
On a machine that is busy even after a wait, fewer rounds are run, and the result and the table say so.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.command import Parser, run
from quant.errors import InputError
from quant.files import significant, write_json
from quant.outside import read_json
from quant.speed.plan import TimingPlan
from quant.speed.quiet import spare_the_processor
from quant.speed.watch import Watch, watch_machine

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OUT = Path("reports/bench.json")


@dataclass(frozen=True)
class BenchmarkModel:
    """A model and its timing. config: gives its shape. prompts: phase -> tokens. tokens: to decode. rounds: that count."""

    config: Callable[[], PreTrainedConfig]
    prompts: dict[str, int]
    tokens: int
    rounds: int


def _gpt2_124m() -> PreTrainedConfig:
    from quant.benches.random_model import GPT2_124M

    return GPT2_124M


def _llama_1b() -> PreTrainedConfig:
    from quant.benches.random_model import LLAMA_1B

    return LLAMA_1B


MAIN = "gpt2-124m"  # the model whose ratios stand first in the file
MODELS = {
    MAIN: BenchmarkModel(_gpt2_124m, {"prefill_long": 512, "prefill": 128}, tokens=64, rounds=6),
    "llama-1b": BenchmarkModel(_llama_1b, {"prefill_long": 512, "prefill": 128}, tokens=8, rounds=3),
}


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.benches.decode", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{' or '.join(MODELS)}; all of them without one")
    parser.add_argument("--threads", type=int, default=TimingPlan.threads, metavar="N", help="of every runtime (%(default)s)")
    given = parser.parse_args(arguments)
    names, threads = given.models, given.threads
    if not 1 <= threads <= (os.cpu_count() or 1):
        raise InputError(f"--threads is {threads}; expected 1 to {os.cpu_count()}, the processor's cores")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise InputError(f"unknown model {', '.join(unknown)}; known: {', '.join(MODELS)}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    watch = watch_machine(threads, TimingPlan.wait)
    if watch.is_busy:
        spare_the_processor()  # for all models, which is why they share one watch
    found = read_json(OUT)["models"] if OUT.is_file() else {}
    for name in names or MODELS:
        found[name] = measure(name, MODELS[name], watch, threads)
        print("\n".join(table(name, found[name])), flush=True)
        first = MAIN if MAIN in found else name
        write_json(OUT, significant({"ratios": found[first]["ratios"], "ratios_are_of": first, "models": found}, 5))
    print(f"written to {OUT}")


def measure(name: str, model: BenchmarkModel, watch: Watch, threads: int = TimingPlan.threads) -> dict:
    """Make a model of this shape and all its variants in a temporary folder, and time them; see contestants.timed."""
    from quant.benches.batches import batches, precisions_here
    from quant.benches.contestants import fitting, open_all, quantize_all, scaling, timed
    from quant.benches.random_model import write_random_model
    from quant.memory import available_memory

    def tell(line: str) -> None:
        print(f"{name}: {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "base"
        tell("writing random weights")
        write_random_model(model.config(), base)
        made = fitting(base, quantize_all(base, Path(temporary), tell), available_memory(), tell)
        tell("loading")
        runners = open_all(base, made, sum(model.prompts.values()) + model.tokens, threads)
        result = timed(runners, model.prompts, model.tokens, watch.shorten(model.rounds), threads)
        result["decode_ms_by_threads"] = scaling(runners, model.prompts["prefill"], model.tokens, threads)
        both = {name: runners[name] for name in ("int8", "int4")}
        result["batches"] = batches(both, model.prompts["prefill"] // 4, 2 * result["rounds"], precisions_here())
        watch.still_quiet()
        return {**result, "machine_load": watch.to_dict()}


def table(name: str, result: dict) -> list[str]:
    """The printed lines of one model."""
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
    if result["machine_load"]["is_busy"]:
        lines.append("Other work ran on this machine: don't trust these times.")
    lines += ["", "roofline: weights over the memory's rate would take "
              + ", ".join(f"{_roof(result, name):.1f} ms ({name}, {result['variants'][name]['share_of_bandwidth']:.0%} reached)"
                          for name in ("int8", "int4", "int3", "int2") if name in result["variants"])]
    lines += ["threads: " + "; ".join(
        f"{name} " + ", ".join(f"{count}: {ms:.2f} ms" for count, ms in by_count.items())
        for name, by_count in result["decode_ms_by_threads"].items())]
    for variant, of_variant in result["batches"].items():
        for choice, by_count in of_variant.items():
            one = by_count[min(by_count, key=int)]["median"]
            lines.append(f"sequences at once, {variant}, {choice}: " + ", ".join(
                f"{count}: {found['median']:.2f} ± {found['mad']:.2f} ms ({found['median'] / one:.2f} times one)"
                for count, found in by_count.items()))
    lines += ["ratios of speeds ± MAD: " + ", ".join(
        f"{pair} {ratio:.2f} ± {result['ratio_mads'][pair]:.2f}" for pair, ratio in result["ratios"].items()), ""]
    return lines


def _roof(result: dict, name: str) -> float:
    """Milliseconds in which the memory can deliver the weights that a token needs."""
    return result["variants"][name]["weight_bytes_per_token"] / result["memory_read_gb_per_s"] / 1e6


def _with_mad(found: dict, width: int) -> str:
    return f"{found['median']:.2f} ± {found['mad']:.2f}".rjust(width)


if __name__ == "__main__":
    run(main)
