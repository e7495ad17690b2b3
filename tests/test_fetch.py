"""A model's folder becomes the base: the numbers it holds, no code, and its licence."""

import json
import re
import shutil

import pytest
import torch
from conftest import build_variant

from quant.errors import InputError
from quant.hub.fetch import fetch_model
from quant.hub.license import License
from quant.hub.source import ModelSource
from quant.model.artifact import write_artifact
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.runners import open_runner
from quant.tensor.qtensor import quantize
from quant.tensor.scheme import Scheme


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_is_quantized_from_the_numbers_it_holds(make_model, tmp_path, capsys, dtype):
    source = make_model("llama", dtype)
    fetch_model(ModelSource(str(source)), tmp_path / "base")
    assert f"stored as {dtype}".replace("torch.", "") in capsys.readouterr().out
    assert json.loads((tmp_path / "base" / "manifest.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    write_artifact(tmp_path / "base", Recipe.from_dict({"include": ["q"]}, Scheme()), tmp_path / "out")
    held, written = Checkpoint(source), Checkpoint(tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert held.tensors[name].dtype == dtype
    for key, tensor in quantize(held.read(name), Scheme()).tensors().items():
        assert torch.equal(written.read(f"{name}.{key}"), tensor)
    kept = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(written.read(kept), held.read(kept)) and written.tensors[kept].dtype == dtype


def test_code_that_a_model_brings_never_runs(make_model, tmp_path):
    """A config that names the code of the class that transformers has itself, as Phi-3's: the class opens it, the code stays."""
    source = tmp_path / "source"
    shutil.copytree(make_model("llama"), source)
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_theirs.LlamaForCausalLM", "AutoConfig": "modeling_theirs.LlamaConfig"}
    (source / "config.json").write_text(json.dumps(config))
    for name in ("modeling_theirs.py", "tokenizer_theirs.py"):
        (source / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    base = tmp_path / "base"
    fetch_model(ModelSource(str(source)), base)
    assert not list(base.glob("*.py")) and "auto_map" not in json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config))  # and even if it were there
    shutil.copyfile(source / "modeling_theirs.py", base / "modeling_theirs.py")
    assert type(open_runner(base).model).__name__ == "LlamaForCausalLM"
    build_variant(base, "bitsandbytes", {"type": "nf4"}, tmp_path / "bnb")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("values", "message"), [
    ({"source": "a/b", "token": "x"}, "unknown model key 'token'; known: source, revision"),
    ({"source": "a/b", "revision": 12345678}, "model.revision is 12345678; expected text, in quotes"),
    ({"source": 7}, "model.source is 7"),
])  # fmt: skip
def test_a_section_that_does_not_fit_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        ModelSource.from_dict(values)


@pytest.mark.parametrize(("source", "hint"), [
    ("gpt2", "did you mean openai-community/gpt2?"),
    ("nowhere", "a Hub id names the owner too, such as openai-community/gpt2"),
])  # fmt: skip
def test_a_name_without_owner_is_no_model(source, hint):
    message = f"model {source!r} is neither a folder here nor a Hub id (owner/name); {hint}"
    with pytest.raises(InputError, match=re.escape(message)):
        ModelSource(source).require_valid()


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(InputError, match=r"model\.revision is 'main', but .* is a folder; set it to null"):
        fetch_model(ModelSource(str(tmp_path), "main"), tmp_path / "base")


@pytest.mark.parametrize(("front", "label", "warning"), [
    ("license: mit", "mit", None),
    ("license: cc-by-nc-4.0", "cc-by-nc-4.0", "non-commercial"),
    ("license: cc-by-nd-4.0", "cc-by-nd-4.0", "does not allow sharing modified copies"),
    ("license: other\nlicense_name: my-terms\nlicense_link: LICENSE", "my-terms", "its own terms"),
    ("license: llama3", "llama3", "its own terms"),
    ("license: [unclosed", "not stated", "states no licence"),
    ("tags: [a]", "not stated", "states no licence"),
])  # fmt: skip
def test_a_licence_is_read_from_the_card(tmp_path, front, label, warning):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Model\n")
    license = License.from_card(tmp_path / "README.md")
    assert license.label == label and (license.warning is None) == (warning is None)
    assert warning is None or warning in license.warning
