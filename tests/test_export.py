"""An exported artifact opens in plain transformers, and computes exactly what the artifact does; or it is refused by name."""

import json
import re
import subprocess
import sys

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from conftest import ROOT

import quant.transformers_format  # noqa: F401  opens the artifact itself, to compare with
from quant.errors import InputError
from quant.export import export, main
from quant.files import sha256_of
from quant.model.artifact import write_artifact
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.model.safetensors_file import TensorInfo, write_checkpoint
from quant.tensor.packing import unpack
from quant.tensor.qtensor import QTensor, dequantize
from quant.tensor.scheme import Scheme

FORM = "compressed-tensors"
RECIPES = {
    "int8 row": {},
    "int8 tensor": {"group_size": "tensor"},
    "int4 g32": {"bits": 4, "group_size": 32},
    "int4 g64": {"bits": 4, "group_size": 64},
    "int8 attention, int4 mlp": {"schemes": {"mlp": {"bits": 4, "group_size": 32}}},
    "mlp only": {"include": ["mlp"]},
    "int4 g32 full": {"bits": 4, "group_size": 32, "levels": "full"},
    "int8 row whole": {"symmetric": False, "zeros": "whole", "fit": "mse"},
    "int4 tensor whole": {"bits": 4, "group_size": "tensor", "symmetric": False, "zeros": "whole"},
    "int4 g32 whole": {"bits": 4, "group_size": 32, "symmetric": False, "zeros": "whole"},
}


@pytest.fixture
def exported(make_model, tmp_path):
    """exported(architecture, recipe, dtype) -> the artifact's folder and the exported one."""

    def make(architecture, recipe, dtype=torch.float32):
        artifact, out = tmp_path / "artifact", tmp_path / "out"
        write_artifact(make_model(architecture, dtype), Recipe.from_dict(recipe, Scheme()), artifact)
        export(artifact, out, FORM)
        return artifact, out

    return make


def has_zero_points(folder):
    return any(name.endswith(".weight_zero_point") for name in Checkpoint(folder).tensors)


def opened(folder, dtype="auto"):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    # its skeleton on the meta device has zero points unpacked, so the stored ones fit only where they are not loaded into it
    config = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if has_zero_points(folder) else {}
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **config)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def weights_of(artifact, dtype):
    """What the stored codes stand for: module -> weight, the parts of a fused one put together."""
    checkpoint = Checkpoint(artifact)
    config = checkpoint.config["quantization_config"]
    weights = {}
    for module, parts in config["modules"].items():
        rows = []
        for role, part in parts.items():
            name = module if len(parts) == 1 else f"{module}.{role}"
            stored = {tensor.rpartition(".")[2]: checkpoint.read(tensor) for tensor in checkpoint.tensors
                      if tensor.rpartition(".")[0] == f"{name}.weight"}
            scheme = Scheme.from_dict(config["schemes"][part["scheme"]])
            count, width = stored["codes"].shape
            tensor = QTensor.from_tensors(stored, (count, width * 8 // scheme.bits), scheme)
            rows.append((part["ranges"], dequantize(tensor, dtype)))
        rows.sort(key=lambda item: item[0])
        weights[module] = torch.cat([weight for _, weight in rows])
    return weights


CASES = [*(("smollm", name) for name in RECIPES), *((architecture, name) for architecture in ("qwen3", "phi3")
                                                     for name in ("int4 g32", "int8 attention, int4 mlp"))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("architecture", "recipe"), CASES)
def test_weights_and_logits_are_those_of_the_artifact(exported, ids, architecture, recipe, dtype):
    recipe = RECIPES[recipe]
    # compressed-tensors holds scales in the model's dtype: they have to be numbers of it for the same weights
    scale_dtype = str(dtype).removeprefix("torch.")
    artifact, out = exported(architecture, {**recipe, "scale_dtype": scale_dtype}, dtype)
    ours, theirs = opened(artifact), opened(out)
    with torch.inference_mode():
        expected, found = ours(ids).logits, theirs(ids).logits
        assert theirs.generate(ids[:1, :4], min_new_tokens=3, max_new_tokens=3, do_sample=False).shape == (1, 7)
    assert found.dtype == dtype
    weights = weights_of(artifact, dtype)
    assert {f"{name}.weight_packed" for name in weights} == {n for n in Checkpoint(out).tensors if n.endswith("_packed")}
    for name, weight in weights.items():
        dense = theirs.get_submodule(name).weight
        if f"{name}.weight_zero_point" in Checkpoint(out).tensors and dtype == torch.float32:
            assert torch.allclose(dense, weight, rtol=1e-6, atol=1e-6), name  # ours rounds zero * scale too
        else:
            assert torch.equal(dense, weight), name
    # In float32 both multiply with the same weights, summed in another order at most. In bfloat16 ours multiplies with them as
    # they are and rounds the result; transformers multiplies with weights rounded to bfloat16.
    assert torch.allclose(found, expected, atol=2e-6 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("recipe", [
    {"bits": 4}, {}, {"group_size": "tensor"}, {"bits": 4, "symmetric": False, "zeros": "whole"},
    {"symmetric": False, "zeros": "whole"}, {"levels": "full", "scale_dtype": "int8"},
], ids=["int4 row", "int8 row", "int8 tensor", "int4 row whole", "int8 row whole", "int8 row full i8"])  # fmt: skip
def test_rows_that_fill_no_whole_word(exported, ids, recipe):
    artifact, out = exported("llama-odd", recipe)
    with torch.inference_mode():
        assert torch.allclose(opened(artifact)(ids).logits, opened(out)(ids).logits, atol=2e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("values", [{"levels": "full", "fit": "mse"}, {"symmetric": False, "zeros": "whole"}, {}],
                         ids=["full", "whole", "narrow"])
def test_8_bit_scales_are_multiplied_out_exactly(exported, ids, values, bits):
    artifact, out = exported("smollm", {"bits": bits, "group_size": 32, "scale_dtype": "int8", **values})
    theirs = opened(out)
    with torch.inference_mode():
        assert torch.allclose(opened(artifact)(ids).logits, theirs(ids).logits, atol=2e-6)
    for name, weight in weights_of(artifact, torch.float32).items():
        found = theirs.get_submodule(name).weight
        assert torch.allclose(found, weight, rtol=1e-6, atol=1e-6) if "zeros" in values else torch.equal(found, weight), name
        assert Checkpoint(out).tensors[f"{name}.weight_scale"].dtype == torch.float32


def test_the_sign_of_a_scale_survives(exported):
    _, out = exported("smollm", RECIPES["int4 g32 full"])
    checkpoint = Checkpoint(out)
    scales = torch.cat([checkpoint.read(name).flatten() for name in checkpoint.tensors if name.endswith("_scale")])
    assert 0.4 < (scales < 0).float().mean() < 0.6


@pytest.mark.parametrize("architecture", ["smollm", "phi3"])
def test_the_library_decompresses_whole_zeros_beside_other_schemes(exported, architecture):
    """transformers takes all layers for one scheme where it decompresses zero points; the library itself does not."""
    artifact, out = exported(architecture, {"bits": 4, "group_size": 32, "symmetric": False, "zeros": "whole", "schemes": {
        "mlp": {"bits": 8, "symmetric": True, "zeros": "real", "levels": "full"}}})
    stored = Checkpoint(out)
    config = QuantizationConfig.model_validate(stored.config["quantization_config"])
    scheme_of = {name: group for group in config.config_groups.values() for name in group.targets}
    assert {scheme.weights.symmetric for scheme in scheme_of.values()} == {True, False}
    for name, weight in weights_of(artifact, torch.float32).items():
        tensors = {key.removeprefix(f"{name}."): stored.read(key) for key in stored.tensors if key.startswith(f"{name}.")}
        found = PackedQuantizationCompressor.decompress(tensors, scheme_of[name])["weight"]
        assert torch.allclose(found, weight, rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("architecture", ["gpt_neo", "gpt_neox", "opt", "gemma", "llama-tied"])
def test_other_architectures_of_linear_layers(exported, ids, architecture):
    artifact, out = exported(architecture, {"bits": 4, "group_size": 32})
    with torch.inference_mode():
        assert torch.allclose(opened(artifact)(ids).logits, opened(out)(ids).logits, atol=2e-6)


def test_scales_of_a_wider_dtype_are_rounded_to_the_models(exported, ids):
    """float32 scales opened in bfloat16: each weight is off by at most three roundings to 8 significant bits."""
    artifact, out = exported("smollm", {"bits": 4, "group_size": 32}, torch.bfloat16)
    theirs = opened(out)
    with torch.inference_mode():
        theirs(ids)
    for name, weight in weights_of(artifact, torch.bfloat16).items():
        weight, found = weight.float(), theirs.get_submodule(name).weight.float()
        assert ((found - weight).abs() <= 3 * 2**-8 * weight.abs()).all()
    with torch.inference_mode():  # and nothing is lost in the file: in float32 it is the same model, but for the order of sums
        assert torch.allclose(opened(artifact, torch.float32)(ids).logits, opened(out, torch.float32)(ids).logits, atol=2e-6)


@pytest.mark.parametrize(("architecture", "bits", "size"), [("llama-odd", 4, "row"), ("llama-odd", 8, "row"), ("smollm", 4, 32)])
def test_zero_points_are_laid_out_as_the_librarys_own_packer_does_it(exported, architecture, bits, size):
    artifact, out = exported(architecture, {"bits": bits, "group_size": size, "symmetric": False, "zeros": "whole"})
    name = "model.layers.1.mlp.down_proj"
    stored, found = Checkpoint(artifact).read(f"{name}.weight.zeros"), Checkpoint(out)
    groups = found.tensors[f"{name}.weight_scale"].shape[1]
    zeros = unpack(stored, bits, groups)
    expected = pack_to_int32((zeros.int() - 2 ** (bits - 1)).to(torch.int8), bits, packed_dim=0)
    assert torch.equal(found.read(f"{name}.weight_zero_point"), expected)
    assert found.config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] is False


@pytest.mark.parametrize(("architecture", "bits"), [("llama-odd", 4), ("llama-odd", 8), ("smollm", 4)])
def test_the_layout_is_that_of_the_librarys_own_packer(exported, architecture, bits):
    artifact, out = (Checkpoint(folder) for folder in exported(architecture, {"bits": bits}))
    columns = artifact.config["intermediate_size"]
    name = "model.layers.1.mlp.down_proj"
    codes = unpack(artifact.read(f"{name}.weight.codes"), bits, columns)
    expected = pack_to_int32((codes.int() - 2 ** (bits - 1)).to(torch.int8), bits)
    assert torch.equal(out.read(f"{name}.weight_packed"), expected)
    assert torch.equal(out.read(f"{name}.weight_scale"), artifact.read(f"{name}.weight.scales"))
    assert out.read(f"{name}.weight_shape").tolist() == [artifact.config["hidden_size"], columns]


def test_the_config_names_every_linear_layer_once(exported):
    _, out = exported("llama", {"exclude": ["o"], "schemes": {"mlp": {"bits": 4, "group_size": 32}}})
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    weights = {name: group["weights"] for group in config["config_groups"].values() for name in group["targets"]}
    assert set(weights) == {f"model.layers.{i}.{name}_proj" for i in range(2) for name in (
        "self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up", "mlp.down")}
    assert (weights["model.layers.0.self_attn.q_proj"]["num_bits"], weights["model.layers.1.mlp.up_proj"]["num_bits"]) == (8, 4)
    assert config["ignore"] == ["model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj", "lm_head"]
    assert config["format"] == "pack-quantized" and config["quantization_status"] == "compressed"


def test_equal_input_gives_equal_bytes_and_a_true_manifest(exported, tmp_path):
    artifact, out = exported("llama", {"bits": 4, "group_size": 32})
    export(artifact, tmp_path / "two", FORM)
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert set(files) == {p.name for p in out.iterdir()} - {"manifest.json"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(files)
    for name, entry in files.items():
        assert entry["sha256"] == sha256_of(out / name) == sha256_of(tmp_path / "two" / name)


def test_shards_and_a_second_export_over_the_first(exported, ids, monkeypatch):
    artifact, out = exported("llama", {})
    before = opened(out)(ids).logits
    monkeypatch.setattr("quant.model.safetensors_file.SHARD_BYTES", 30_000)
    export(artifact, out, FORM)
    assert len(list(out.glob("*.safetensors"))) > 1 and not (out / "model.safetensors").exists()
    assert torch.equal(opened(out)(ids).logits, before)


def test_the_library_leaves_a_conv1d_alone(make_model):
    """Why GPT-2 is refused: the library takes its targets and quantizes none of them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_model("gpt2"))
    group = {"targets": ["transformer.h.0.mlp.c_fc", "Conv1D"], "weights": {"num_bits": 8, "strategy": "channel"}}
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": group}))
    assert not any(hasattr(module, "quantization_scheme") for module in model.modules())


@pytest.mark.parametrize(("architecture", "recipe", "message"), [
    ("llama", {"bits": 4, "codebook": "nf4", "group_size": 32}, r"down_proj is nf4 g32, a table of values.*codebook: linear"),
    ("llama", {"bits": 4, "codebook": "fp4", "group_size": 32}, r"down_proj is fp4 g32, a table of values"),
    ("llama", {"bits": 3, "group_size": 32}, r"down_proj is int3 g32; pack-quantized is served at 4 and 8 bits only"),
    ("llama", {"symmetric": False}, r"down_proj is int8 row asym: the value of its code 0 is a real number.*zeros: whole, or "
     "symmetric: true"),
    ("llama-odd", {"bits": 4, "group_size": 24}, r"is int4 g24, and its rows of \d+ end with a shorter group.*or row"),
    ("llama-odd", {"bits": 4, "group_size": 128}, r"is int4 g128, and its rows of \d+ end with a shorter group.*or row"),
    ("llama", {"bits": 4, "group_size": 32, "double_quant": True}, r"is int4 g32 dq: scales of 8 bits in blocks.*double_quant"),
    ("llama", {"include": ["embedding"]}, r"model\.embed_tokens is a quantized Embedding.*include: \[attention, mlp\]"),
    ("llama-tied", {"include": ["head"]}, r"model\.embed_tokens is a quantized Embedding.*include: \[attention, mlp\]"),
    ("llama", {"include": ["norm"]}, r"model\.layers\.0\.input_layernorm is a quantized LlamaRMSNorm"),
    ("gpt2", {}, r"gpt2 keeps attn\.c_attn, .* in Conv1D modules, which compressed-tensors does not quantize"),
    ("phi3", {"include": ["q"]}, r"layers\.0\.self_attn\.qkv_proj is one matrix of k_v, q, and k_v stays in float"),
    ("phi3", {"schemes": {"up": {"bits": 4}}}, r"gate_up_proj is one matrix in several schemes \(gate int8 row, up int4 row\)"),
])  # fmt: skip
def test_what_the_format_cannot_say_is_refused_by_name(make_model, tmp_path, architecture, recipe, message):
    write_artifact(make_model(architecture), Recipe.from_dict(recipe, Scheme()), tmp_path / "artifact")
    with pytest.raises(InputError, match=message) as refused:
        export(tmp_path / "artifact", tmp_path / "out", FORM)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def rewritten(folder, change):
    """The artifact's tensors, put through `change`: a function on a dict of them."""
    checkpoint = Checkpoint(folder)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    change(tensors)
    layout = {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_checkpoint(folder, layout, tensors.items())


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.update({f"{UP}.offsets": torch.zeros(3)}), rf"{UP}\.offsets float32 \[3\] .* LlamaForCausalLM"),
    (lambda t: t.update({UP: torch.zeros(128, 64)}), rf"{UP} float32 \[128, 64\] .* LlamaForCausalLM"),
    (lambda t: t.pop(f"{UP}.scales"), rf"{UP}\.scales is missing, expected float32 \[128, 1\]"),
    (lambda t: t.update({f"{UP}.scales": t[f"{UP}.scales"].byte()}), rf"{UP}\.scales is uint8 \[128, 1\], expected float32"),
    (lambda t: t.update({f"{UP}.codes": t[f"{UP}.codes"][1:]}), rf"{UP}\.codes is uint8 \[127, 64\], expected uint8 \[128, 64\]"),
], ids=["unknown", "twice", "missing", "dtype", "shape"])  # fmt: skip
def test_a_tensor_it_does_not_know_is_refused(make_model, tmp_path, change, message):
    write_artifact(make_model("llama"), Recipe(Scheme()), tmp_path / "artifact")
    rewritten(tmp_path / "artifact", change)
    with pytest.raises(InputError, match=message):
        export(tmp_path / "artifact", tmp_path / "out", FORM)
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_another_model_is_refused(make_model, tmp_path):
    write_artifact(make_model("llama"), Recipe(Scheme()), tmp_path / "artifact")
    path = tmp_path / "artifact" / "config.json"
    path.write_text(path.read_text().replace("model.layers.1.mlp.up_proj", "model.layers.5.mlp.up_proj"))
    with pytest.raises(InputError, match=r"quantizes model\.layers\.5\.mlp\.up_proj, which LlamaForCausalLM does not have"):
        export(tmp_path / "artifact", tmp_path / "out", FORM)


def test_folders_that_are_no_artifact_or_no_place_to_write(make_model, tmp_path):
    base = make_model("llama")
    with pytest.raises(InputError, match=r"quant_method is None, expected 'qtensor'; give the folder of a variant"):
        export(base, tmp_path / "out", FORM)
    write_artifact(base, Recipe(Scheme()), tmp_path / "artifact")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match=r"mine exists .*manifest.json.*; name a new folder"):
        export(tmp_path / "artifact", tmp_path / "mine", FORM)
    with pytest.raises(InputError, match="artifact itself; name another folder"):
        export(tmp_path / "artifact", tmp_path / "mine" / ".." / "artifact", FORM)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep" and (tmp_path / "artifact" / "config.json").is_file()


@pytest.mark.slow
def test_the_command_writes_or_says_in_one_line_why_not(make_model, tmp_path):
    def run(*words):
        return subprocess.run([sys.executable, "-m", "quant.export", *map(str, words)], cwd=ROOT, capture_output=True, text=True)

    write_artifact(make_model("llama"), Recipe(Scheme()), tmp_path / "artifact")
    done = run(tmp_path / "artifact", tmp_path / "out", "--format", FORM)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()
    done = run(tmp_path / "absent", tmp_path / "new", "--format", FORM)
    assert done.returncode == 1 and re.fullmatch(r"error: .*absent has no config.json.*\n", done.stderr)


def test_an_unknown_format_is_refused(tmp_path):
    for refuse in (lambda: export(tmp_path / "artifact", tmp_path / "new", "onnx"),
                   lambda: main([str(tmp_path / "artifact"), str(tmp_path / "new"), "--format", "onnx"])):
        with pytest.raises(InputError, match=r"'onnx'.*compressed-tensors"):
            refuse()
