"""Every folder of quant/methods keeps the contract of `Method`; bitsandbytes and llama.cpp refuse what they can't make."""

import json
import math
import re
import shutil
import struct
from importlib.util import find_spec

import pytest
import torch
from conftest import EMBEDDED_TOKENS, ROOT, RUNTIMES, build_variant, save_model

from quant.errors import InputError, Refused
from quant.methods import UNQUANTIZED, load, names
from quant.methods.llama_cpp.convert import convert
from quant.methods.llama_cpp.quantize import quantize
from quant.methods.llama_cpp.spec import Spec
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.pins import pinned
from quant.runners import RUNTIMES as KNOWN_RUNTIMES
from quant.runners import open_runner
from quant.runners.sizes import disk_bytes, held_bytes

METHODS = pytest.mark.parametrize("name", names())
VARIANTS = pytest.mark.parametrize("variant", RUNTIMES)
BITS = {"bf16": None, "int4": 4, "cal-int3": 3, "mix4": 4, "bnb-int8": 8,
        "bnb-nf4": 4, "bnb-nf4-dq": 4, "gguf-f16": None, "gguf-q8_0": 8, "gguf-q4_k_m": 4}


def planned(variant):
    """Method and resolved parameters of a row of conftest.RUNTIMES."""
    name, row = RUNTIMES[variant]
    return load(name), load(name).resolve({}, row)


def test_every_method_has_a_row_here():
    apart = {"peers"}  # need an environment of their own: tests/test_peers.py
    assert {method for method, _ in RUNTIMES.values()} | apart == set(names()) and set(BITS) == set(RUNTIMES)


@METHODS
def test_what_a_method_says_of_itself(name):
    method = load(name)
    assert method.name == name and method.label and method.look and method.runtime in KNOWN_RUNTIMES
    assert method.text("about.md.jinja").strip()
    assert (method.text("card.md.jinja") is None) == (name == UNQUANTIZED), "who opens a shared variant reads how"
    assert set(pinned(ROOT / "requirements.txt", method.libraries)) == set(method.libraries)
    assert all(find_spec(module) for module in method.imports)


def test_no_two_methods_look_alike():
    looks = [load(name).look for name in names()]
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(looks)


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=f"method is 'gptq'; expected one of {', '.join(names())}"):
        load("gptq")


@VARIANTS
def test_a_resolved_row_is_plain_and_complete(variant):
    method, values = planned(variant)
    assert json.loads(json.dumps(values)) == values and values == values | RUNTIMES[variant][1]
    assert method.resolve({}, values) == values, "nothing is missing, so nothing is added"
    assert method.nominal_bits(values) == BITS[variant]
    assert method.recipe(values) is None or isinstance(method.recipe(values), Recipe)
    with pytest.raises(InputError, match="typo"):
        method.resolve({}, {**values, "typo": 1})


@METHODS
def test_defaults_give_way_to_the_row(name):
    key, default, own = {"quant": ("bits", 3, 5), "float": ("dtype", "float32", "bfloat16"), "calibrated": ("bits", 3, 5),
                         "llama_cpp": ("type", "F16", "Q8_0"), "peers": ("package", "hqq", "torchao"),
                         "bitsandbytes": ("type", "int8", "fp4")}[name]  # fmt: skip
    resolve = load(name).resolve
    assert (resolve({key: default}, {})[key], resolve({key: default}, {key: own})[key]) == (default, own)


@VARIANTS
def test_a_built_variant_says_what_made_it_and_what_opens_it(runtimes, variant):
    method, _ = planned(variant)
    manifest = json.loads((runtimes[variant] / "manifest.json").read_text())
    assert (manifest["method"], manifest["runtime"]) == (method.name, method.runtime)
    files = {path.name for path in runtimes[variant].iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == files and (files or manifest["weights"] == "base")


@VARIANTS
def test_sizes_are_predicted(runtimes, variant):
    method, values = planned(variant)
    found = method.sizes(Checkpoint(runtimes["base"]).inventory, runtimes["base"], values)
    folder = runtimes["base" if variant == "bf16" else variant]
    headers = 64 * EMBEDDED_TOKENS if method.runtime == "llama_cpp" else 10_000  # a GGUF file holds the tokenizer as well
    least = -0.01 * found.file_bytes if variant == "mix4" else 0  # a budget need not be spent to the last bit
    assert least <= disk_bytes(folder) - found.file_bytes < headers + 0.01 * found.file_bytes
    held, mixed = sum(held_bytes(open_runner(runtimes[variant])).values()), variant == "gguf-q4_k_m"
    assert found.held_bytes == pytest.approx(held, rel=0.06 if mixed else 0.01), "half of v and down have the larger of two types"
    assert found.build_bytes >= 0 and (found.prepared_bytes > 0) == bool(method.prepare)


@pytest.mark.parametrize("variant", ["int4", "cal-int3", "mix4", "bnb-int8", "bnb-nf4", "gguf-q4_k_m"])
def test_the_same_variant_has_the_same_bytes(runtimes, tmp_path, variant):
    (tmp_path / "prepared").symlink_to(runtimes["converted"].parent)
    made = runtimes[variant]
    if RUNTIMES[variant][0] == "calibrated":  # with the number of threads of now, which other tests change: sums depend on it
        made = build_variant(runtimes["base"], *RUNTIMES[variant], tmp_path / "made")
    again = build_variant(runtimes["base"], *RUNTIMES[variant], tmp_path / "again")
    assert (again / "manifest.json").read_text() == (made / "manifest.json").read_text()


def test_a_file_of_llama_cpp_is_published_by_the_model_s_name():
    assert load("llama_cpp").published_name({"type": "Q4_0"}, "gpt2") == "gpt2-Q4_0.gguf"


@pytest.mark.slow
def test_a_llama_converts_and_computes_the_same(tmp_path):
    """With a byte-level BPE, as SmolLM's; llama.cpp's converter looks for SentencePiece first."""
    from transformers import LlamaConfig

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    save_model(LlamaConfig(vocab_size=EMBEDDED_TOKENS, bos_token_id=0, eos_token_id=0, **shape), tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "converted")
    text = torch.randint(0, EMBEDDED_TOKENS, (1, 40), generator=torch.Generator().manual_seed(6))
    ours, theirs = (open_runner(tmp_path / name).logits(text) for name in ("base", "converted"))
    assert (ours - theirs).norm() < 0.01 * ours.norm(), "float16 activations"


def test_an_architecture_llama_cpp_lacks_is_refused_before_any_work(make_model, tmp_path):
    with pytest.raises(Refused, match=r"llama\.cpp has no architecture for GPTNeoForCausalLM"):
        convert(make_model("gpt_neo"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_tokenizer_that_splits_unlike_gpt2_is_still_refused(runtimes, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(runtimes["base"], source)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="splits text unlike GPT-2's"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [
    b"", b"GGUF", b"GGML" + bytes(60), b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0) + bytes(20),
    b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
])  # fmt: skip
def test_a_file_that_is_no_gguf_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    for use in (lambda: open_runner(tmp_path), lambda: quantize(tmp_path / "model.gguf", Spec("F16"), tmp_path / "out")):
        (tmp_path / "manifest.json").write_text('{"runtime": "llama_cpp"}')
        with pytest.raises(InputError, match=rf"GGUF.* {len(content)} bytes"):
            use()


def test_an_unknown_gguf_type_is_refused_with_those_there_are(runtimes, tmp_path):
    with pytest.raises(InputError, match=r"type is 'Q4_X'; llama\.cpp has .*Q4_K_M"):
        quantize(runtimes["converted"] / "model.gguf", Spec("Q4_X"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "row", "message"), [
    ("bitsandbytes", {"type": "int4"}, "type is 'int4'; expected one of int8, fp4, nf4"),
    ("bitsandbytes", {"double_quant": True}, "needs a type"),
    ("bitsandbytes", {"type": "nf4", "double_quant": "yes"}, "double_quant is 'yes'; expected true or false"),
    ("bitsandbytes", {"type": "int8", "double_quant": True}, "double_quant is for fp4 and nf4"),
    ("llama_cpp", {}, "needs a type"),
    ("float", {"dtype": "float16"}, "dtype is 'float16'; expected one of float32, bfloat16"),
    ("quant", {"include": "q"}, "include is 'q'; expected a list"),
])  # fmt: skip
def test_a_wrong_row_is_refused(method, row, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load(method).resolve({}, row)


def test_mixed_types_of_llama_cpp_are_found_and_nothing_is_nan(runtimes):
    runner = open_runner(runtimes["gguf-q4_k_m"])
    assert {"q4_k", "q6_k"} <= set(held_bytes(runner))
    assert math.isfinite(float(runner.logits(torch.arange(30).view(1, -1)).sum()))
