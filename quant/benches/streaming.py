"""Throughput and memory of quantizing a checkpoint to int8: python -m quant.benches.streaming [GIGABYTES] [ROUNDS]

A Llama with random float32 weights is written to a temporary folder. This project (int8 by rows, artifact and manifest) and
llama.cpp's quantizer (F32 to Q8_0) quantize it in alternation, each in a fresh process that is timed from the first byte read
to the last byte written, after its libraries are loaded. Memory is the peak above those libraries. Throughput is in bytes of
float32 input. Above MAX_GB_OF_LLAMA_CPP llama.cpp is left out, because its input needs as much disk again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from quant.command import Parser, run, whole_number
from quant.errors import InputError
from quant.files import write_json

HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 11008, 4096  # the vocabulary: that of the tokenizer
MAX_GB_OF_LLAMA_CPP = 4
TOKENIZER = Path("models/embedded")

CHILD = """
import json, re, sys, time
from pathlib import Path
import torch
from quant.model.artifact import write_artifact
from quant.gguf.library import bindings
from quant.methods.llama_cpp.quantize import quantize
from quant.methods.llama_cpp.spec import Spec
from quant.tensor.scheme import Scheme
from quant.model.recipe import Recipe
quantizer, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
torch.ones(2**22).add_(1).sum()
if quantizer == "llama.cpp":
    bindings()
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before, start = peak(), time.perf_counter()
if quantizer == "llama.cpp":
    quantize(source / "model.gguf", Spec("Q8_0"), out)
else:
    write_artifact(source, Recipe.from_dict({"include": ["*"], "exclude": ["norm"]}, Scheme()), out)
print(json.dumps([time.perf_counter() - start, peak() - before]))
"""


def write_llama(folder: Path, gigabytes: float) -> tuple[int, int]:
    """Write a checkpoint of about this size, in shards. Returns the bytes of all tensors, and of the largest one."""
    import torch  # here, so that --help answers at once

    from quant.model.safetensors_file import TensorInfo, write_checkpoint

    block = {f"self_attn.{role}_proj": (HIDDEN, HIDDEN) for role in "qkvo"}
    block |= {f"mlp.{role}_proj": (INTERMEDIATE, HIDDEN) for role in ("gate", "up")} | {"mlp.down_proj": (HIDDEN, INTERMEDIATE)}
    block |= {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    size = sum(4 * torch.Size(shape).numel() for shape in block.values())
    layers = max(1, round(gigabytes * 1e9 / size))
    shapes = {f"{name}.weight": (VOCABULARY, HIDDEN) for name in ("model.embed_tokens", "lm_head")}
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in block.items()}
    layout = {name: TensorInfo(torch.float32, shape) for name, shape in shapes.items()}
    random = torch.Generator().manual_seed(0)
    made = {shape: torch.randn(shape, generator=random) * 0.02 for shape in set(shapes.values())}

    def tensors() -> Iterator[tuple]:
        for name, shape in shapes.items():
            yield name, made[shape]

    write_checkpoint(folder, layout, tensors())
    write_json(folder / "config.json", {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "float32",
    })  # fmt: skip
    for path in TOKENIZER.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    sizes = [info.bytes for info in layout.values()]
    return sum(sizes), max(sizes)


def measure(quantizer: str, source: Path, out: Path) -> tuple[float, int]:
    """Seconds and peak bytes of memory of one run in a fresh process. quantizer: "llama.cpp", anything else for this project."""
    done = subprocess.run([sys.executable, "-c", CHILD, quantizer, source, out], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{quantizer} failed: {done.stderr.strip().splitlines()[-1]}")
    shutil.rmtree(out)
    seconds, memory = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, memory


def main(words: list[str]) -> None:
    parser = Parser(prog="python -m quant.benches.streaming", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("gigabytes", nargs="?", type=float, default=1.0, help="size of the checkpoint (1)")
    parser.add_argument("rounds", nargs="?", type=whole_number, default=5, help="measurements of each (5)")
    given = parser.parse_args(words)
    compare(given.gigabytes, given.rounds)


def compare(gigabytes: float, rounds: int) -> None:
    """Measure both quantizers on a checkpoint of this size, and print the result."""
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        source, out = Path(temporary) / "model", Path(temporary) / "out"
        source.mkdir()
        total, largest = write_llama(source, gigabytes)
        runs = {"ours int8 row": source}
        if gigabytes <= MAX_GB_OF_LLAMA_CPP:
            from quant.methods.llama_cpp.convert import convert

            convert(source, Path(temporary) / "gguf")
            runs["llama.cpp"] = Path(temporary) / "gguf"
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, folder in runs.items():
                result = measure(name, folder, out)
                if number:  # the first reads the files into the page cache
                    found[name].append(result)
        print(f"{total / 1e9:.2f} GB of float32, largest tensor {largest / 1e6:.0f} MB, {torch.get_num_threads()} threads, "
              f"{rounds} rounds in turn")
        for name, results in found.items():
            rates = sorted(total / 1e9 / seconds for seconds, _ in results)
            print(f"{name:14} {median(rates):.2f} GB/s ({rates[0]:.2f} to {rates[-1]:.2f}), peak memory "
                  f"{max(memory for _, memory in results) / 1e6:.0f} MB above the libraries")
        if len(found) == 2:
            ours, theirs = found.values()
            ratios = sorted(b[0] / a[0] for a, b in zip(ours, theirs, strict=True))
            print(f"ours / llama.cpp {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"bound of memory: 2.5 times the largest tensor + 400 MB = {2.5 * largest / 1e6 + 400:.0f} MB")


if __name__ == "__main__":
    run(main)
