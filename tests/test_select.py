"""Roles, blocks and patterns choose what a user would expect, or say why they can't."""

import json

import pytest
from conftest import ROOT

from quant.errors import InputError
from quant.model.artifact import write_artifact
from quant.model.checkpoint import Checkpoint
from quant.model.inventory import take_inventory
from quant.model.recipe import Recipe
from quant.model.safetensors_file import read_header
from quant.model.selection import select
from quant.select import main
from quant.tensor.scheme import Scheme


def chosen(folder, **values):
    """Names of the parts that a recipe quantizes -> label of their scheme."""
    weights = select(Checkpoint(folder).inventory, Recipe.from_dict(values, Scheme()))
    return {w.name_of(part): part.scheme.label for w in weights for part in w.parts if part.scheme}


def test_everything_is_every_weight_once(make_model):
    names = chosen(make_model("gpt2"), include=["*"])
    assert len(names) == 2 * (2 + 2 + 2) + 3  # q k v together, o, up and down, two norms a block; wte, wpe, ln_f
    assert "transformer.h.1.attn.c_attn" in names and "lm_head" not in names  # the head is tied to wte


def test_the_default_selection_is_the_decoder_blocks(make_model):
    assert chosen(make_model("gpt2")) == chosen(make_model("gpt2"), include=["attention", "mlp"])


def test_a_role_reaches_its_rows_of_a_fused_matrix(make_model):
    assert set(chosen(make_model("phi3"), include=["k", "gate"])) == {
        f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.qkv_proj.k", "mlp.gate_up_proj.gate")
    }


def test_roles_of_a_fused_matrix_that_share_a_scheme_are_stored_together(make_model):
    names = chosen(make_model("gpt2"), blocks=[0], schemes={"q": {"bits": 4}}, exclude=["mlp", "o"])
    assert names == {"transformer.h.0.attn.c_attn.q": "int4 row", "transformer.h.0.attn.c_attn.k_v": "int8 row"}


def test_fused_rows_follow_the_heads(make_model):
    weights = select(Checkpoint(make_model("gpt_neox")).inventory, Recipe.from_dict({"include": ["k"]}, Scheme()))
    (fused,) = [w for w in weights if w.weight.module == "gpt_neox.layers.0.attention.query_key_value"]
    assert fused.parts[1].ranges == ((16, 32), (64, 80), (112, 128), (160, 176))  # k of 4 heads of 16


def test_include_exclude_blocks_and_patterns_combine(make_model):
    names = chosen(make_model("llama"), include=["attention", "model.layers.0.mlp.*"], exclude=["o"], blocks=["0-0"])
    assert set(names) == {f"model.layers.0.self_attn.{r}_proj" for r in "qkv"} | {
        f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
    }


def test_a_scheme_per_role(make_model):
    names = chosen(make_model("llama"), schemes={"mlp": {"bits": 4, "group_size": 32}, "down": {"bits": 6}})
    assert names["model.layers.0.self_attn.q_proj"] == "int8 row"
    assert names["model.layers.0.mlp.up_proj"] == "int4 g32" and names["model.layers.0.mlp.down_proj"] == "int6 g32"


@pytest.mark.parametrize(("architecture", "tied"), [("gpt2", True), ("llama", False), ("llama-tied", True), ("gemma", True)])
def test_a_tied_head_goes_with_the_embedding(make_model, architecture, tied):
    names = chosen(make_model(architecture), include=["head"])
    assert all(("embed" in name or "wte" in name) == tied for name in names)


@pytest.mark.parametrize(("values", "message"), [
    ({"include": ["attentoin"]}, "'attentoin' selects nothing; expected a role"),
    ({"include": ["gate"]}, "'gate' selects nothing"),
    ({"include": ["transformer.h.9.*"]}, r"'transformer\.h\.9\.\*' selects nothing"),
    ({"exclude": ["nothing.*"]}, "selects nothing"),
    ({"include": ["q"], "exclude": ["attention"]}, "the recipe selects no weight"),
    ({"blocks": [0, "1-3"]}, "blocks names 2, 3; the model's blocks are 0 to 1"),
    ({"blocks": ["a-b"]}, "blocks holds 'a-b'; expected a number or a range"),
    ({"include": "attention"}, "include is 'attention'; expected a list"),
    ({"bitz": 4}, "unknown recipe key 'bitz'; known: bits, blocks, codebook"),
    ({"schemes": {"moe": {}}}, "schemes names 'moe'; expected a role"),
])  # fmt: skip
def test_a_recipe_that_does_not_fit_is_refused(make_model, values, message):
    with pytest.raises(InputError, match=message):
        chosen(make_model("gpt2"), **values)


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(InputError, match="architecture 'mamba' has no table of roles; known: gemma"):
        take_inventory({"model_type": "mamba"}, {})


def test_the_table_shows_the_bytes_that_quantizing_writes(make_model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = make_model("phi3")
    recipe = {"include": ["k", "embedding"], "bits": 4, "group_size": 32}
    main([str(folder), json.dumps(recipe)])
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["model.layers.0.self_attn.qkv_proj.k"][1:4] == ["k", "32x64", "int4"]
    kept = rows["model.layers.0.self_attn.qkv_proj.q_v"]
    assert kept[1] == "q+v" and kept[-1] == kept[-2]
    write_artifact(folder, Recipe.from_dict(recipe, Scheme()), tmp_path / "out")
    stored = read_header(tmp_path / "out" / "model.safetensors").values()
    assert int(rows["total"][-1].replace(",", "")) == sum(info.bytes for info in stored)


@pytest.mark.parametrize(("recipe", "message"), [
    ("nf5", "variant 'nf5' is not in params.yaml; it has bf16"),
    ("bnb-int8", "bitsandbytes has no recipe that chooses weights; name a row with method: quant"),
    ("{bitz: 4}", "unknown recipe key 'bitz'"),
    ("{include: [q", "is not YAML"),
])  # fmt: skip
def test_the_table_refuses_what_is_no_recipe(recipe, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message) as refused:
        main(["models/embedded", recipe])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("row", "words"), [
    ({"budget": 4.0}, "run dvc repro prepare to measure it"),
    ({"allocation": {"x": {"bits": 4}}}, "which is not yet measured; run dvc repro prepare"),
])
def test_a_budget_before_anything_is_measured_is_told_in_a_line(make_model, tmp_path, row, words):
    from quant.methods import load
    from quant.model.checkpoint import Checkpoint

    method = load("calibrated")
    with pytest.raises(InputError, match=words):
        method.selected(Checkpoint(make_model("gpt2")).inventory, tmp_path, method.resolve({}, row))


@pytest.mark.parametrize("values", [{"include": None}, {"exclude": None}, {"include": [None]}, {"include": "q"},
                                    {"schemes": ["q"]}, {"schemes": {"q": None}}, {"blocks": ["0-99999999999"]},
                                    {"blocks": ["²"]}, {"blocks": [True]}])
def test_a_selection_of_the_wrong_form_is_one_line(values):
    with pytest.raises(InputError, match=r"recipe key|blocks holds"):
        _ = Recipe.from_dict(values, Scheme()).block_numbers
