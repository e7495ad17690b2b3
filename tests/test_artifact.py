"""What is written opens in transformers, for every architecture, and computes what the stored codes stand for."""

import json

import pytest
import torch
from conftest import ARCHITECTURES

import quant.transformers_format  # noqa: F401  registers the format
from quant.errors import InputError
from quant.files import sha256_of
from quant.model.artifact import write_artifact
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.model.safetensors_file import read_header
from quant.model.selection import select
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme

RECIPES = {
    "whole": {"include": ["*"]},
    "blocks": {"bits": 4, "group_size": 16, "codebook": "nf4"},
    "double": {"include": ["*"], "exclude": ["norm"], "bits": 4, "group_size": 16, "codebook": "nf4", "double_quant": True},
    "one role": {"include": ["k"], "bits": 3, "group_size": 32, "symmetric": False},
    "mixed": {
        "include": ["*"], "exclude": ["norm"], "group_size": 32, "schemes": {
            "mlp": {"bits": 5, "group_size": "tensor", "fit": "mse"}, "o": {"bits": 2, "codebook": [-1, -0.3, 0.3, 1]}}},
}

# Every architecture with the recipes that depend on its roles; the others on one that is fused, transposed and tied, and one not.
CASES = [*((architecture, name) for architecture in ARCHITECTURES for name in ("whole", "one role", "mixed")),
         *((architecture, name) for architecture in ("gpt2", "llama") for name in ("blocks", "double"))]


def expected_logits(folder, recipe, ids):
    """The model with each chosen weight replaced, in memory, by what its codes stand for."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    checkpoint = Checkpoint(folder)
    for selected in select(checkpoint.inventory, recipe):
        transposed = selected.weight.transposed
        parameter = model.get_parameter(selected.weight.name)
        matrix = parameter.data.T.clone() if transposed else parameter.data.clone()
        for part in selected.parts:
            if part.scheme is None:
                continue
            if len(selected.parts) == 1:
                matrix = dequantize(quantize(matrix, part.scheme))
            else:
                rows = [row for start, stop in part.ranges for row in range(start, stop)]
                matrix[rows] = dequantize(quantize(matrix[rows], part.scheme))
        parameter.data.copy_(matrix.T if transposed else matrix)
    return model(ids).logits


@pytest.mark.parametrize(("architecture", "recipe"), CASES)
def test_logits_after_loading_are_those_of_the_codes(make_model, tmp_path, ids, architecture, recipe):
    from transformers import AutoModelForCausalLM

    folder, recipe = make_model(architecture), Recipe.from_dict(RECIPES[recipe], Scheme())
    write_artifact(folder, recipe, tmp_path / "out")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, expected_logits(folder, recipe, ids), atol=2e-5)
        assert model.generate(ids[:1, :4], min_new_tokens=3, max_new_tokens=3, do_sample=False).shape == (1, 7)


def test_saved_again_it_is_the_same_model(make_model, tmp_path, ids):
    from transformers import AutoModelForCausalLM

    write_artifact(make_model("gpt2"), Recipe.from_dict({"include": ["*"]}, Scheme()), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert again.lm_head.weight is again.transformer.wte.weight


def test_a_tied_weight_is_stored_once(make_model, tmp_path):
    write_artifact(make_model("gpt2"), Recipe.from_dict({"include": ["*"]}, Scheme()), tmp_path / "out")
    names = read_header(tmp_path / "out" / "model.safetensors")
    assert "transformer.wte.weight.codes" in names and not any("lm_head" in name for name in names)


def test_a_fused_matrix_keeps_the_rows_that_were_not_chosen(make_model, tmp_path):
    folder = make_model("gpt2", torch.float16)
    write_artifact(folder, Recipe.from_dict({"include": ["q"]}, Scheme()), tmp_path / "out")
    stored = Checkpoint(tmp_path / "out").read("transformer.h.0.attn.c_attn.k_v.weight")
    original = Checkpoint(folder).read("transformer.h.0.attn.c_attn.weight")
    assert stored.dtype == torch.float16 and torch.equal(stored, original.T[64:])


def test_equal_input_gives_equal_bytes_and_a_true_manifest(make_model, tmp_path):
    recipe = Recipe.from_dict({"bits": 4, "group_size": 16}, Scheme())
    for name in ("one", "two"):
        write_artifact(make_model("llama"), recipe, tmp_path / name)
    files = json.loads((tmp_path / "one" / "manifest.json").read_text())["files"]
    assert set(files) == {p.name for p in (tmp_path / "one").iterdir()} - {"manifest.json"}
    for name, entry in files.items():
        assert entry["sha256"] == sha256_of(tmp_path / "one" / name) == sha256_of(tmp_path / "two" / name)


def test_shards_in_and_out(make_model, tmp_path, ids, monkeypatch):
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    AutoModelForCausalLM.from_pretrained(make_model("llama")).save_pretrained(source, max_shard_size="60KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    recipe = Recipe.from_dict({}, Scheme())
    write_artifact(make_model("llama"), recipe, tmp_path / "whole")
    monkeypatch.setattr("quant.model.safetensors_file.SHARD_BYTES", 30_000)
    write_artifact(source, recipe, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / n, dtype=torch.float32) for n in ("whole", "shards")]
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def test_nothing_is_left_where_it_failed(make_model, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quant.model.artifact.write_shard", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_artifact(make_model("gpt2"), Recipe(Scheme()), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_artifact_of_another_model_is_refused(make_model, tmp_path):
    from transformers import AutoModelForCausalLM

    write_artifact(make_model("llama"), Recipe(Scheme()), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["modules"]["model.layers.5.mlp.up_proj"] = {"up": {"scheme": 0, "ranges": [[0, 1]]}}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"quantizes model\.layers\.5\.mlp\.up_proj, which LlamaForCausalLM does not have"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def damaged(path, change):
    """Rewrite a file's header; its data stay where they are."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(("change", "message"), [
    (lambda h: h["lm_head.weight.codes"].update(shape=[64, 96]), r"uint8 \[64, 96\], expected uint8 \[96, 64\]"),
    (lambda h: h["lm_head.weight.scales"].update(dtype="I32"), r"lm_head.weight.scales is int32 \[96, 1\], expected float32"),
    (lambda h: h.update(other=h.pop("lm_head.weight.codes")), "lm_head.weight.codes is missing"),
    (lambda h: h["lm_head.weight.codes"].update(data_offsets=[1, 96 * 64 + 1]), "starts at byte"),
], ids=["shape", "dtype", "name", "offsets"])  # fmt: skip
def test_a_damaged_artifact_is_refused_before_it_is_read(make_model, tmp_path, change, message):
    from transformers import AutoModelForCausalLM

    write_artifact(make_model("llama"), Recipe.from_dict({"include": ["*"]}, Scheme()), tmp_path / "out")
    damaged(tmp_path / "out" / "model.safetensors", change)
    with pytest.raises(InputError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
