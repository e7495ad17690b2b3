"""quant.check predicts from headers alone which variants can be made and how large they are."""

import json
import resource
import shutil
import subprocess
import sys
from contextlib import chdir

import pytest
import torch
import yaml
from conftest import EMBEDDED, EMBEDDED_TOKENS, ROOT, RUNTIMES, build_variant, save_model
from test_hub import CARD

from quant.check import describe, describe_text, main
from quant.errors import InputError
from quant.hub.fetch import fetch_model
from quant.hub.source import ModelSource
from quant.memory import available_memory
from quant.methods.llama_cpp import sizes as gguf_sizes
from quant.preflight.facts import facts_of
from quant.preflight.forecast import forecasts
from quant.progress import size
from quant.report.results import read_metrics
from quant.text.source import TextSource

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


def predicted(folder, **rows):
    """Forecast by name, of params.yaml's variants or of these rows."""
    facts = facts_of(ModelSource(str(folder)))
    params = PARAMS | {"variants": rows} if rows else PARAMS
    return {one.name: one for one in forecasts(facts.inventory, facts.folder, params)}


def gguf(*types):
    return {kind: {"method": "llama_cpp", "type": kind} for kind in types}


def test_sizes_are_those_that_were_measured():
    """Of every variant of the committed run, on disk and in memory: within a tenth, as llama.cpp's mixed types are estimated."""
    found = predicted(EMBEDDED)
    measured = read_metrics(ROOT / "reports" / "variants.csv")
    shared = set(found) & set(measured)
    assert {"base", "bf16", "whole", "nf4", "bnb-nf4", "gguf-q4_k_m"} <= shared
    for name in shared:
        assert found[name].sizes.file_bytes / 2**20 == pytest.approx(measured[name]["disk_mib"], rel=0.1), name
        assert found[name].sizes.held_bytes / 2**20 == pytest.approx(measured[name]["weights_mib"], rel=0.1), name


def test_sizes_are_those_of_what_is_made(runtimes):
    """Of every method, against the files and the opened model: memory to the byte, disk but for headers and a vocabulary."""
    from quant.runners import open_runner

    found = predicted(runtimes["base"], **{name: {"method": method, **row} for name, (method, row) in RUNTIMES.items()})
    assert set(found) - {"base"} == set(RUNTIMES)
    words = 40 * EMBEDDED_TOKENS  # bytes of a vocabulary in a GGUF file
    for name in set(RUNTIMES) - {"bf16"}:
        files = sum(path.stat().st_size for path in runtimes[name].iterdir() if path.suffix in (".safetensors", ".gguf"))
        held = sum(held.bytes for held in open_runner(runtimes[name]).tensors())
        mixed = name == "gguf-q4_k_m"  # llama.cpp gives some blocks more bits: predicted is the mean over many, here is one
        assert found[name].sizes.file_bytes == pytest.approx(files, **({"rel": 0.15} if mixed else {"abs": words})), name
        budget = name == "mix4"  # which is not spent to the last bit
        assert found[name].sizes.held_bytes == pytest.approx(held, rel=0.15 if mixed else 0.01 if budget else 0), name


@pytest.mark.slow
def test_a_model_on_the_hub_is_checked_without_its_weights(hub, make_model, tmp_path):
    """The command itself: under 10 s of work, a sharded model of 24 MB at a commit, of which it reads the headers."""
    from safetensors.torch import load, save

    source = make_model("llama", torch.bfloat16)
    files = {path.name: path.read_bytes() for path in source.iterdir()} | {"README.md": CARD}
    small = files.pop("model.safetensors")
    large = save({"model.extra.weight": torch.zeros(12 * 2**20 // 64, 64, dtype=torch.bfloat16)})
    names = dict.fromkeys(load(small), "a.safetensors") | {"model.extra.weight": "b.safetensors"}
    index = json.dumps({"weight_map": names}).encode()
    shards = {"model.safetensors.index.json": index, "a.safetensors": small, "b.safetensors": large}
    commit = hub.add("tiny/model", {**files, **shards})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "quant.check", f"tiny/model@{commit}", "grammar"], cwd=ROOT, text=True,
                          env=hub.environment(tmp_path / "home"), capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    asked = [one.header("Range") for one in hub.asked if one.path.startswith("/cdn")]
    assert len(asked) == 2 and set(asked) == {"bytes=0-100000"}
    parameters = sum(tensor.numel() for part in (small, large) for tensor in load(part).values())
    for words in (f"tiny/model at {commit}", f"llama (LlamaForCausalLM); {parameters:,} parameters; the head has a weight of its "
                  "own", "bfloat16", "in 2 files", "licence       llama3; to share a variant", "grammar: generated here",
                  f"no: the tokenizer has {EMBEDDED_TOKENS:,} tokens, the model's vocabulary 96", "memory: ",
                  f"disk: {size(sum(map(len, (files | shards).values())))} to fetch"):
        assert words in done.stdout, (words, done.stdout)


def test_what_llama_cpp_lacks_is_told(make_model, tmp_path):
    found = predicted(make_model("gpt_neo"))
    assert found["gguf-f16"].obstacle == "llama.cpp has no architecture for GPTNeoForCausalLM" and found["nf4"].obstacle is None
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((EMBEDDED / name).read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["use_regex"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "does not know this BPE tokenizer" in predicted(tmp_path)["gguf-q8_0"].obstacle


def test_every_type_that_llama_cpp_makes_can_be_made():
    """In any case, its size known or not; no to those that need an importance matrix or do not exist."""
    made = ("Q4_K_M", "q4_k_m", "IQ4_XS", "iq4_nl", "TQ1_0", "TQ2_0", "MXFP4_MOE", "IQ3_S", "IQ3_XS", "BF16")
    refused = ("IQ1_S", "IQ2_XXS", "Q2_K_S", "NVFP4", "Q9_Z", "F32")
    found = predicted(EMBEDDED, **gguf(*made, *refused))
    assert {name for name, one in found.items() if one.obstacle} == set(refused)
    assert found["q4_k_m"].sizes == found["Q4_K_M"].sizes and found["Q4_K_M"].sizes.file_bytes > 0
    assert found["TQ1_0"].sizes.file_bytes is None and found["TQ1_0"].sizes.note == "size not known"
    assert all("importance matrix" in found[name].obstacle for name in ("IQ1_S", "IQ2_XXS", "Q2_K_S"))
    assert found["IQ3_XS"].sizes.note == "size not known; some models need imatrix: true"
    assert "llama.cpp type is 'Q9_Z'; llama.cpp has BF16, F16" in found["Q9_Z"].obstacle
    table = describe(facts_of(ModelSource(str(EMBEDDED))), list(found.values()), None, memory=10**10).splitlines()
    (row,) = [line.split(maxsplit=4) for line in table if line.startswith("TQ1_0")]
    assert row == ["TQ1_0", "llama.cpp", "-", "-", "yes; size not known"]


def test_types_of_unknown_size_are_made_and_others_are_not(runtimes, tmp_path):
    """By llama.cpp itself: what the check says of it is true."""
    from quant.methods.llama_cpp.quantize import quantize
    from quant.methods.llama_cpp.spec import Spec

    source = runtimes["converted"] / "model.gguf"
    for kind in ("iq4_xs", "TQ1_0", "IQ3_XS"):
        quantize(source, Spec(kind), tmp_path / kind)
        assert json.loads((tmp_path / kind / "manifest.json").read_text())["type"] == kind.upper()
    for kind in ("IQ1_S", "Q2_K_S", "NVFP4"):
        with pytest.raises(InputError, match=f"could not quantize .* to {kind}"):
            quantize(source, Spec(kind), tmp_path / kind)


@pytest.mark.slow
def test_rows_that_k_quants_do_not_fit_are_told_as_llama_cpp_does_it(tmp_path):
    from transformers import GPT2Config

    from quant.runners import open_runner

    shape = {"vocab_size": EMBEDDED_TOKENS, "n_positions": 64, "n_ctx": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    base = save_model(GPT2Config(bos_token_id=0, eos_token_id=0, **shape), tmp_path / "base")
    note = predicted(base, **gguf("Q4_K_M"))["Q4_K_M"].sizes.note
    assert note == "6 of 8 matrices have rows of 64, which its blocks don't divide: Q5_0 instead"
    out = build_variant(base, "llama_cpp", {"type": "Q4_K_M"}, tmp_path / "out")
    built = {held.dtype for held in open_runner(out).tensors() if "ffn_up.weight" in held.name}
    assert built == {"q5_0"} and predicted(EMBEDDED)["gguf-q4_k_m"].sizes.note is None


@pytest.mark.parametrize(("name", "content", "message"), [
    ("tokenizer.json", None, "has no tokenizer; expected tokenizer.json"),
    ("model.safetensors", None, "has pickle weights only \\(pytorch_model.bin\\)"),
    ("model.safetensors", b"\0" * 7, "is not a complete safetensors file: 7 bytes"),
    ("model.safetensors", b"\x02" + 7 * b"\0" + b"{}", "holds no tensor"),
    ("model.safetensors", "float8", "holds tensors of dtype 'F8_E4M3'; expected one of F64, .* in 16 or 32 bits"),
    ("config.json", b'{"model_type": "mamba"}', "architecture 'mamba' has no table of roles; known: gemma"),
    ("config.json", b'{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "is quantized already .{2}gptq"),
])  # fmt: skip
def test_a_folder_that_no_stage_can_start_from_is_refused_as_the_stage_does(make_model, tmp_path, name, content, message):
    from safetensors.torch import save

    folder = tmp_path / "model"
    shutil.copytree(make_model("llama"), folder)
    (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    if content is not None:
        eight = save({"model.norm.weight": torch.ones(4).to(torch.float8_e4m3fn)})
        (folder / name).write_bytes(eight if content == "float8" else content)
    with pytest.raises(InputError, match=message):
        facts_of(ModelSource(str(folder)))
    with pytest.raises(InputError, match=message):
        fetch_model(ModelSource(str(folder)), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_what_keeps_llama_cpp_from_a_model_is_told_of_files_that_are_not_right(make_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(make_model("llama"), folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json can't be read: Model missing" in predicted(folder)["gguf-f16"].obstacle
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "names no architectures" in predicted(folder)["gguf-f16"].obstacle


@pytest.mark.slow
def test_a_header_on_the_hub_that_is_none_is_one_line(hub, hub_client, make_model, tmp_path):
    """A header longer than any, one that describes more than the file has, one of no tensor, one of a dtype that is not known."""
    from safetensors.torch import save

    files = {path.name: path.read_bytes() for path in make_model("llama").iterdir()}
    weights = files["model.safetensors"]
    expected = [
        ("endless", (1 << 40).to_bytes(8, "little") + weights[8:], "has a safetensors header that can't be read"),
        ("cut", weights[:-100_000], ": truncated"),
        ("bare", b"\x02" + 7 * b"\0" + b"{}", "holds no tensor"),
        ("float8", save({"a": torch.ones(4).to(torch.float8_e4m3fn)}), "holds tensors of dtype F8_E4M3"),
    ]
    for name, content, _ in expected:
        hub.add(f"tiny/{name}", {**files, "model.safetensors": content})
    calls = [{"call": "parameters", "with": {"source": f"tiny/{name}"}} for name, *_ in expected]
    answers, _ = hub_client.call(hub.environment(tmp_path / "home"), *calls)
    for (name, _, message), answer in zip(expected, answers, strict=True):
        assert f"tiny/{name}" in answer["error"] and message in answer["error"] and "\n" not in answer["error"]


def test_a_wrong_row_is_its_own_obstacle(make_model):
    rows = {"odd": {"method": "quant", "blocks": [7]}, "bnb": {"method": "bitsandbytes", "type": "int4"},
            "right": {"method": "quant"}, "none": {"method": "nope"}, "number": 5, "bare": {"bits": 4}}
    found = predicted(make_model("gpt2"), **rows)
    assert "blocks names 7" in found["odd"].obstacle and found["right"].obstacle is None
    assert "bitsandbytes type is 'int4'; expected one of int8, fp4, nf4" in found["bnb"].obstacle
    assert "method is 'nope'; expected one of bitsandbytes" in found["none"].obstacle
    assert "is 5; expected a row with a method" in found["number"].obstacle
    assert "is {'bits': 4}; expected a row with a method" in found["bare"].obstacle


@pytest.mark.parametrize(("file_type", "roles", "shape", "is_output", "types"), [
    ("Q4_K_M", ("q",), (512, 512), False, ["Q4_K"]),
    ("Q4_K_M", ("v",), (512, 512), False, ["Q4_K", "Q6_K"]),
    ("Q4_K_M", ("q",), (576, 576), False, ["Q5_0"]),
    ("Q2_K", ("q", "k", "v"), (512, 512), False, ["Q3_K"]),
    ("Q2_K", ("up",), (512, 512), False, ["Q2_K"]),
    ("Q3_K_M", ("o",), (512, 512), False, ["Q4_K"]),
    ("Q6_K", ("q",), (100, 100), False, ["F16"]),
    ("Q4_0", ("embedding",), (2048, 256), True, ["Q6_K"]),
    ("Q8_0", ("embedding",), (2048, 256), True, ["Q8_0"]),
    ("Q4_0", ("norm",), (256,), False, ["F32"]),
])  # fmt: skip
def test_llama_cpp_s_types_by_shape(file_type, roles, shape, is_output, types):
    assert gguf_sizes.types_of(file_type, roles, shape, is_output) == types


def test_a_stage_that_memory_is_too_small_for_is_told(make_model):
    facts = facts_of(ModelSource(str(make_model("gpt2"))))
    found = forecasts(facts.inventory, facts.folder, PARAMS)
    (line,) = [line for line in describe(facts, found, None, memory=100_000).splitlines() if line.startswith("  evaluate")]
    assert "can't run here" in line
    assert available_memory() > 10**8 and "can't run here" not in describe(facts, found, None, available_memory())


def test_a_text_is_described(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert ": 2 lines; fewer than 3,000" in describe_text(TextSource(str(tmp_path / "a.txt")))
    assert "LDC material" in describe_text(TextSource("ptb"))


@pytest.mark.parametrize(("words", "message"), [
    (["gpt2"], "model 'gpt2' is neither a folder here nor a Hub id .*did you mean openai-community/gpt2"),
    (["a", "b", "c"], "unrecognized arguments: c; python -m quant.check --help"),
    (["models/embedded", "no/such/text"], "corpus 'no/such/text' is not a file or folder here"),
])  # fmt: skip
def test_what_can_not_be_checked_is_one_line(words, message):
    with chdir(ROOT), pytest.raises(InputError, match=message):
        main(words)


def test_a_gpu_that_is_not_there_is_told_before_a_model_is_looked_at(tmp_path, monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "device": "cuda", "model": {"source": "no/such"}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ctypes.CDLL", absent)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="device is cuda, but there is no CUDA GPU here; set device to auto or cpu"):
        main([])
