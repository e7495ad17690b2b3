"""Weights that were quantized elsewhere, and small weights that were replaced, are what the artifact holds."""

import json

import pytest
import torch
from conftest import build_variant
from test_classes import chosen, opened

from quant.errors import InputError
from quant.model.artifact import write_selected
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.model.selection import select
from quant.tensor.qtensor import QTensor, dequantize, quantize
from quant.tensor.scheme import Scheme


def odd_codes(part, rows):
    """Other codes than rounding gives: odd ones."""
    tensor = quantize(rows, part.scheme)
    return QTensor(tensor.codes.bitwise_or(1), tensor.scales, tensor.zeros, tensor.shape, tensor.scheme)


def test_codes_of_another_quantizer_and_replaced_biases_are_what_is_loaded(make_model, tmp_path, ids):
    folder, asked = make_model("gpt2", torch.float16), []
    checkpoint, weights = Checkpoint(folder), chosen(folder, ("transformer.wte",))

    def quantizer(selected, part, rows):
        asked.append((selected.name_of(part), tuple(rows.shape), rows.dtype))
        return odd_codes(part, rows)

    bias = torch.linspace(-1, 1, 192, dtype=torch.float64)
    norm = torch.full((64,), 1 / 3)
    write_selected(checkpoint, weights, tmp_path / "out", quantizer=quantizer,
                   replaced={"transformer.h.0.attn.c_attn.bias": bias, "transformer.ln_f.weight": norm})
    parts = [(selected, part) for selected in weights for part in selected.parts if part.scheme]
    assert sorted(asked) == sorted((s.name_of(p), s.shape_of(p), torch.float16) for s, p in parts)
    stored = Checkpoint(tmp_path / "out")
    assert torch.equal(stored.read("transformer.h.0.attn.c_attn.bias"), bias.half())
    assert torch.equal(stored.read("transformer.ln_f.weight"), norm.half())
    for name in ("transformer.h.1.attn.c_attn.bias", "transformer.h.0.ln_1.weight"):
        assert torch.equal(stored.read(name), checkpoint.read(name))
    expected = opened(folder)
    for selected in weights:
        value = expected.get_parameter(selected.weight.name).data
        value = value.T if selected.weight.transposed else value
        for part in selected.parts:
            if part.scheme:
                rows = selected.rows_of(part)
                value[rows] = dequantize(odd_codes(part, value[rows]))
    expected.transformer.h[0].attn.c_attn.bias.data.copy_(bias.half())
    expected.transformer.ln_f.weight.data.copy_(norm.half())
    with torch.inference_mode():
        assert torch.allclose(opened(tmp_path / "out")(ids).logits, expected(ids).logits, atol=2e-5)


def test_a_quantizer_that_returns_another_scheme_is_a_mistake(make_model, tmp_path):
    checkpoint = Checkpoint(make_model("gpt2"))
    weights = select(checkpoint.inventory, Recipe(Scheme(4, 32)))
    with pytest.raises(ValueError, match=r"was quantized as nf4 g32 \[192, 64\], expected int4 g32 \[192, 64\]"):
        write_selected(checkpoint, weights, tmp_path / "out", quantizer=lambda _, part, rows: quantize(
            rows, Scheme(part.scheme.bits, 32, codebook="nf4")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value", "message"), [
    ("transformer.h.0.ln_1.wight", torch.ones(64), r"ln_1\.wight, which the model does not have; .*h\.0\.ln_1\.weight"),
    ("transformer.h.0.mlp.c_fc.weight", torch.ones(64, 256), r"c_fc\.weight, which is quantized; leave one of the two out"),
    ("transformer.ln_f.bias", torch.ones(63), r"new value of transformer\.ln_f\.bias has shape \[63\]; expected \[64\]"),
    ("transformer.ln_f.bias", torch.full((64,), 1e6), r"ln_f\.bias is not finite in float16"),
])  # fmt: skip
def test_a_value_that_can_not_replace_a_weight_is_refused_before_anything_is_written(make_model, tmp_path, name, value, message):
    checkpoint = Checkpoint(make_model("gpt2", torch.float16))
    weights = select(checkpoint.inventory, Recipe(Scheme()))
    with pytest.raises(InputError, match=message):
        write_selected(checkpoint, weights, tmp_path / "out", replaced={name: value})
    assert not list(tmp_path.iterdir())


def test_the_manifest_of_a_recipe_names_its_scheme(make_model, tmp_path):
    build_variant(make_model("gpt2"), "quant", {"bits": 4}, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["scheme"], manifest["method"]) == ("int4 row", "quant")
