"""Tiny models of real architectures with random weights, made from their configs; no network, no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zlib import crc32

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # as in stages/evaluate.py: read when torch is imported
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "models" / "embedded"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
EMBEDDED_TOKENS = json.loads((EMBEDDED / "config.json").read_text())["vocab_size"]  # llama.cpp demands a logit for each
VOCABULARY = 96
ARCHITECTURES = ("gpt2", "gpt_neo", "gpt_neox", "opt", "llama", "llama-tied", "smollm", "mistral", "qwen2", "qwen3", "phi3",
                 "gemma", "gemma2", "gemma3_text")
# The variants of `runtimes`: name -> method, and the parameters of its row
RUNTIMES = {
    "bf16": ("float", {"dtype": "bfloat16"}),
    "int4": ("quant", {"include": ["*"], "bits": 4, "group_size": 64, "symmetric": False}),
    "cal-int3": ("calibrated", {"bits": 3, "group_size": 64, "levels": "full", "scale_dtype": "float16", "fit": "mse"}),
    "mix4": ("calibrated", {"budget": 4.0, "include": ["*"], "exclude": ["norm"], "group_size": 64, "scale_dtype": "float16"}),
    "bnb-int8": ("bitsandbytes", {"type": "int8"}),
    "bnb-nf4": ("bitsandbytes", {"type": "nf4"}),
    "bnb-nf4-dq": ("bitsandbytes", {"type": "nf4", "double_quant": True}),
    "gguf-f16": ("llama_cpp", {"type": "F16"}),
    "gguf-q8_0": ("llama_cpp", {"type": "Q8_0"}),
    "gguf-q4_k_m": ("llama_cpp", {"type": "Q4_K_M"}),
}


def config_of(architecture: str):
    """The config of a tiny model: two blocks, 96 tokens, a context of 64."""
    import transformers as t

    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    grouped = {**small, "num_key_value_heads": 2}
    sliding = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    gpt2 = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    return {
        "gpt2": lambda: t.GPT2Config(n_positions=64, n_ctx=64, n_embd=64, n_layer=2, n_head=4, **gpt2),
        "gpt_neo": lambda: t.GPTNeoConfig(max_position_embeddings=64, hidden_size=64, num_layers=2, num_heads=4,
                                          attention_types=[[["global", "local"], 1]], window_size=8, **gpt2),
        "gpt_neox": lambda: t.GPTNeoXConfig(**small),
        "opt": lambda: t.OPTConfig(ffn_dim=128, word_embed_proj_dim=64, **small),
        "llama": lambda: t.LlamaConfig(**grouped),
        "smollm": lambda: t.LlamaConfig(tie_word_embeddings=True, **{
            **small, "hidden_size": 576, "intermediate_size": 192, "num_attention_heads": 9, "num_key_value_heads": 3}),
        "llama-tied": lambda: t.LlamaConfig(tie_word_embeddings=True, **grouped),
        "llama-odd": lambda: t.LlamaConfig(**{**small, "hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 9,
                                              "num_key_value_heads": 3}),
        "mistral": lambda: t.MistralConfig(sliding_window=8, **grouped),
        "qwen2": lambda: t.Qwen2Config(tie_word_embeddings=True, **grouped),
        "qwen3": lambda: t.Qwen3Config(head_dim=16, **grouped),
        "phi3": lambda: t.Phi3Config(**grouped),
        "gemma": lambda: t.GemmaConfig(head_dim=16, **grouped),
        "gemma2": lambda: t.Gemma2Config(head_dim=16, query_pre_attn_scalar=16, **grouped, **sliding),
        "gemma3_text": lambda: t.Gemma3TextConfig(head_dim=16, query_pre_attn_scalar=16, **grouped, **sliding),
    }[architecture]()


def save_model(config, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model of this config with random weights, the same every time, and the embedded model's tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms of exactly one and biases of exactly zero would hide mistakes
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder)
    for name in TOKENIZER:
        (folder / name).write_bytes((EMBEDDED / name).read_bytes())
    return folder


def pytest_collection_modifyitems(items):
    """The longest files first, so that processes that run beside each other end at about the same time."""
    longest = ("test_default_run", "test_pipeline")
    items.sort(key=lambda item: longest.index(item.module.__name__) if item.module.__name__ in longest else len(longest))


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """make_model(architecture, dtype) -> a folder with config, random weights and the embedded tokenizer. Not to be changed."""
    made: dict[tuple, Path] = {}

    def make(architecture: str = "gpt2", dtype: torch.dtype = torch.float32) -> Path:
        key = (architecture, dtype)
        if key not in made:
            made[key] = save_model(config_of(architecture), tmp_path_factory.mktemp(architecture), dtype)
        return made[key]

    return make


def preparation(base: Path, text: Path, wants: list):
    """What a method may use to prepare: a few lines of the grammar as the evaluated text, others to calibrate on."""
    from quant.methods import Preparation
    from quant.text.corpus import write_corpus
    from quant.text.read import read_corpus
    from quant.text.source import TextSource

    data = {"source": "grammar", "sentences": 40}
    if not text.is_dir():
        write_corpus(read_corpus(TextSource(**data)), text, text.parent / "private")
    return Preparation(base, text, text.parent / "private", {"windows": 8, "length": 32}, data, {}, wants)


@pytest.fixture(scope="session")
def lively(tmp_path_factory):
    """lively(architecture, dtype, **changes of its config) -> a folder with a tiny model whose blocks matter: their matrices are
    several times those of transformers' own random numbers, with which a block hardly changes what goes through it."""
    from safetensors.torch import load_file, save_file

    from quant.model.checkpoint import Checkpoint

    made: dict[tuple, Path] = {}

    def make(architecture: str, dtype: torch.dtype = torch.float32, **changes) -> Path:
        key = (architecture, dtype, *changes.items())
        if key not in made:
            config = config_of(architecture)
            config.update(changes)
            folder = save_model(config, tmp_path_factory.mktemp(architecture))
            blocks = {weight.tensor for weight in Checkpoint(folder).inventory.weights if weight.is_block_matrix}
            tensors = {name: (6 * value if name in blocks else value).to(dtype)
                       for name, value in load_file(folder / "model.safetensors").items()}
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
            made[key] = folder
        return made[key]

    return make


def build_variant(base: Path, method: str, row: dict, out: Path) -> Path:
    """A variant of `base` in `out`, as the pipeline's stages make it; what its method prepares stands in `prepared` beside."""
    from quant.methods import load

    chosen, prepared = load(method), out.parent / "prepared" / method
    values = chosen.resolve({}, row)
    if chosen.wants(values):
        prepared = prepared.with_name(f"{method}-{crc32(json.dumps(chosen.wants(values)).encode())}")  # of these rows alone
    if chosen.prepare and not prepared.is_dir():
        chosen.prepare(preparation(base, out.parent / "text", [chosen.wants(values)]), prepared)
    chosen.build(base, prepared, values, out, lambda _: None)
    return out


@pytest.fixture(scope="session")
def runtimes(tmp_path_factory):
    """A tiny GPT-2 (width 256, so that K-quants apply) for every runtime, each variant built by its method: name -> folder."""
    from transformers import GPT2Config

    folder = tmp_path_factory.mktemp("runtimes")
    shape = {"vocab_size": EMBEDDED_TOKENS, "n_positions": 64, "n_ctx": 64, "n_embd": 256, "n_layer": 1, "n_head": 4}
    base = save_model(GPT2Config(bos_token_id=0, eos_token_id=0, **shape), folder / "base")
    built = {name: build_variant(base, method, row, folder / name) for name, (method, row) in RUNTIMES.items()}
    return {"base": base, "converted": folder / "prepared" / "llama_cpp", **built}


@pytest.fixture
def ids():
    return torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))


def run_stage(stage: str, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    """A stage as DVC runs it, in a folder that holds `stages` and `quant`."""
    return subprocess.run([sys.executable, "-m", f"stages.{stage}", *words], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="session")
def made_up_report(tmp_path_factory):
    """A folder with the figures and the three forms of a report, and the made-up run it shows."""
    from made_up import CORPUS, MODEL, made_up

    from quant.report.document import write_report
    from quant.report.figures import draw_all

    folder = tmp_path_factory.mktemp("report")
    run = made_up(whole={"weights_mib": 30.0, "ppl_change_pct": 400.0, "decode_speedup": 9.0},
                  int4={"weights_mib": 9.0}, nf4={"weights_mib": 9.0, "noisy": True}, fp4={"weights_mib": 9.0},
                  gguf_q4_0={"text": "<script>throw 1</script> " + 40 * "other words "})
    (folder / "figures").mkdir()
    draw_all(run, folder / "figures")
    write_report(run, folder, CORPUS, MODEL)
    return folder, run


@pytest.fixture
def hub():
    """A Hub of our own on 127.0.0.1, empty."""
    from hub_server import Hub

    server = Hub()
    yield server
    server.close()


@pytest.fixture(scope="session")
def hub_client():
    """Calls the library in child processes whose environment names a Hub."""
    from hub_client import Client

    client = Client()
    yield client
    client.close()
