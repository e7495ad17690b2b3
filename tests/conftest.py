"""Tiny models of real architectures with random weights, made from their configs; no network, no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # as in stages/common.py: read when torch is imported
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "models" / "embedded"
VOCABULARY = 96


def _config(architecture: str):
    import transformers as t

    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    grouped = {**small, "num_key_value_heads": 2}
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
        "phi3": lambda: t.Phi3Config(**grouped),
        "gemma": lambda: t.GemmaConfig(head_dim=16, **grouped),
        "qwen3": lambda: t.Qwen3Config(head_dim=16, **grouped),
    }[architecture]()


ARCHITECTURES = ("gpt2", "gpt_neo", "gpt_neox", "opt", "llama", "llama-tied", "smollm", "phi3", "gemma", "qwen3")


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """make_model(architecture, dtype) -> a folder with config, random weights and the embedded tokenizer."""
    made: dict[tuple, Path] = {}

    def make(architecture: str = "gpt2", dtype: torch.dtype = torch.float32) -> Path:
        key = (architecture, dtype)
        if key not in made:
            from transformers import AutoModelForCausalLM

            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(_config(architecture))
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms of exactly one and biases of exactly zero would hide mistakes
                    parameter.data += 0.1 * torch.randn_like(parameter)
            folder = tmp_path_factory.mktemp(architecture)
            model.to(dtype).save_pretrained(folder)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (folder / name).write_bytes((EMBEDDED / name).read_bytes())
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def runtimes(tmp_path_factory):
    """One tiny model (width 256, so that K-quants apply) for every runtime: name -> folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from quant.methods.bitsandbytes import build as bitsandbytes
    from quant.methods.llama_cpp import quantize as gguf
    from quant.model.artifact import write_artifact
    from quant.model.recipe import Recipe
    from quant.tensor.scheme import Scheme

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runtimes")
    shape = {"n_positions": 64, "n_ctx": 64, "n_embd": 256, "n_layer": 1, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(vocab_size=2048, bos_token_id=0, eos_token_id=0, **shape)).save_pretrained(folder / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "base" / name).write_bytes((EMBEDDED / name).read_bytes())
    recipe = {"include": ["*"], "bits": 4, "group_size": 64, "symmetric": False}
    write_artifact(folder / "base", Recipe.from_dict(recipe, Scheme()), folder / "int4")
    for name, values in {"int8": {}, "nf4": {}, "nf4-dq": {"double_quant": True}}.items():
        bitsandbytes.build(folder / "base", bitsandbytes.Spec(name[:4].rstrip("-"), **values), folder / f"bnb-{name}")
    gguf.convert(folder / "base", folder / "converted")
    for kind in ("F16", "Q8_0", "Q4_K_M"):
        gguf.quantize(folder / "converted" / "model.gguf", gguf.Spec(kind), folder / f"gguf-{kind.lower()}")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def ids():
    return torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))


def run_stage(stage: str, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    """A stage's script, as DVC calls it."""
    return subprocess.run([sys.executable, f"stages/{stage}.py", *words], cwd=cwd, capture_output=True, text=True)


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
