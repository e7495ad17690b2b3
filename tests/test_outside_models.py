"""A model's folder that asks for code, leads elsewhere or lies about its shapes is refused in one line, before any work."""

import json
import os
import shutil

import pytest
from conftest import ARCHITECTURES, EMBEDDED, ROOT, build_variant, config_of

from quant.errors import InputError
from quant.export import export
from quant.hub.fetch import fetch_model
from quant.hub.source import ModelSource
from quant.model.architectures import ARCHITECTURES as TABLE
from quant.model.config import translating_tokenizers
from quant.publish.push import _files_of

PTB = ROOT.parent / "shared" / "models" / "ptb-gpt2"


@pytest.fixture
def planted(make_model, tmp_path):
    """A copy of a tiny Llama, and a function that changes values of one of its JSON files."""
    source = tmp_path / "planted"
    shutil.copytree(make_model("llama"), source)

    def change(name="config.json", **values):
        path = source / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return source, change


def refused(source, message):
    out = source.parent / "out"
    with pytest.raises(InputError, match=message) as caught:
        fetch_model(ModelSource(str(source)), out)
    assert not out.exists() and not list(source.parent.glob(".out*")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "message"), [
    ({"auto_map": {"AutoModelForCausalLM": "theirs.Theirs"}}, "auto_map names 'theirs.Theirs'"),
    ({"auto_map": {"AutoConfig": "planted--module.LlamaConfig"}}, "auto_map names 'planted--module.LlamaConfig'"),
    ({"auto_map": ["x.Y"]}, r"auto_map names \['x.Y'\]|auto_map names 'x.Y'"),
    ({"attn_implementation": "owner/repo"}, "attn_implementation is 'owner/repo'"),
    ({"_attn_implementation": "kernels-community/x"}, "_attn_implementation is"),
    ({"architectures": ["DreamModel"]}, "architectures names 'DreamModel', and model_type is llama, whose classes are Llama"),
    ({"architectures": [1]}, "architectures is"),
    ({"architectures": 5}, "architectures is 5"),
    ({"model_type": ["gpt2"]}, "model_type is"),
    ({"num_attention_heads": "x"}, "num_attention_heads is 'x'"),
    ({"num_attention_heads": -1}, "num_attention_heads is -1"),
    ({"num_attention_heads": 1.5}, "num_attention_heads is 1.5"),
    ({"num_attention_heads": 2**53}, "num_attention_heads is 9007199254740992"),
    ({"num_key_value_heads": 3}, "does not divide the 4 heads"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ({"num_hidden_layers": 5000}, "the checkpoint has no model.layers.2"),
    ({"num_hidden_layers": 1}, "config.json says 1 decoder blocks, the weights have 2"),
    ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
    ({"vocab_size": 97}, r".* has shape \[96, 64\], and config.json gives \[97, 64\]"),
    ({"hidden_size": 32}, "has shape"),
    ({"intermediate_size": 64}, "has shape"),
    ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
    ({"head_dim": 8}, "has shape"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
])  # fmt: skip
def test_a_config_that_asks_for_code_or_lies(planted, values, message):
    source, change = planted
    change(**values)
    refused(source, message)


def test_what_models_of_the_hub_commonly_say_is_taken(planted):
    source, change = planted
    change(attn_implementation="flash_attention_2", eos_token_id=[1, 2], sliding_window=None, pretraining_tp=1, rope_theta=5e5,
           transformers_version="4.40.0", torch_dtype="bfloat16", quantization_config=None, rope_scaling=None)
    change("tokenizer_config.json", model_max_length=int(1e30), bos_token={"content": "a", "lstrip": False}, auto_map=None)
    fetch_model(ModelSource(str(source)), source.parent / "out")
    kept = json.loads((source.parent / "out" / "config.json").read_text())
    assert "attn_implementation" not in kept and kept["eos_token_id"] == [1, 2]
    assert json.loads((source.parent / "out" / "tokenizer_config.json").read_text())["model_max_length"] == int(1e30)


@pytest.mark.skipif(not PTB.is_dir(), reason="a model that is not part of the project")
def test_a_model_of_another_tool_is_taken(tmp_path):
    fetch_model(ModelSource(str(PTB)), tmp_path / "out")


@pytest.mark.parametrize(("name", "values", "message"), [
    ("tokenizer_config.json", {"model_max_length": 10**60}, "a number of 61 digits"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "planted--module.Tokenizer"]}}, "auto_map names"),
    ("tokenizer_config.json", {"bos_token": 5}, "bos_token is 5"),
    ("tokenizer.json", {"model": {"type": "nonsense"}}, "tokenizer.json can't be read"),
])  # fmt: skip
def test_a_tokenizer_that_asks_for_code_or_is_broken(planted, name, values, message):
    source, change = planted
    change(name, **values)
    refused(source, message)


@pytest.mark.parametrize("model", [
    {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]},
    {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "continuing_subword_prefix": "##"},
], ids=["no merged token", "prefix"])  # fmt: skip
def test_a_panic_of_the_library_is_one_line_and_shows_no_trace(planted, capfd, model):
    """Rust prints where it panicked to the file descriptor itself, which comes back; what is no panic passes through."""
    source, change = planted
    change("tokenizer.json", model=model)
    refused(source, "tokenizer.json can't be read: .*fetch the model again")
    with pytest.raises(KeyboardInterrupt), translating_tokenizers("x"):
        raise KeyboardInterrupt
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


@pytest.mark.parametrize("text", ["{", "null", "\0\1\2", "[" * 5000, '{"a": NaN}', '{"a": "\\ud800"}', '{"a": 1e999}',
                                  '{"a": ' + "1" * 5000 + "}", '{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json",
                                  "model.safetensors.index.json"])
def test_a_file_that_is_no_strict_json(planted, name, text):
    source, _ = planted
    (source / name).write_bytes(text.encode())
    refused(source, name)


def link(target):
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize("name", ["vocab.txt", "README.md", "config.json", "model.safetensors"])
@pytest.mark.parametrize(("plant", "message"), [
    (lambda path: path.symlink_to(path.parent.parent / "secret"), "is a link that leaves its folder"),
    (link("/dev/zero"), "is no plain file"),
    (lambda path: path.symlink_to(path.parent), "is no plain file"),
    (link("nowhere"), "is a link to nothing|has no"),
    (os.mkfifo, "is no plain file"),
    (lambda path: path.mkdir(), "is no plain file"),
], ids=["link out", "device", "link to a folder", "dangling", "pipe", "folder"])  # fmt: skip
def test_a_file_that_is_none_or_lies_elsewhere(planted, name, plant, message):
    source, _ = planted
    path = source / name
    (source.parent / "secret").write_bytes(path.read_bytes() if path.exists() else b"secret")
    path.unlink(missing_ok=True)
    plant(path)
    refused(source, message)


def test_links_within_the_folder_and_to_the_blobs_of_the_hubs_cache_are_kept(make_model, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / ("0" * 40), tmp_path / "models--a--b" / "blobs"
    shutil.copytree(make_model("llama"), snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    (snapshot / "vocab.txt").symlink_to("tokenizer.json")
    fetch_model(ModelSource(str(snapshot)), tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_a_link_out_of_an_artifact_is_neither_exported_nor_pushed_and_one_to_dvcs_cache_is(make_model, tmp_path):
    artifact = build_variant(make_model("llama"), "quant", {"bits": 4, "group_size": 32}, tmp_path / "int4")
    secret, cached = tmp_path / "secret", tmp_path / "files" / "md5" / "ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    for path in (secret, cached):
        path.write_text("text")
    (artifact / "vocab.txt").symlink_to(cached)
    export(artifact, tmp_path / "out", "compressed-tensors")
    assert (tmp_path / "out" / "vocab.txt").read_text() == "text" and "vocab.txt" in _files_of(artifact)
    (artifact / "vocab.txt").unlink()
    (artifact / "vocab.txt").symlink_to(secret)
    with pytest.raises(InputError, match="is a link that leaves its folder"):
        export(artifact, tmp_path / "another", "compressed-tensors")
    with pytest.raises(InputError, match="is a link that leaves its folder"):
        _files_of(artifact)
    assert not (tmp_path / "another").exists()


def test_a_companion_that_is_too_large(planted):
    source, _ = planted
    with open(source / "vocab.txt", "wb") as file:
        file.truncate(129 * 2**20)  # sparse: takes no room
    refused(source, "vocab.txt has 135,266,304 bytes; expected at most")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_the_classes_and_the_attention_of_transformers(name):
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    entry = TABLE[config.model_type]
    assert entry.classes[0] == type(model).__name__ and entry.attention == model.config._attn_implementation


def test_the_embedded_model_is_taken(tmp_path):
    fetch_model(ModelSource(str(EMBEDDED)), tmp_path / "base")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "base" / name).read_bytes() == (EMBEDDED / name).read_bytes()
