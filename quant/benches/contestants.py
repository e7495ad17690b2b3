"""The variants that quant.benches.decode compares: built from one model, loaded, and timed in alternation."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from quant.kernels import precision, reference
from quant.methods import Preparation
from quant.model.architectures import architecture_of
from quant.model.config import read_config
from quant.nn.decoding import speed_up_decoding
from quant.nn.modules import QWeight
from quant.runners import Runner, open_runner
from quant.runners.sizes import bytes_per_token
from quant.speed.environment import environment
from quant.speed.latency import Samples, measure
from quant.speed.samples import ratios_of_pairs, spread
from quant.tensor.products import cpuinfo
from quant.tensor.qtensor import dequantize
from quant.variants import variants

OURS = ("int8", "int4", "nf4", "fp4", "int3", "int2", "mixed")
MIXED = {"q": 3, "k": 3, "v": 6, "o": 5, "gate": 3, "up": 3, "down": 5}  # bits by role, as a budget of 4 gives them
OPTIONAL = ("fp4", "mixed", "int2", "int3")  # left out, in this order, where memory is short
ROWS = {  # as in params.yaml, without defaults
    "int8": {"method": "quant", "include": ["*"]},
    "int4": {"method": "quant", "include": ["*"], "bits": 4, "group_size": 64},
    "nf4": {"method": "quant", "include": ["*"], "bits": 4, "group_size": 64, "codebook": "nf4"},
    "fp4": {"method": "quant", "include": ["*"], "bits": 4, "group_size": 64, "codebook": "fp4"},
    "int3": {"method": "quant", "include": ["*"], "bits": 3, "group_size": 64},
    "int2": {"method": "quant", "include": ["*"], "bits": 2, "group_size": 64},
    "mixed": {"method": "quant", "include": ["*"], "bits": 4, "group_size": 64,
              "schemes": {role: {"bits": bits} for role, bits in MIXED.items()}},
    "bnb_int8": {"method": "bitsandbytes", "type": "int8"},
    "bnb_nf4": {"method": "bitsandbytes", "type": "nf4"},
    "llamacpp_q8_0": {"method": "llama_cpp", "type": "Q8_0"},
    "llamacpp_q4_0": {"method": "llama_cpp", "type": "Q4_0"},
}
RATIOS = (  # pairs of variants whose decoding speeds are divided
    ("int8", "fp32"), ("int4", "fp32"), ("nf4", "fp32"), ("int8", "llamacpp_q8_0"), ("int4", "llamacpp_q4_0"),
    ("int8", "bnb_int8"), ("nf4", "bnb_nf4"), ("nf4", "int4"), ("fp4", "int4"), ("int3", "int4"), ("int2", "int4"),
)  # fmt: skip
PROMPT_PEERS = (("int8", "llamacpp_q8_0"), ("int4", "llamacpp_q4_0"), ("int4_int8_prompts", "llamacpp_q4_0"))


def quantize_all(base: Path, folder: Path, tell: Callable[[str], None]) -> dict[str, Path]:
    """Build every variant of ROWS from the model in `base`: name -> its folder in `folder`."""
    made, prepared, found = {}, folder / "prepared", architecture_of(read_config(base))
    roles = {role for roles in found.inside.values() for role in ((roles,) if isinstance(roles, str) else roles)}
    mixed = {**ROWS["mixed"], "schemes": {role: given for role, given in ROWS["mixed"]["schemes"].items() if role in roles}}
    for variant in variants({"variants": {**ROWS, "mixed": mixed}})[1:]:
        method = variant.method
        if method.prepare and not (prepared / method.name).exists():
            tell(f"preparing for {method.label}")
            method.prepare(Preparation(base), prepared / method.name)
        tell(f"quantizing: {variant.name}")
        method.build(base, prepared / method.name, variant.values, folder / variant.name, lambda _: None)
        made[variant.name] = folder / variant.name
    shutil.rmtree(prepared)
    return made


def fitting(base: Path, made: Mapping[str, Path], free: int, tell: Callable[[str], None]) -> dict[str, Path]:
    """The variants that fit `free` bytes of memory together, with the base in float32 and bfloat16: without some of OPTIONAL
    where all do not. Weights that are read from the disk again would be timed as the disk."""
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    chosen = dict(made)
    needs = {name: size(folder) * (1 + name.startswith("llamacpp")) for name, folder in made.items()}  # it packs codes anew
    for name in OPTIONAL:
        if 1.5 * size(base) + sum(needs[name] for name in chosen) <= free:
            break
        if chosen.pop(name, None):
            tell(f"{name} is left out: all together take more than the {free / 1e9:.1f} GB of memory that are free")
    return chosen


def open_all(base: Path, made: Mapping[str, Path], max_tokens: int, threads: int) -> dict[str, Runner]:
    """Load the base in float32 and bfloat16, all variants of `made`, and some that share weights with one of these:
    fp32_our_decoding (fp32 with this project's decoding), int8_dequantized_each_call (int8, dequantized whole), and where the
    processor can, int4_rounded_prompts and int4_int8_prompts (int4 with QUANT_PRECISION=bfloat16, and int8)."""
    runners = {"fp32": open_runner(base, threads=threads), "bf16": open_runner(base, "bfloat16", threads=threads)}
    runners["fp32_our_decoding"] = _sharing_weights(runners["fp32"])
    speed_up_decoding(runners["fp32_our_decoding"].model)
    runners |= {name: open_runner(folder, threads=threads, max_tokens=max_tokens) for name, folder in made.items()}
    if precision.multiplies_bfloat16(cpuinfo()):
        runners["int4_rounded_prompts"] = _RoundedPrompts(runners["int4"], "bfloat16")
    if precision.HAS_INT8:
        runners["int4_int8_prompts"] = _RoundedPrompts(runners["int4"], "int8")
    runners["int8_dequantized_each_call"] = _sharing_weights(runners["int8"])
    for module in runners["int8_dequantized_each_call"].model.modules():
        if isinstance(module, QWeight):
            module.multiply_with(_Dequantizing(module.qtensor))
    return runners


class _RoundedPrompts:
    """A runner whose prompts are multiplied in another precision."""

    def __init__(self, runner: Runner, choice: str):
        self._runner = copy.copy(runner)  # its cache is its own
        self.prefill = precision.using(choice)(self._runner.prefill)

    def __getattr__(self, name: str):
        return getattr(self._runner, name)


class _MemoryReader:
    """Takes turns with the models: its token is a sum over a tensor of `size` bytes, several times the size of the caches. The
    rate of a memory that others use too changes from minute to minute, so it is measured in the same minutes."""

    def __init__(self, size: int = 2**28):
        self.size, self._tensor = size, torch.ones(size // 4, dtype=torch.float32)

    def prefill(self, tokens: torch.Tensor) -> int:  # noqa: ARG002  as of a model
        return 0

    def decode(self, token: int) -> int:  # noqa: ARG002
        self._tensor.sum().item()
        return 0


def _sharing_weights(runner: Runner) -> Runner:
    model = runner.model
    twin = copy.copy(runner)
    twin.model = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    return twin


class _Dequantizing(reference.Matmul):
    """Dequantizes the whole weight at every call."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, dequantize(self.weight), bias)


def timed(runners: dict[str, Runner], lengths: Mapping[str, int], tokens: int, rounds: int, threads: int) -> dict:
    """Time all runners in alternation: medians, ratios and raw samples, for JSON. lengths: phase -> tokens of its prompt.
    threads: that the runners use."""
    random = torch.Generator().manual_seed(0)
    prompts = {phase: torch.randint(0, 2000, (length,), generator=random) for phase, length in lengths.items()}
    memory = _MemoryReader()
    samples = measure({**runners, "memory": memory}, prompts, tokens, rounds)
    bandwidth = memory.size / (spread(samples.ms["decode"]["memory"])["median"] / 1000) / 1e9
    found = {}
    for name, runner in runners.items():
        size = bytes_per_token(runner.tensors())
        rate = size / (spread(samples.ms["decode"][name])["median"] / 1000) / 1e9
        found[name] = {"weight_bytes_per_token": size, "gb_per_s": rate, "share_of_bandwidth": rate / bandwidth} | {
            phase: {"ms": spread(ms[name]), "speed_over_fp32": spread(ratios_of_pairs(ms["fp32"], ms[name]))}
            for phase, ms in samples.ms.items()
        }
    ratios = _ratios(samples, lengths)
    if "mixed" in found:
        ratios["mixed_vs_int4_per_byte"] = _per_byte(samples.ms["decode"], found)
    return {
        "environment": environment(), "threads": threads, "memory_read_gb_per_s": bandwidth, "tokens": tokens, "rounds": rounds,
        "prompts": dict(lengths), "variants": found, "ratios": {name: ratio["median"] for name, ratio in ratios.items()},
        "ratio_mads": {name: ratio["mad"] for name, ratio in ratios.items()},
    }  # fmt: skip


def _ratios(samples: Samples, lengths: Mapping[str, int]) -> dict[str, dict]:
    """Ratios of speeds over paired samples: decoding by RATIOS; prompts of each length, for our slowest format, in the other
    precisions, and beside llama.cpp's types."""
    decode = samples.ms["decode"]
    ratios = {f"{a}_vs_{b}": spread(ratios_of_pairs(decode[b], decode[a])) for a, b in RATIOS if a in decode}
    for other in ("fp32", "bf16"):
        for phase, length in lengths.items():
            ms = samples.ms[phase]
            found = [spread(ratios_of_pairs(ms[other], ms[name])) for name in OURS if name in ms]
            ratios[f"prefill_{length}_vs_{other}"] = min(found, key=lambda ratio: ratio["median"])
            for title, name in (("rounded", "int4_rounded_prompts"), ("int8", "int4_int8_prompts")):
                if name in ms:
                    ratios[f"{title}_prefill_{length}_vs_{other}"] = spread(ratios_of_pairs(ms[other], ms[name]))
    for phase, length in lengths.items():
        for name, other in PROMPT_PEERS:
            if name in samples.ms[phase]:
                pairs = ratios_of_pairs(samples.ms[phase][other], samples.ms[phase][name])
                ratios[f"prefill_{length}_{name}_vs_{other}"] = spread(pairs)
    return ratios | {"prefill_vs_fp32": ratios[f"prefill_{max(lengths.values())}_vs_fp32"]}


def _per_byte(decode: Mapping[str, list[float]], found: Mapping[str, dict]) -> dict:
    """Bytes a second of a mix of widths over those of 4 bits for all, as ratios of pairs."""
    factor = found["mixed"]["weight_bytes_per_token"] / found["int4"]["weight_bytes_per_token"]
    return spread([factor * ratio for ratio in ratios_of_pairs(decode["int4"], decode["mixed"])])


def scaling(runners: Mapping[str, Runner], prompt: int, tokens: int, most: int) -> dict[str, dict[int, float]]:
    """Milliseconds a token of this project's int8 and int4 with 1, 2, 4, ... up to `most` of torch's threads."""
    counts = sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most})
    found: dict[str, dict[int, float]] = {name: {} for name in ("int8", "int4")}
    before = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            of_both = measure({name: runners[name] for name in found}, {"prefill": torch.arange(prompt) % 1000}, tokens, 3)
            for name, samples in of_both.ms["decode"].items():
                found[name][count] = spread(samples)["median"]
    finally:
        torch.set_num_threads(before)
    return found
