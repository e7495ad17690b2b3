"""Artifacts in the checkpoint formats of GPTQ and AWQ hold the same weights, unpacked here code by code and by GPTQModel."""

import json
import subprocess

import pytest
import torch
import yaml
from conftest import build_variant
from test_export import weights_of
from test_push import MEASURED
from transformers import AutoModelForCausalLM

from quant.errors import InputError
from quant.export import export, main
from quant.files import write_json
from quant.methods.peers.environment import interpreter, missing
from quant.model.artifact import write_artifact
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.publish.push import publication
from quant.tensor.scheme import Scheme
from quant.variants import variant

WHOLE = {"symmetric": False, "zeros": "whole"}
GRIDS = {"narrow": {}, "full": {"levels": "full"}, "whole": WHOLE}
LOGITS = """
import json, sys, torch
from gptqmodel import BACKEND, GPTQModel
tokens = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[2:]:
    backend, kind = ("torch_awq", "AwqTorchQuantLinear") if "awq" in folder else ("torch", "TorchQuantLinear")
    model = GPTQModel.load(folder, backend=BACKEND(backend), device="cpu", dtype=torch.float16).model
    names = [name for name, module in model.named_modules() if type(module).__name__ == kind]
    with torch.inference_mode():
        print("found", json.dumps([names, model(tokens).logits.float().tolist()]))
"""


@pytest.fixture
def exported(make_model, tmp_path):
    """exported(form, recipe, architecture) -> the artifact's folder and the exported one; scales are float16."""

    def make(form, recipe, architecture="smollm", dtype=torch.float16):
        artifact, out = tmp_path / "artifact", tmp_path / "out"
        recipe = Recipe.from_dict({"scale_dtype": "float16", **recipe}, Scheme())
        write_artifact(make_model(architecture, dtype), recipe, artifact)
        export(artifact, out, form)
        return artifact, out

    return make


def bits_of(words, count, bits):
    """Codes of a list of int32 words, read bit by bit: code i takes bits i*b to (i+1)*b of them all."""
    stream = "".join(f"{word & 0xFFFFFFFF:032b}"[::-1] for word in words)
    return [int(stream[bits * i : bits * (i + 1)][::-1], 2) for i in range(count)]


def unpacked(stored, form, bits, first):
    """(code - zero) * scale in float32, [out, in]: the textbook reading of a layer's tensors."""
    scales = stored["scales"].float()
    groups, rows = scales.shape
    if form == "gptq":
        columns = len(stored["g_idx"])
        codes = torch.tensor([bits_of(column, columns, bits) for column in stored["qweight"].T.tolist()]).T
        zeros = torch.tensor([bits_of(row, rows, bits) for row in stored["qzeros"].tolist()]) + int(first)
        index = stored["g_idx"].long()
    else:
        columns = len(stored["qweight"])
        place = [8 * (row // 8) + {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}[row % 8] for row in range(rows)]
        codes, zeros = (torch.tensor([bits_of(row, rows, 4) for row in stored[name].tolist()])[:, place]
                        for name in ("qweight", "qzeros"))
        index = torch.arange(columns) // (columns // groups)
    return ((codes - zeros[index]) * scales[index]).T


CASES = [("gptq", bits, size, grid) for bits in (2, 3, 4, 8) for size in (32, "row") for grid in GRIDS]
CASES += [("awq", 4, size, grid) for size in (32, "row", "tensor") for grid in GRIDS]
PEER_CASES = [("gptq", bits, grid) for bits in (2, 3, 4, 8) for grid in ("full", "whole")]
PEER_CASES += [("awq", 4, "full"), ("awq", 4, "whole")]


@pytest.mark.parametrize(("form", "bits", "size", "grid"), CASES)
def test_the_weights_are_those_of_the_artifact_bit_for_bit(exported, form, bits, size, grid):
    artifact, out = exported(form, {"bits": bits, "group_size": size, **GRIDS[grid]})
    found = Checkpoint(out)
    config = found.config["quantization_config"]
    first = config.get("checkpoint_format") == "gptq"
    assert form == "awq" or first == (grid != "whole" and bits != 3)
    assert (config["quant_method"], config["bits"], config["group_size"]) == (form, bits, size if size == 32 else -1)
    weights = weights_of(artifact, torch.float32)
    assert {f"{name}.qweight" for name in weights} == {name for name in found.tensors if name.endswith(".qweight")}
    for name, weight in weights.items():
        stored = {key: found.read(f"{name}.{key}") for key in ("qweight", "qzeros", "scales", "g_idx")
                  if key != "g_idx" or form == "gptq"}
        assert torch.equal(unpacked(stored, form, bits, first), weight), name


@pytest.mark.parametrize("form", ["gptq", "awq"])
def test_fused_matrices_and_tensors_in_float(exported, form):
    artifact, out = exported(form, {"bits": 4, "group_size": 32, **WHOLE}, "phi3")
    before, after = Checkpoint(artifact), Checkpoint(out)
    kept = [name for name in after.tensors if name.rpartition(".")[2] not in ("qweight", "qzeros", "scales", "g_idx")]
    assert kept and all(torch.equal(before.read(name), after.read(name)) for name in kept)
    found = {key: after.read(f"model.layers.0.self_attn.qkv_proj.{key}") for key in ("qweight", "qzeros", "scales")}
    if form == "gptq":
        found["g_idx"] = after.read("model.layers.0.self_attn.qkv_proj.g_idx")
    assert torch.equal(unpacked(found, form, 4, False), weights_of(artifact, torch.float32)["model.layers.0.self_attn.qkv_proj"])


@pytest.mark.parametrize(("form", "recipe", "note"), [
    ("compressed-tensors", {"bits": 4, **WHOLE}, "transformers opens it with quantization_config=CompressedTensorsConfig("),
    ("compressed-tensors", {"bits": 4}, None), ("gptq", {"bits": 4}, "serve it in float16"), ("awq", {"bits": 4}, "in float16"),
])  # fmt: skip
def test_the_command_says_how_to_open_what_needs_more_than_its_name(exported, tmp_path, capsys, form, recipe, note):
    exported(form, recipe)
    capsys.readouterr()
    main([str(tmp_path / "artifact"), str(tmp_path / "out"), "--format", form])
    told = capsys.readouterr().out
    assert note in told and told.count("\n") == 1 if note else told == ""


def test_awq_names_what_stays_in_float(exported):
    _, out = exported("awq", {"bits": 4, "exclude": ["o"]}, "llama")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == [*(f"model.layers.{i}.self_attn.o_proj" for i in range(2)), "lm_head"]


@pytest.mark.slow
def test_gptqmodel_opens_them_with_the_same_logits(make_model, ids, tmp_path):
    """Its CPU kernels compute in float16, so logits differ by roundings of 11 significant bits."""
    reason = missing("gptqmodel")
    if reason:
        pytest.skip(reason)
    folders = []
    for form, bits, grid in PEER_CASES:
        artifact, out = tmp_path / f"{bits}-{grid}", tmp_path / f"{form}-{bits}-{grid}"
        recipe = {"bits": bits, "group_size": 32, "scale_dtype": "float16", **GRIDS[grid]}
        if not artifact.is_dir():
            write_artifact(make_model("smollm", torch.float16), Recipe.from_dict(recipe, Scheme()), artifact)
        export(artifact, out, form)
        folders.append((artifact, out))
    tokens = json.dumps(ids[:2].tolist())
    done = subprocess.run([interpreter(), "-c", LOGITS, tokens, *(out for _, out in folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line.removeprefix("found ")) for line in done.stdout.splitlines() if line.startswith("found ")]
    for (artifact, out), (names, logits) in zip(folders, answers, strict=True):
        assert set(names) == set(weights_of(artifact, torch.float32)), "its quantized layers are ours"
        with torch.inference_mode():
            expected = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)(ids[:2]).logits
        assert (torch.tensor(logits) - expected).abs().max() < 0.01 * expected.abs().max(), out.name


@pytest.mark.parametrize(("form", "architecture", "recipe", "message"), [
    ("gptq", "smollm", {"bits": 5}, r"int5 row fp16; gptq is served at 2, 3, 4 and 8 bits only"),
    ("awq", "smollm", {"bits": 8}, r"int8 row fp16; awq is served at 4 bits only: quantize it again at bits: 4"),
    ("gptq", "smollm", {"bits": 4, "codebook": "nf4"}, r"nf4 row fp16, a table of values; gptq has only equal steps"),
    ("gptq", "smollm", {"bits": 4, "symmetric": False}, r"its code 0 is a real number.*zeros: whole, or symmetric: true"),
    ("awq", "smollm", {"bits": 4, "scale_dtype": "float32"}, r"with scales of float32; awq has .*scale_dtype: float16"),
    ("gptq", "smollm", {"bits": 4, "scale_dtype": "int8"}, r"with scales of int8; gptq has .*scale_dtype: float16"),
    ("gptq", "smollm", {"bits": 4, "group_size": 8}, r"int4 g8 fp16; gptq is loaded with groups of 16, 32, 64, 128"),
    ("gptq", "llama-odd", {"bits": 4, "group_size": 32}, r"end with a shorter group; gptq has whole groups only"),
    ("gptq", "llama-odd", {"bits": 2}, r"has \d+ (in|out)puts; gptq packs 16 of them together: leave it in float with exclude"),
    ("gptq", "llama", {"bits": 4, "exclude": ["o"]}, r"self_attn\.o_proj stays in float; gptq quantizes all linear layers"),
    ("awq", "llama", {"bits": 4, "schemes": {"mlp": {"group_size": 32}}}, r"row fp16 and .* int4 g32 fp16; awq has one"),
    ("gptq", "llama", {"bits": 4, "include": ["attention", "mlp", "head"]}, r"lm_head is the model's head; gptq quantizes"),
    ("awq", "llama", {"bits": 4, "include": ["embedding"]}, r"embed_tokens is a quantized Embedding.*include: \[attention"),
    ("gptq", "gpt2", {"bits": 4}, r"gpt2 keeps attn\.c_attn, .* in Conv1D modules, which gptq does not quantize"),
    ("awq", "gpt2", {"bits": 4}, r"gpt2 keeps attn\.c_attn, .* in Conv1D modules, which awq does not quantize"),
])  # fmt: skip
def test_what_the_format_cannot_say_is_refused_by_name(exported, tmp_path, form, architecture, recipe, message):
    with pytest.raises(InputError, match=message) as refused:
        exported(form, recipe, architecture)
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


ROW = {"bits": 4, "group_size": 32, "scale_dtype": "float16"}
RUN = {
    "gptq": ("vllm serve me/tiny --dtype float16", "where optimum and gptqmodel are", 'GPTQModel.load("me/tiny"'),
    "awq": ("vllm serve me/tiny --dtype float16", "where gptqmodel is installed", 'GPTQModel.load("me/tiny"'),
    "compressed-tensors": ("vllm serve me/tiny\n", "package compressed-tensors", "CompressedTensorsConfig(dequantize=True)"),
    "gguf": ("llama-cli --hf-repo me/tiny --hf-file out.gguf", "llama-cpp-python", "Llama.from_pretrained"),
}


@pytest.fixture
def publish(make_model, tmp_path):
    """publish(exported) -> what would be sent of a variant, measured with made-up numbers, and its export; `variant` beside."""
    base, folder, text, reports = (tmp_path / name for name in ("base", "variant", "text", "reports"))
    build_variant(make_model("smollm", torch.float16), "quant", ROW, folder)
    write_json(base / "manifest.json", {"source": "tiny/model", "revision": "a" * 40, "architecture": "Llama", "dtype": "float16",
                                        "license": {"id": "mit", "name": None, "link": None}})
    write_json(text / "corpus.json", {"sentences": 20, "source": "grammar"})
    protocol = {"name": "joined", "version": 1, "context": 64, "stride": 64, "tokens": 1234}
    write_json(reports / "quality" / "int4.json", {"protocol": protocol})
    names, values = ",".join(MEASURED), ",".join(map(str, MEASURED.values()))
    (reports / "variants.csv").write_text(f"variant,{names}\nbase,{values}\nint4,{values}\n")
    row = variant("int4", {"variants": {"int4": {"method": "quant", **ROW}}})
    return lambda exported: publication(row, folder, base, text, "me/tiny", reports, exported=exported)


@pytest.mark.parametrize("form", RUN)
def test_an_export_is_published_with_how_to_run_it(publish, tmp_path, form):
    out = tmp_path / ("out.gguf" if form == "gguf" else "out")
    if form == "gguf":
        out.write_bytes(b"GGUF")
    else:
        export(tmp_path / "variant", out, form)
    sent = publish(out)
    files = {out} if form == "gguf" else set(out.iterdir()) - {out / "manifest.json"}
    assert dict(sent.files) == {path.name: path for path in files}
    front = yaml.safe_load(sent.card.split("---")[1])
    assert front["tags"] == ["quantized", form] and front["library_name"] == ("gguf" if form == "gguf" else "transformers")
    for words in (*RUN[form], f"| format | {form}: the same codes", f"measured before the export to {form}.", "\n\n## Licence"):
        assert words in sent.card, words
    assert "quant.transformers_format" not in sent.card, "no code of this project is needed"
    own = publish(None).card
    assert "export" not in own and "quant.transformers_format" in own


def test_an_export_of_another_variant_is_not_published(publish, tmp_path):
    export(tmp_path / "variant", tmp_path / "out", "gptq")
    manifest = tmp_path / "variant" / "manifest.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"changed": True})
    with pytest.raises(InputError, match=r"out is not an export of .*variant as it is now; export it again"):
        publish(tmp_path / "out")
    with pytest.raises(InputError, match=r"absent is not an export; make one with python -m quant\.export"):
        publish(tmp_path / "absent")
