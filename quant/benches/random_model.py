"""Models of real shapes with random weights, for measurements of speed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from quant.model.safetensors_file import TensorInfo, write_checkpoint

TOKENIZER = Path(__file__).resolve().parents[2] / "models/embedded"  # llama.cpp's converter needs one, however small

GPT2_124M = GPT2Config(architectures=["GPT2LMHeadModel"], n_ctx=1024, dtype="float32")
LLAMA_1B = LlamaConfig(  # Llama 3.2's shape
    architectures=["LlamaForCausalLM"], hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, vocab_size=128256, max_position_embeddings=4096, rms_norm_eps=1e-5, tie_word_embeddings=True,
    dtype="float32",
)  # fmt: skip


def write_random_model(config: PreTrainedConfig, folder: Path) -> list[int]:
    """Write a checkpoint with float32 weights from N(0, 0.02), norms of one, biases of zero, and a tokenizer.

    Returns the bytes of each tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}  # a tied weight appears once
    layout = {name: TensorInfo(torch.float32, shape) for name, shape in shapes.items()}
    random = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        made: dict[tuple[int, ...], torch.Tensor] = {}  # weights of one shape share values: drawing a gigabyte takes ten seconds
        for name, shape in shapes.items():
            if len(shape) == 1:
                yield name, torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
                continue
            if shape not in made:
                made[shape] = torch.randn(shape, generator=random).mul_(0.02)
            yield name, made[shape]

    write_checkpoint(folder, layout, tensors())
    config.save_pretrained(folder)
    for path in TOKENIZER.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return [info.bytes for info in layout.values()]
