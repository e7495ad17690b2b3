"""Rows in classes: each row stands for what its own scheme makes of it, wherever the matrix is used."""

import copy
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import VOCABULARY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_artifact import damaged

import quant.transformers_format  # noqa: F401  registers the format
from quant.errors import InputError
from quant.export import export
from quant.files import sha256_of
from quant.kernels import matmul_of
from quant.methods.quant import sizes_of
from quant.model.artifact import artifact_layout, write_selected
from quant.model.checkpoint import Checkpoint
from quant.model.needs import memory_to_quantize
from quant.model.recipe import Recipe
from quant.model.safetensors_file import read_header
from quant.model.selection import select, with_classes
from quant.nn.classes import ClassedWeight
from quant.runners import open_runner
from quant.runners.sizes import size_breakdown
from quant.select import rows_of_table
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme

SCHEMES = [Scheme(8), Scheme(2, 16, symmetric=False), None, Scheme(4, 32, codebook="nf4", double_quant=True)]
EMBEDDINGS = {"gpt2": "transformer.wte", "llama": "model.embed_tokens", "gemma3_text": "model.embed_tokens"}
WIDTH = 64


def drawn(rows=VOCABULARY, count=4):
    return torch.randint(0, count, (rows,), generator=torch.Generator().manual_seed(3))


def chosen(folder, modules, schemes=SCHEMES, include=("*",)):
    """The weights of a recipe, of which `modules` have classes of rows."""
    weights = select(Checkpoint(folder).inventory, Recipe(Scheme(4, 32), include=include, exclude=("norm",)))
    divided = [with_classes(selected, drawn(selected.weight.shape[0], len(schemes)), schemes)
               if selected.weight.module in modules else selected for selected in weights]
    assert sum(selected.classes is not None for selected in divided) == len(modules)
    return divided


def opened(folder, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def decoded(tensor):
    """What the codes stand for as the kernel of the device computes it, which may round once more than `dequantize`."""
    found = matmul_of(tensor).gather(torch.arange(tensor.shape[0]))
    assert torch.allclose(found, dequantize(tensor), rtol=1e-5, atol=1e-6)
    return found


def values_of(selected, value):
    """What the codes of a weight [out, in] stand for, row by row."""
    value = value.clone()
    for part in selected.parts:
        if part.scheme:
            rows = selected.rows_of(part)
            value[rows] = decoded(quantize(value[rows], part.scheme))
    return value


def float_model(folder, weights):
    """The float model in which each weight is replaced by what its codes stand for."""
    model = opened(folder)
    for selected in weights:
        parameter = model.get_parameter(selected.weight.name).data
        parameter = parameter.T if selected.weight.transposed else parameter
        parameter.copy_(values_of(selected, parameter))
    return model


def by_steps(model, ids):
    """Logits of a prompt and then of every token by itself: ids [1, length] -> [length, vocabulary]."""
    half, cache, logits = ids.shape[1] // 2, None, []
    for piece in (ids[:, :half], *ids[:, half:].split(1, dim=1)):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, [*logits, out.logits[0]]
    return torch.cat(logits)


CASES = [
    ("gpt2", ("transformer.wte",)), ("gemma3_text", ("model.embed_tokens",)), ("llama", ("model.embed_tokens",)),
    ("llama", ("model.embed_tokens", "lm_head")), ("llama", ("lm_head", "model.layers.0.mlp.up_proj")),
    ("gpt2", ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj", "transformer.wpe")),
    ("opt", ("model.decoder.embed_tokens",)),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "modules"), CASES)
@torch.inference_mode()
def test_logits_are_those_of_a_float_model_with_the_rows_replaced(make_model, tmp_path, ids, architecture, modules):
    folder = make_model(architecture)
    weights = chosen(folder, modules)
    write_selected(Checkpoint(folder), weights, tmp_path / "out")
    expected, found = float_model(folder, weights), opened(tmp_path / "out")
    for tokens in (ids, ids[:1, :3], ids[:1, :1]):  # many rows of activations, a few, one
        assert torch.allclose(found(tokens).logits, expected(tokens).logits, atol=2e-5)
    assert torch.allclose(by_steps(found, ids[:1]), by_steps(expected, ids[:1]), atol=2e-5)
    assert found.generate(ids[:1, :4], min_new_tokens=3, max_new_tokens=3, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", EMBEDDINGS)
def test_gathered_rows_are_exactly_the_dequantized_ones(make_model, tmp_path, architecture, dtype):
    folder, name = make_model(architecture), EMBEDDINGS[architecture]
    weights = chosen(folder, (name,))
    write_selected(Checkpoint(folder), weights, tmp_path / "out")
    (selected,) = [selected for selected in weights if selected.classes]
    expected = values_of(selected, Checkpoint(folder).read(selected.weight.tensor)).to(dtype)
    weight = opened(tmp_path / "out", dtype).get_submodule(name).weight
    for rows in (torch.arange(VOCABULARY), torch.tensor([[5, 5], [95, 0]]), torch.tensor(7), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(weight.gather(rows), expected[rows]) and weight.gather(rows).dtype == dtype == weight.dtype
    for wrong in (-1, VOCABULARY):
        with pytest.raises(IndexError):
            weight.gather(torch.tensor([0, wrong]))


def held_weight(matrix, classes, schemes):
    """A ClassedWeight of this matrix, filled without files; and what its codes stand for."""
    numbers, counts = classes.unique(return_counts=True)
    weight, values = ClassedWeight(counts.tolist(), matrix.shape[1], [schemes[n] for n in numbers.tolist()]), matrix.clone()
    state = {"classes": torch.searchsorted(numbers, classes).to(torch.uint8)}
    for place, number in enumerate(numbers.tolist()):
        rows = classes == number
        if schemes[number] is None:
            state[f"class{place}"] = matrix[rows]
            continue
        stored = quantize(matrix[rows], schemes[number])
        values[rows] = decoded(stored)
        state |= {f"class{place}.{key}": tensor for key, tensor in stored.tensors().items()}
    weight.load_state_dict(state)
    return weight, values


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=90), st.sampled_from([1, 2, 5, 16, 17, 40]), st.booleans(),
       st.integers(0, 9))
def test_any_classes_multiply_and_gather_like_the_dequantized_matrix(classes, count, has_bias, seed):
    random = torch.Generator().manual_seed(seed)
    matrix, x = torch.randn(len(classes), WIDTH, generator=random), torch.randn(1, count, WIDTH, generator=random)
    weight, values = held_weight(matrix, torch.tensor(classes), SCHEMES)
    bias = torch.randn(len(classes), generator=random) if has_bias else None
    found = weight.multiply(x, bias)
    assert found.shape == (1, count, len(classes))
    assert torch.allclose(found, torch.nn.functional.linear(x, values, bias), atol=1e-4)
    rows = torch.randint(0, len(classes), (2, 7), generator=random)
    assert torch.equal(weight.gather(rows), values[rows])


def test_gradients_pass_through_to_the_activations():
    weight, values = held_weight(torch.randn(40, WIDTH), drawn(40), SCHEMES)
    x = torch.randn(3, WIDTH, requires_grad=True)
    weight.multiply(x, None).square().sum().backward()
    expected = 2 * (x @ values.T) @ values
    assert torch.allclose(x.grad, expected, rtol=1e-4, atol=1e-3)


def test_moved_copied_and_loaded_anew_it_forgets_where_the_rows_were():
    first, values = held_weight(torch.randn(40, WIDTH), drawn(40), SCHEMES)
    second, other = held_weight(torch.randn(40, WIDTH), drawn(40).flip(0), SCHEMES)
    rows = torch.arange(40)
    twin, before = copy.deepcopy(first), first.version
    assert torch.equal(first.gather(rows), values) and first.counts == second.counts
    first.load_state_dict(second.state_dict())
    assert torch.equal(first.gather(rows), other) and first.version > before
    assert torch.equal(twin.gather(rows), values)
    assert torch.equal(twin.multiply(values, None), copy.deepcopy(twin).multiply(values, None))
    assert first.to("meta").device.type == "meta" and all(rows.is_meta for rows in first.rows())


def test_saved_again_it_is_the_same_model(make_model, tmp_path, ids):
    write_selected(Checkpoint(make_model("gpt2")), chosen(make_model("gpt2"), ("transformer.wte",)), tmp_path / "out")
    model = opened(tmp_path / "out")
    model.save_pretrained(tmp_path / "again")
    again = opened(tmp_path / "again")
    assert torch.equal(model(ids).logits, again(ids).logits) and again.lm_head.weight is again.transformer.wte.weight
    names = [read_header(tmp_path / name / "model.safetensors") for name in ("out", "again")]
    assert {k: (v.dtype, v.shape) for k, v in names[0].items()} == {k: (v.dtype, v.shape) for k, v in names[1].items()}


def test_what_is_stored(make_model, tmp_path):
    """The format, tensor by tensor; and equal bytes for equal input."""
    folder = make_model("gpt2", torch.float16)
    for name in ("one", "two"):
        write_selected(Checkpoint(folder), chosen(folder, ("transformer.wte",), include=("embedding",)), tmp_path / name,
                       {"scheme": "nf4 to int8"})
        assert json.loads((tmp_path / name / "manifest.json").read_text())["scheme"] == "nf4 to int8"
    counts = torch.bincount(drawn()).tolist()
    wte = {name.removeprefix("transformer.wte.weight."): (info.dtype, info.shape)
           for name, info in read_header(tmp_path / "one" / "model.safetensors").items() if name.startswith("transformer.wte")}
    assert wte.pop("classes") == (torch.uint8, (VOCABULARY,)) and wte.pop("class2") == (torch.float16, (counts[2], WIDTH))
    assert wte.pop("class0.codes") == (torch.uint8, (counts[0], WIDTH)) and wte.pop("class0.scales")[1] == (counts[0], 1)
    assert {key for key in wte if key.startswith("class1")} == {"class1.codes", "class1.scales", "class1.zeros"}
    assert wte["class3.codes"] == (torch.uint8, (counts[3], WIDTH // 2)) and "class3.scale_codes" in wte
    config = json.loads((tmp_path / "one" / "config.json").read_text())["quantization_config"]
    assert config["modules"]["transformer.wte"] == {
        f"class{i}": {"scheme": place, "rows": counts[i]} for i, place in enumerate((1, 2, None, 3))}
    stored = Checkpoint(tmp_path / "one")
    assert torch.equal(stored.read("transformer.wte.weight.classes"), drawn().to(torch.uint8))
    original = Checkpoint(folder).read("transformer.wte.weight")
    assert torch.equal(stored.read("transformer.wte.weight.class2"), original[drawn() == 2])
    for path in (tmp_path / "one").iterdir():
        assert sha256_of(path) == sha256_of(tmp_path / "two" / path.name)


def test_many_classes_keep_their_order(make_model, tmp_path):
    """Twelve: as JSON's keys, class10 and class11 come before class2."""
    folder, schemes = make_model("gpt2"), [Scheme(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (16, "row")]
    weights = chosen(folder, ("transformer.wte",), schemes)
    write_selected(Checkpoint(folder), weights, tmp_path / "out")
    (selected,) = [selected for selected in weights if selected.classes]
    expected = values_of(selected, Checkpoint(folder).read(selected.weight.tensor))
    assert torch.equal(opened(tmp_path / "out").transformer.wte.weight.gather(torch.arange(VOCABULARY)), expected)


def test_sizes_are_forecast_tabled_and_counted_as_they_are_written(make_model, tmp_path):
    folder = make_model("gpt2", torch.float16)
    inventory, weights = Checkpoint(folder).inventory, chosen(folder, ("transformer.wte",), include=("embedding",))
    write_selected(Checkpoint(folder), weights, tmp_path / "out")
    stored = read_header(tmp_path / "out" / "model.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in stored.items()} == {
        k: (v.dtype, v.shape) for k, v in artifact_layout(inventory, weights).items()}
    sizes, runner = sizes_of(inventory, weights), open_runner(tmp_path / "out")
    assert sizes.file_bytes == sum(info.bytes for info in stored.values())
    assert sizes.held_bytes == sum(tensor.bytes for tensor in runner.tensors())
    rows = list(rows_of_table(weights))
    biases = sum(weight.stored.bytes for weight in inventory.weights if weight.is_bias)
    assert sum(row[5] for row in rows) + biases == sizes.file_bytes
    assert sum(row[4] for row in rows) + biases == inventory.stored_bytes
    assert [row[0] for row in rows if row[0].startswith("transformer.wte")] == [
        f"transformer.wte.{name}" for name in ("classes", "class0", "class1", "class2", "class3")]
    rows = [row for row in size_breakdown(runner.tensors()) if row["role"] == "embedding+head"]
    assert {row["group"] for row in rows} == {"embedding"}
    held = {part: sum(row["bytes"] for row in rows if row["part"] == part) for part in {row["part"] for row in rows}}
    counts = torch.bincount(drawn()).tolist()
    scales = 4 * counts[0] + 4 * 4 * counts[1] + sum(
        info.bytes for name, info in stored.items() if "class3.scale_" in name)
    assert held == {"classes": VOCABULARY, "codes": counts[0] * 64 + counts[1] * 16 + counts[3] * 32, "scales": scales,
                    "zeros": 4 * 4 * counts[1], "floats": 4 * 64 * counts[2]}
    assert runner.module_counts()["QTiedHead"] == 1


def test_the_memory_for_the_rows_of_a_class_is_counted(make_model):
    divided = chosen(make_model("gpt2", torch.float16), ("transformer.wte",), [Scheme(), Scheme()], include=("embedding",))
    whole = [replace(selected, parts=selected.parts[:1], classes=None) for selected in divided]
    most = max(torch.bincount(drawn(count=2)).tolist())
    assert memory_to_quantize({}, {}, divided) - memory_to_quantize({}, {}, whole) == 2 * WIDTH * most


def part_of(folder, name="transformer.wte"):
    weights = select(Checkpoint(folder).inventory, Recipe(Scheme(), include=("embedding", "q")))
    return next(selected for selected in weights if selected.weight.module == name)


def test_a_class_without_rows_is_left_out(make_model):
    divided = with_classes(part_of(make_model("gpt2")), 3 * drawn(count=2) + 1, [None, Scheme(2), Scheme(3), None, Scheme(8)])
    assert [(part.name, part.scheme and part.scheme.bits) for part in divided.parts] == [("class0", 2), ("class1", 8)]
    assert torch.equal(divided.class_numbers.long(), drawn(count=2))
    rows = torch.cat([divided.rows_of(part) for part in divided.parts])
    assert torch.equal(rows.sort().values, torch.arange(VOCABULARY)) and [part.rows for part in divided.parts] == torch.bincount(
        drawn(count=2)).tolist()
    assert all(a < b for part in divided.parts for a, b in pairwise(divided.rows_of(part).tolist()))
    assert divided == copy.deepcopy(divided) and len({divided, copy.deepcopy(divided)}) == 1


def test_one_class_is_no_class(make_model):
    whole = part_of(make_model("gpt2"))
    assert with_classes(whole, torch.ones(VOCABULARY, dtype=torch.uint8), [None, Scheme()]) == whole


@pytest.mark.parametrize(("name", "classes", "schemes", "message"), [
    ("transformer.wte", drawn(95), SCHEMES, r"transformer\.wte has classes int64 \[95\]; expected an integer for each of its 96"),
    ("transformer.wte", drawn().float(), SCHEMES, r"transformer\.wte has classes float32 \[96\]"),
    ("transformer.wte", drawn() - 1, SCHEMES, "has rows of classes -1 to 2; expected 0 to 3"),
    ("transformer.wte", drawn(), SCHEMES[:3], "has rows of classes 0 to 3; expected 0 to 2"),
    ("transformer.h.0.ln_1", drawn(64), SCHEMES, r"ln_1 is a weight of shape \[64\] in 1 parts; classes of rows need a matrix"),
    ("transformer.h.0.attn.c_attn", drawn(192), SCHEMES, r"c_attn is a weight of shape \[192, 64\] in 2 parts"),
])  # fmt: skip
def test_classes_that_do_not_fit_are_refused(make_model, name, classes, schemes, message):
    with pytest.raises(InputError, match=message) as refused:
        with_classes(part_of(make_model("gpt2"), name), classes, schemes)
    assert "\n" not in str(refused.value)


def test_more_classes_than_a_byte_counts_are_refused():
    from quant.model.inventory import Weight
    from quant.model.safetensors_file import TensorInfo
    from quant.model.selection import Part, Selected

    weight = Weight("wte.weight", "wte.weight", TensorInfo(torch.float32, (300, 64)), "wte", ("embedding",), None, False, False)
    whole = Selected(weight, (Part(("embedding",), ((0, 300),), None),))
    with pytest.raises(InputError, match="wte has 257 classes of rows; expected at most 256"):
        with_classes(whole, torch.arange(300).clamp(max=256), [Scheme()] * 300)
    assert len(with_classes(whole, torch.arange(300).clamp(max=255), [Scheme()] * 300).parts) == 256


def change_config(path, change):
    config = json.loads((path / "config.json").read_text())
    change(config["quantization_config"]["modules"]["transformer.wte"])
    (path / "config.json").write_text(json.dumps(config))


def change_classes(path, change):
    """Change the stored class numbers in place."""
    info = read_header(path / "model.safetensors")["transformer.wte.weight.classes"]
    data = bytearray((path / "model.safetensors").read_bytes())
    change(memoryview(data)[info.offset : info.offset + info.bytes])
    (path / "model.safetensors").write_bytes(data)


def header(change):
    return lambda path: damaged(path / "model.safetensors", change)


def swapped(parts):
    parts["class0"]["rows"], parts["class1"]["rows"] = parts["class1"]["rows"], parts["class0"]["rows"]


NAME = "transformer.wte.weight"


@pytest.mark.parametrize(("change", "message"), [
    (header(lambda h: h.update(other=h.pop(f"{NAME}.classes"))), r"weight\.classes is missing, expected uint8 \[96\]"),
    (header(lambda h: h[f"{NAME}.classes"].update(shape=[2, 48])), r"weight\.classes is uint8 \[2, 48\], expected uint8 \[96\]"),
    (header(lambda h: h[f"{NAME}.classes"].update(dtype="I8")), r"weight\.classes is int8 \[96\], expected uint8"),
    (header(lambda h: h[f"{NAME}.class2"].update(dtype="I32")), r"weight\.class2 is int32 .*expected float32"),
    (header(lambda h: h[f"{NAME}.class2"]["shape"].reverse()), r"weight\.class2 is float32 \[64, .*expected float32"),
    (header(lambda h: h[f"{NAME}.class0.codes"]["shape"].reverse()), r"weight\.class0\.codes is uint8 \[64, .*\(int8 row\)"),
    (header(lambda h: h.update(other=h.pop(f"{NAME}.class1.zeros"))), r"weight\.class1\.zeros is missing"),
    (lambda path: change_classes(path, lambda rows: rows.__setitem__(0, 200)), r"classes has \d+ rows of class \d"),
    (lambda path: change_classes(path, lambda rows: rows.__setitem__(slice(0, 1), bytes([(rows[0] + 1) % 4]))),
     r"classes has \d+ rows of class \d, expected \d+; quantize the model again"),
    (lambda path: change_config(path, swapped), r"classes has 27 rows of class 0, expected 25"),
    (lambda path: change_config(path, lambda p: p["class0"].update(rows=1)), r"wte has the classes class0, .* with 1, "),
    (lambda path: change_config(path, lambda p: p["class0"].update(rows="9")), "wte' has the rows .*expected ranges"),
    (lambda path: change_config(path, lambda p: p["class0"].pop("rows")), "wte' has the part .*expected one of 4 schemes"),
    (lambda path: change_config(path, lambda p: p.update(class9=p.pop("class3"))), "wte has the classes .*class9"),
    (lambda path: change_config(path, lambda p: p["class0"].update(scheme=9)), "wte' has the part .*expected one of 4 schemes"),
], ids=["no classes", "shape of classes", "dtype of classes", "plain dtype", "plain shape", "codes", "zeros", "class too high",
        "wrong count", "swapped counts", "rows", "rows no number", "no rows", "wrong name", "scheme"])  # fmt: skip
def test_a_damaged_artifact_is_refused_in_one_line(make_model, tmp_path, change, message):
    from transformers import AutoModelForCausalLM

    write_selected(Checkpoint(make_model("gpt2")), chosen(make_model("gpt2"), ("transformer.wte",)), tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(InputError, match=message) as refused:
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_the_export_refuses_classes_by_name(make_model, tmp_path, module):
    folder = make_model("llama")
    write_selected(Checkpoint(folder), chosen(folder, (module,), SCHEMES[:2], include=(module,)), tmp_path / "out")
    with pytest.raises(InputError, match=rf"{module} has 2 classes of rows, each with a scheme of its own") as refused:
        export(tmp_path / "out", tmp_path / "exported", "compressed-tensors")
    assert "\n" not in str(refused.value)
