"""bitsandbytes and llama.cpp, for real, on tiny models; and the contract that every runner keeps."""

import json
import shutil
import struct

import pytest
import torch

from quant.errors import InputError
from quant.methods.bitsandbytes import build as bitsandbytes
from quant.methods.llama_cpp import quantize as gguf
from quant.model.artifact import write_artifact
from quant.model.recipe import Recipe
from quant.runners import open_runner
from quant.speed.memory import held_bytes
from quant.tensor.scheme import Scheme


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Width 256, so that K-quants apply; the embedded tokenizer, which llama.cpp does not know."""
    from conftest import EMBEDDED
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    shape = {"n_positions": 64, "n_ctx": 64, "n_embd": 256, "n_layer": 1, "n_head": 4}
    config = GPT2Config(vocab_size=2048, bos_token_id=0, eos_token_id=0, **shape)
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def converted(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("gguf") / "converted"
    gguf.convert(base, out)
    return out / "model.gguf"


@pytest.fixture(scope="module")
def models(base, converted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_artifact(base, Recipe.from_dict({"include": ["*"]}, Scheme()), folder / "scratch")
    bitsandbytes.build(base, bitsandbytes.Spec("nf4"), folder / "bnb")
    gguf.quantize(converted, gguf.Spec("F16"), folder / "gguf")
    return {"base": base, **{path.name: path for path in folder.iterdir()}}


KINDS = pytest.mark.parametrize("kind", ["base", "scratch", "bnb", "gguf"])


@KINDS
def test_a_row_of_a_batch_is_scored_as_it_is_alone(models, kind):
    runner = open_runner(models[kind])
    tokens = torch.randint(0, 2048, (3, 40), generator=torch.Generator().manual_seed(2))
    together = runner.logits(tokens)
    assert together.shape == (3, 40, runner.vocabulary) and together.dtype == torch.float32
    for i in range(3):
        assert torch.allclose(runner.logits(tokens[i : i + 1])[0], together[i], atol=1e-4)


@KINDS
def test_prefill_and_decode_follow_the_logits(models, kind):
    runner = open_runner(models[kind])
    text = torch.randint(0, 2048, (20,), generator=torch.Generator().manual_seed(3))
    best = runner.logits(text.view(1, -1))[0].argmax(-1)
    for _ in range(2):  # a second prompt starts from an empty context
        assert runner.prefill(text[:15]) == best[14]
        assert [runner.decode(int(token)) for token in text[15:]] == best[15:].tolist()


@KINDS
def test_the_context_is_full_at_its_size(models, kind):
    runner = open_runner(models[kind])
    assert runner.context == 64
    assert torch.isfinite(runner.logits(torch.zeros(1, 64, dtype=torch.int64))).all()


def test_llama_cpp_computes_what_transformers_computes(models):
    text = torch.randint(0, 2048, (2, 50), generator=torch.Generator().manual_seed(4))
    ours, theirs = (open_runner(models[kind]).logits(text) for kind in ("base", "gguf"))
    assert torch.allclose(ours, theirs, atol=2e-2)


def test_a_llama_converts_and_computes_the_same(tmp_path):
    """With a byte-level BPE, as SmolLM's; llama.cpp's converter looks for SentencePiece first."""
    from conftest import EMBEDDED
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=2048, bos_token_id=0, eos_token_id=0, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED / name, tmp_path / "base" / name)
    gguf.convert(tmp_path / "base", tmp_path / "converted")
    text = torch.randint(0, 2048, (1, 40), generator=torch.Generator().manual_seed(6))
    ours, theirs = (open_runner(tmp_path / name).logits(text) for name in ("base", "converted"))
    assert torch.allclose(ours, theirs, atol=2e-2)


def test_bytes_held_count_scales_and_tied_weights_once(models):
    parameters = 2048 * 256 + 64 * 256 + 12 * 256 * 256 + 13 * 256 + 2 * 256
    assert sum(held_bytes(open_runner(models["base"])).values()) == 4 * parameters
    held = held_bytes(open_runner(models["bnb"]))
    codes, blocks = 12 * 256 * 256 // 2, 12 * 256 * 256 // 64
    assert held["uint8"] == codes
    assert held["float32"] == 4 * (parameters - 12 * 256 * 256 + blocks) + 4 * 16 * 4  # and a table of 16 per matrix


def test_int8_of_bitsandbytes_is_counted_before_and_after_its_first_call(base, tmp_path):
    bitsandbytes.build(base, bitsandbytes.Spec("int8"), tmp_path / "out")
    runner = open_runner(tmp_path / "out")
    before = held_bytes(runner)
    runner.logits(torch.zeros(1, 4, dtype=torch.int64))
    assert held_bytes(runner) == before and before["int8"] == 12 * 256 * 256


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_bitsandbytes_gives_the_same_bytes_twice(base, tmp_path, kind):
    for name in ("one", "two"):
        bitsandbytes.build(base, bitsandbytes.Spec(kind), tmp_path / name)
    one, two = ((tmp_path / name / "manifest.json").read_text() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_llama_cpp_quantizes_and_runs(converted, tmp_path, file_type):
    gguf.quantize(converted, gguf.Spec(file_type), tmp_path / "out")
    runner = open_runner(tmp_path / "out")
    assert torch.isfinite(runner.logits(torch.arange(30).view(1, -1))).all()
    assert {"Q8_0": "q8_0", "Q4_0": "q4_0", "Q4_K_M": "q4_k"}[file_type] in held_bytes(runner)


def test_an_architecture_llama_cpp_lacks_is_told_before_any_work(make_model, tmp_path):
    with pytest.raises(InputError, match=r"llama\.cpp has no architecture for GPTNeoForCausalLM; .*gguf: \{\}"):
        gguf.convert(make_model("gpt_neo"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_splits_unlike_gpt2_is_still_refused(base, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(base, source)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="splits text unlike GPT-2's"):
        gguf.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [
    b"", b"GGUF", b"GGML" + bytes(60), b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0) + bytes(20),
    b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
])  # fmt: skip
def test_a_file_that_is_no_gguf_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match="GGUF"):
        open_runner(tmp_path)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: bitsandbytes.Spec.from_dict({"type": "int4"}), "type is 'int4'; expected int8, fp4 or nf4"),
    (lambda: bitsandbytes.Spec.from_dict({"typo": 1}), "needs a type"),
    (lambda: bitsandbytes.Spec.from_dict({"type": "nf4", "block": 64}), "unknown bitsandbytes key 'block'"),
    (lambda: bitsandbytes.Spec.from_dict({"type": "int8", "double_quant": True}), "double_quant is for fp4 and nf4"),
    (lambda: gguf.Spec.from_dict({}), "needs a type"),
])  # fmt: skip
def test_a_row_that_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_an_unknown_gguf_type_is_refused_with_those_there_are(converted, tmp_path):
    with pytest.raises(InputError, match=r"gguf type is 'Q4_X'; llama\.cpp has .*Q4_K_M"):
        gguf.quantize(converted, gguf.Spec("Q4_X"), tmp_path / "out")
