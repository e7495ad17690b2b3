"""However a checkpoint names, ties, prefixes and shards its weights, it is the model that transformers opens, or refused."""

import json
import shutil

import pytest
import torch
from conftest import ARCHITECTURES, EMBEDDED_TOKENS, ROOT, config_of, save_model
from safetensors.torch import load_file, save_file

from quant.errors import InputError, Refused
from quant.export import export
from quant.hub.source import ModelSource
from quant.methods.llama_cpp.convert import convert
from quant.model import safetensors_file
from quant.model.architectures import architecture_of
from quant.model.artifact import write_artifact
from quant.model.checkpoint import Checkpoint
from quant.model.folder import INDEX, SINGLE
from quant.model.recipe import Recipe
from quant.preflight.facts import facts_of
from quant.preflight.forecast import forecasts
from quant.quality.evaluate import evaluate, evaluate_base
from quant.quality.protocol import ScoringProtocol
from quant.runners import open_runner
from quant.select import main as select_command
from quant.tensor.scheme import Scheme
from quant.text.corpus import Corpus

EVERYTHING = Recipe(Scheme(group_size=32), include=("*",))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def stored(make_model, tmp_path):
    """stored(architecture, change, **config): a copy of a tiny model; change(tensors) edits them, config its config.json."""
    def make(architecture, change=lambda tensors: tensors, source=None, **config):
        folder = tmp_path / "stored"
        shutil.copytree(source or make_model(architecture), folder)
        values = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
        save_file(change(load_file(folder / SINGLE)), folder / SINGLE, metadata={"format": "pt"})
        return folder

    return make


def renamed(names):
    """A change that renames tensors: old name -> new one, or None to leave it out."""
    def change(tensors):
        pairs = ((names(name) if callable(names) else names.get(name, name), tensor) for name, tensor in tensors.items())
        return {name: tensor for name, tensor in pairs if name is not None}

    return change


def without_prefix(*prefixes):
    return renamed(lambda name: next((name.removeprefix(p) for p in prefixes if name.startswith(p)), name))


def with_masks(name):
    """The causal masks that old checkpoints of GPT-2 and GPT-Neo hold in every block."""
    return lambda tensors: {**tensors, **{f"transformer.h.{i}.{name}": torch.ones(1, 1, 64, 64) for i in range(2)}}


def twice(copy, of):
    return lambda tensors: {**tensors, copy: tensors[of].clone()}


# Forms that hold the same model: architecture, change of its tensors, change of its config (...: the key is left out)
FORMS = {
    "gpt2-body": ("gpt2", without_prefix("transformer."), {}),
    "gpt2-body-with-masks": ("gpt2", lambda tensors: without_prefix("transformer.")(with_masks("attn.bias")(tensors)), {}),
    "gpt2-masks": ("gpt2", with_masks("attn.masked_bias"), {}),
    "gpt_neo-masks": ("gpt_neo", with_masks("attn.attention.bias"), {}),
    "gpt2-ties-by-default": ("gpt2", lambda tensors: tensors, {"tie_word_embeddings": ...}),
    "gpt2-stored-twice": ("gpt2", twice(HEAD, "transformer.wte.weight"), {}),
    "gpt2-head-alone": ("gpt2", renamed({"transformer.wte.weight": HEAD}), {}),
    "llama-body": ("llama-tied", without_prefix("model."), {}),
    "llama-stored-twice": ("llama-tied", twice(HEAD, EMBEDDING), {}),
    "llama-head-alone": ("llama-tied", renamed({EMBEDDING: HEAD}), {}),
    "llama-unties-by-default": ("llama", lambda tensors: tensors, {"tie_word_embeddings": ...}),
    "llama-rotary-tables": ("llama", twice("model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight"), {}),
    "opt-body": ("opt", without_prefix("model."), {}),
    "opt-head-alone": ("opt", renamed({"model.decoder.embed_tokens.weight": HEAD}), {}),
    "gpt_neox-new-head": ("gpt_neox", renamed({"embed_out.weight": HEAD}), {}),  # transformers saves the old name
    "gpt_neox-body": ("gpt_neox", without_prefix("gpt_neox."), {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_is_the_same_model(make_model, stored, tmp_path, ids, form):
    """The same inventory, base and artifact as of the form that transformers saves."""
    architecture, change, config = FORMS[form]
    plain, folder = make_model(architecture), stored(architecture, change, **config)
    expected, found = (Checkpoint(path).inventory for path in (plain, folder))
    assert {(w.name, w.shape, w.roles, w.tied_head) for w in found.weights} == {
        (w.name, w.shape, w.roles, w.tied_head) for w in expected.weights}
    assert (found.parameters, found.stored_bytes, found.head.name) == (
        expected.parameters, expected.stored_bytes, expected.head.name)
    assert torch.equal(open_runner(folder).logits(ids), open_runner(plain).logits(ids))
    for source, out in ((plain, "expected"), (folder, "found")):
        write_artifact(source, EVERYTHING, tmp_path / out)
    expected, found = (load_file(tmp_path / out / SINGLE) for out in ("expected", "found"))
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(open_runner(tmp_path / "found").logits(ids), open_runner(tmp_path / "expected").logits(ids))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_inventory_names_what_transformers_saves(make_model, architecture):
    """All tensors, none of role "other"; and whether the head is tied by default, where the config does not say."""
    checkpoint = Checkpoint(make_model(architecture))
    assert {weight.tensor for weight in checkpoint.inventory.weights} == set(checkpoint.tensors)
    assert all(weight.roles != ("other",) for weight in checkpoint.inventory.weights)
    config = {"model_type": checkpoint.config["model_type"]}
    assert architecture_of(config).is_tied(config) == type(config_of(architecture))().tie_word_embeddings


@pytest.mark.parametrize("form", ["llama-head-alone", "llama-stored-twice", "gpt2-body-with-masks"])
def test_base_and_variant_are_evaluated(stored, tmp_path, form):
    """Through quant.quality: the base's stored states give the variant's divergence, as of the form that transformers saves."""
    architecture, change, _ = FORMS[form]
    config = config_of(architecture)
    config.vocab_size = EMBEDDED_TOKENS
    plain = save_model(config, tmp_path / "plain")
    corpus, protocol = Corpus("made here", ("one two three", "four five six seven")), ScoringProtocol(context=32, stride=32)
    metrics = []
    for number, base in enumerate((plain, stored(architecture, change, plain))):
        write_artifact(base, EVERYTHING, tmp_path / f"variant{number}")
        reference = tmp_path / f"reference{number}"
        first = evaluate_base(base, corpus, protocol, "cpu", reference)["metrics"]
        second = evaluate(tmp_path / f"variant{number}", base, corpus, protocol, "cpu", reference)["metrics"]
        assert (reference / "states.f32").is_file() and second["kld_mnats"] > 0
        metrics.append([{key: values[key] for key in values if key != "disk_mib"} for values in (first, second)])
    assert metrics[0] == metrics[1]


def test_a_tied_weight_that_is_stored_as_the_head_alone(make_model, stored, tmp_path, capsys, monkeypatch):
    """Checked, selected and exported as one weight; llama.cpp, whose converter would lose the embedding, says no beforehand."""
    monkeypatch.chdir(ROOT)
    plain, folder = make_model("llama-tied"), stored("llama-tied", renamed({EMBEDDING: HEAD}))
    facts = facts_of(ModelSource(str(folder)))
    rows = {"int8": {"method": "quant"}, "gguf": {"method": "llama_cpp", "type": "F16"}}
    found = {one.name: one.obstacle for one in forecasts(facts.inventory, facts.folder, {"variants": rows})}
    assert facts.inventory.parameters == Checkpoint(plain).inventory.parameters
    assert found["int8"] is None and f"as {EMBEDDING}, which is stored as {HEAD}" in found["gguf"]
    with pytest.raises(Refused, match=f"as {EMBEDDING}, which is stored as {HEAD}$"):  # so it costs its rows alone
        convert(folder, tmp_path / "converted")
    select_command([str(folder), "{include: [head]}"])
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["model.embed_tokens"][1] == "embedding+head" and "lm_head" not in rows
    for source in (plain, folder):
        write_artifact(source, Recipe(Scheme(4, 32)), tmp_path / f"{source.name}-int4")
        export(tmp_path / f"{source.name}-int4", tmp_path / f"{source.name}-out", "compressed-tensors")
    first, second = (load_file(tmp_path / f"{source.name}-out" / SINGLE) for source in (plain, folder))
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def another_head(tensors):
    return {**tensors, HEAD: tensors[EMBEDDING].flip(0)}


WRAPPERS = {prefix: renamed(lambda name, prefix=prefix: prefix + name) for prefix in ("module.", "_orig_mod.", "model.model.")}
REFUSED = {
    **{f"wrapper-{prefix}": ("llama", change, {}, [f"has no {EMBEDDING}, but {prefix}{EMBEDDING}", "save_pretrained"])
       for prefix, change in WRAPPERS.items()},
    "wrapper-multimodal": ("llama", renamed(lambda name: name.replace("model.", "model.language_model.")), {},
                           [f"has no {EMBEDDING}, but model.language_model.embed_tokens.weight", "multimodal"]),
    "wrapper-around-a-block": ("llama", renamed(lambda name: name.replace("layers.1.", "layers.1._orig_mod.")), {},
                               ["has no model.layers.1.self_attn.q_proj.weight",
                                "but model.layers.1._orig_mod.self_attn.q_proj.weight", "torch.compile"]),
    "wrapper-of-gpt2": ("gpt2", renamed(lambda name: f"module.{name}"), {}, ["but module.transformer.wte.weight"]),
    "a-weight-missing": ("llama", renamed({"model.layers.1.mlp.up_proj.weight": None}), {},
                         ["has no model.layers.1.mlp.up_proj.weight; fetch the model again"]),
    "a-block-missing": ("gpt2", renamed(lambda name: None if ".h.1." in name else name), {},
                        ["has no transformer.h.1.attn.c_attn.weight; fetch"]),
    "body-of-an-untied-model": ("llama", renamed({HEAD: None}), {}, [f"has no {HEAD}", "tie_word_embeddings to true"]),
    "head-of-an-untied-model": ("llama", renamed({EMBEDDING: None}), {}, [f"has no {EMBEDDING}; fetch the model again"]),
    "tied-but-different": ("llama-tied", another_head, {}, [EMBEDDING, HEAD, "tie_word_embeddings to false"]),
    "tied-in-another-dtype": ("llama-tied", lambda tensors: {**tensors, HEAD: tensors[EMBEDDING].bfloat16()}, {},
                              [EMBEDDING, HEAD, "tie_word_embeddings to false"]),
    "two-names-of-one-weight": ("llama", twice("embed_tokens.weight", EMBEDDING), {},
                                [f"stores {EMBEDDING} twice", f"as embed_tokens.weight and as {EMBEDDING}"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_transformers_would_open_with_other_weights_is_refused_by_name(stored, tmp_path, case):
    """Where transformers fills in random numbers or does not tie; by the library and by `quant.check` alike."""
    architecture, change, config, words = REFUSED[case]
    folder = stored(architecture, change, **config)
    for call in (lambda: write_artifact(folder, EVERYTHING, tmp_path / "out"), lambda: facts_of(ModelSource(str(folder)))):
        with pytest.raises(InputError) as refused:
            call()
        assert all(word in str(refused.value) for word in words), refused.value
    assert not (tmp_path / "out").exists()


def test_both_tensors_of_an_untied_model_are_weights_of_their_own(stored, tmp_path, ids):
    """The remedy for a tied model that stores two different tensors."""
    folder = stored("llama-tied", another_head, tie_word_embeddings=False)
    inventory = Checkpoint(folder).inventory
    assert inventory.head.name == HEAD and not any(weight.tied_head for weight in inventory.weights)
    write_artifact(folder, EVERYTHING, tmp_path / "out")
    assert torch.allclose(open_runner(tmp_path / "out").logits(ids), open_runner(folder).logits(ids), atol=0.1)


def shards_of(folder, split, extra=()):
    """Store a folder's tensors in a.safetensors and b.safetensors: those that split(name) names in b, `extra` in both."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    files = {"b.safetensors": {name: tensor for name, tensor in tensors.items() if split(name)}}
    files["a.safetensors"] = {name: tensor for name, tensor in tensors.items() if name not in files["b.safetensors"]}
    files["a.safetensors"] |= dict(extra)
    for file, held in files.items():
        save_file(held, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in files.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


@pytest.mark.parametrize("split", [lambda name: name.endswith("bias"), lambda name: "c_attn" in name, lambda name: "h.1" in name],
                         ids=["biases", "one-module", "a-block"])
def test_shards_may_part_anything(make_model, stored, tmp_path, ids, split):
    folder = stored("gpt2")
    tensors = shards_of(folder, split)
    write_artifact(folder, EVERYTHING, tmp_path / "found")
    assert Checkpoint(folder).inventory.parameters == sum(tensor.numel() for tensor in tensors.values())
    write_artifact(make_model("gpt2"), EVERYTHING, tmp_path / "expected")
    assert torch.equal(open_runner(tmp_path / "found").logits(ids), open_runner(tmp_path / "expected").logits(ids))


def test_codes_and_scales_of_one_weight_may_stand_in_several_files(make_model, tmp_path, ids, monkeypatch):
    """An artifact in shards of one tensor each opens as the one in a single file does."""
    write_artifact(make_model("phi3"), EVERYTHING, tmp_path / "one")
    monkeypatch.setattr(safetensors_file, "SHARD_BYTES", 1)
    write_artifact(make_model("phi3"), EVERYTHING, tmp_path / "many")
    place = json.loads((tmp_path / "many" / INDEX).read_text())["weight_map"]
    assert place["model.norm.weight.codes"] != place["model.norm.weight.scales"]
    assert torch.equal(open_runner(tmp_path / "many").logits(ids), open_runner(tmp_path / "one").logits(ids))


def test_a_tensor_in_two_shards_must_be_the_same_in_both(stored):
    folder, name = stored("gpt2"), "transformer.ln_f.weight"
    tensors = shards_of(folder, lambda name: "ln_f" in name)
    both = load_file(folder / "a.safetensors") | {name: tensors[name]}
    save_file(both, folder / "a.safetensors", metadata={"format": "pt"})
    assert Checkpoint(folder).inventory.parameters == sum(tensor.numel() for tensor in tensors.values())
    save_file(both | {name: tensors[name] + 1}, folder / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"stores {name} with different values in a\.safetensors and in b\.safetensors"):
        Checkpoint(folder)


def test_a_shard_that_lacks_what_the_index_names(stored):
    """A missing file, then a file without one of its tensors."""
    folder = stored("gpt2")
    tensors = shards_of(folder, lambda name: "h.1" in name)
    held = {name: tensor for name, tensor in tensors.items() if "h.1" in name and "mlp.c_fc.weight" not in name}
    save_file(held, folder / "b.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no transformer\.h\.1\.mlp\.c_fc\.weight; fetch the model again"):
        _ = Checkpoint(folder).inventory
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks b\.safetensors, which its index names"):
        Checkpoint(folder)
