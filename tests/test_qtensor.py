"""One quantizer for every width, grid and grouping."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import InputError
from quant.tensor import scales
from quant.tensor.grids import grid_of
from quant.tensor.qtensor import dequantize, layout, quantize
from quant.tensor.scheme import FITS, Scheme

SCHEMES = [
    *(Scheme(bits=bits, group_size=size, symmetric=symmetric)
      for bits in range(2, 9) for size in ("tensor", "row", 16) for symmetric in (True, False)),
    *(Scheme(bits=4, group_size=16, codebook=codebook) for codebook in ("nf4", "fp4")),
    Scheme(scale_dtype="float16"), Scheme(bits=3, group_size=16, symmetric=False, scale_dtype="bfloat16"),
    Scheme(bits=3, group_size=8, codebook=(-1.0, -0.4, -0.1, 0.0, 0.2, 1.0)),
    *(Scheme(bits=bits, group_size=size, symmetric=symmetric, fit="mse")
      for bits in (2, 4) for size in ("tensor", "row", 16) for symmetric in (True, False)),
    Scheme(bits=4, group_size=16, codebook="nf4", fit="mse"),
    *(Scheme(bits=bits, group_size=size, symmetric=False, fit="hqq") for bits in (2, 4) for size in ("tensor", 16)),
]  # fmt: skip
EACH = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


def weight(rows=7, columns=48, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@EACH
def test_no_code_is_nearer(scheme):
    """Each weight gets the code whose value is nearest, under the scale that is stored."""
    w = weight()
    tensor = quantize(w, scheme)
    steps, zeros = tensor.scales.rows(slice(None)).float(), None if tensor.zeros is None else tensor.zeros.float()
    size = {"tensor": 48, "row": 48}.get(scheme.group_size, scheme.group_size)
    rows, groups = 7, 48 // size
    steps = steps.expand(rows, groups).repeat_interleave(size, 1)
    offset = 0 if zeros is None else zeros.expand(rows, groups).repeat_interleave(size, 1)
    grid = grid_of(scheme)
    lowest, count = getattr(grid, "lowest", 0), len(getattr(grid, "values", range(2**scheme.bits)))
    values = grid.decode(torch.arange(lowest, count, dtype=torch.uint8))
    best = (w.unsqueeze(-1) - (values * steps.unsqueeze(-1) + (offset.unsqueeze(-1) if zeros is not None else 0))).abs().amin(-1)
    assert torch.allclose((w - dequantize(tensor)).abs(), best, atol=2e-6)


@EACH
def test_stored_tensors_are_as_the_layout_says(scheme):
    stored = quantize(weight(), scheme).tensors()
    assert {name: (t.dtype, tuple(t.shape)) for name, t in stored.items()} == layout((7, 48), scheme)


@EACH
def test_requantizing_a_dequantized_weight_changes_no_code(scheme):
    once = quantize(weight(), scheme)
    twice = quantize(dequantize(once), scheme)
    if scheme.scale_dtype == "float32" and scheme.codebook != "fp4":  # fp4 has two codes for zero
        assert torch.equal(once.codes, twice.codes)
    assert torch.allclose(dequantize(twice), dequantize(once), rtol=2**-7 if "16" in scheme.scale_dtype else 1e-6)


@given(bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 500), power=st.integers(-20, 20))
def test_error_is_at_most_half_a_step(bits, symmetric, seed, power):
    w = weight(3, 32, seed) * 2.0**power
    tensor = quantize(w, Scheme(bits=bits, symmetric=symmetric))
    assert ((w - dequantize(tensor)).abs() <= tensor.scales.scales * 0.500001).all()


def test_error_falls_as_bits_grow():
    errors = [(weight() - dequantize(quantize(weight(), Scheme(bits=bits)))).square().mean() for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)


def test_long_weights_are_quantized_in_pieces_without_a_seam(monkeypatch):
    whole = [quantize(weight(), scheme) for scheme in SCHEMES]
    monkeypatch.setattr("quant.tensor.groups.CHUNK", 96)
    for scheme, expected in zip(SCHEMES, whole, strict=True):
        for name, tensor in quantize(weight(), scheme).tensors().items():
            assert torch.equal(tensor, expected.tensors()[name]), (scheme.label, name)


@given(bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 500))
def test_a_clipping_search_never_adds_squared_error(bits, symmetric, seed):
    w = weight(3, 32, seed) ** 3
    errors = [(w - dequantize(quantize(w, Scheme(bits, 16, symmetric, fit=fit)))).view(3, 2, 16).square().sum(-1)
              for fit in ("mse", "range")]
    assert (errors[0] <= errors[1] * 1.000001).all()


def test_a_clipping_search_gains_where_few_codes_meet_long_tails():
    w = weight(64, 64)
    for scheme in (Scheme(2, 64), Scheme(3, 64, symmetric=False), Scheme(4, 64, codebook="nf4")):
        errors = [(w - dequantize(quantize(w, scheme.override({"fit": fit})))).square().mean() for fit in ("mse", "range")]
        assert errors[0] < 0.95 * errors[1], scheme.label


@given(bits=st.integers(2, 8), seed=st.integers(0, 500))
def test_the_half_quadratic_solver_never_adds_absolute_error(bits, seed):
    w = weight(3, 32, seed) ** 3
    errors = [(w - dequantize(quantize(w, Scheme(bits, 16, False, fit=fit)))).view(3, 2, 16).abs().sum(-1)
              for fit in ("hqq", "range")]
    assert (errors[0] <= errors[1] * 1.000001).all()


def test_double_quantization_keeps_the_codes_and_nearly_the_scales():
    w = weight(40, 640)
    plain, double = (quantize(w, Scheme(4, 16, codebook="nf4", double_quant=dq)) for dq in (False, True))
    assert torch.equal(plain.codes, double.codes)
    assert (double.scales.rows(slice(None)) - plain.scales.scales).abs().max() < 0.02 * plain.scales.scales.max()


@EACH
def test_rows_are_those_of_the_whole(scheme):
    for kind in (scheme, *([replace(scheme, double_quant=True)] if scheme.scale_dtype == "float32" else [])):
        tensor = quantize(weight(), kind)
        for some in (torch.tensor([5, 0, 5]), slice(2, 4)):
            assert torch.equal(tensor.dequantize_rows(some), dequantize(tensor)[some])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_huge_weight_takes_the_range_of_its_group_only(bits):
    w = weight(2, 32)
    w[0, 3] = 1e30
    back = dequantize(quantize(w, Scheme(bits, 16)))
    assert abs(back[0, 3] / 1e30 - 1) < 1e-6 and not back[0, :3].any() and not back[0, 4:16].any()
    assert (back - w)[0, 16:].abs().max() < 2 and (back - w)[1].abs().max() < 2


def test_a_scale_below_the_smallest_normal_number_makes_its_group_zero():
    w = torch.tensor([[1e-37, -2e-37], [1e-36, 2e-36], [1e-45, 0.0]])
    tensor = quantize(w, Scheme())
    assert tensor.scales.scales.flatten().bool().tolist() == [False, True, False]
    assert torch.allclose(dequantize(tensor)[1], w[1], rtol=0.01) and not dequantize(tensor)[[0, 2]].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (3, 101), (13,)])
def test_odd_shapes(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for bits in range(2, 9):
        assert (dequantize(quantize(w, Scheme(bits))) - w).abs().max() <= w.abs().max() / (2**bits - 2) * 1.00001


@EACH
def test_zeros_stay_zero_and_constants_stay_finite(scheme):
    assert not dequantize(quantize(torch.zeros(3, 32), scheme)).any()
    assert torch.isfinite(dequantize(quantize(torch.full((3, 32), 1e-42), scheme))).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_quantized_from_what_they_hold(dtype):
    w = weight().to(dtype)
    assert torch.equal(quantize(w, Scheme()).codes, quantize(w.float(), Scheme()).codes)


def test_every_fit_has_a_function():
    assert tuple(scales.FITS) == FITS


def test_one_dimension_is_one_row():
    tensor = quantize(weight()[0], Scheme())
    assert tensor.scales.scales.shape == (1, 1) and dequantize(tensor).shape == (48,)


@pytest.mark.parametrize(("w", "scheme", "message"), [
    (torch.tensor([[1.0, float("nan")]]), Scheme(), "NaN"),
    (torch.tensor([[1.0, -float("inf")]]), Scheme(bits=4, codebook="nf4"), "infinity"),
    (torch.full((1, 4), 1e30), Scheme(scale_dtype="float16"), "a scale or zero exceeds float16: the weights reach from 1e\\+30"),
    (torch.full((1, 32), 1e7), Scheme(4, 32, scale_dtype="float16", fit="ggml"), "a scale or zero exceeds float16"),
    (torch.tensor([[-3e38, 3e38]]), Scheme(symmetric=False), "a scale or zero exceeds float32"),
    (torch.ones(2, 2, 2), Scheme(), "one or two dimensions"),
    (torch.ones(3, 0), Scheme(), "none of them 0"),
])  # fmt: skip
def test_what_can_not_be_quantized_is_refused(w, scheme, message):
    with pytest.raises(InputError, match=message):
        quantize(w, scheme)


@pytest.mark.parametrize(("values", "message"), [
    ({"bits": 9}, "bits is 9; expected a whole number from 2 to 8"),
    ({"bits": True}, "bits is True"),
    ({"bits": "4"}, "bits is '4'"),
    ({"group_size": 0}, "group_size is 0"),
    ({"group_size": "rows"}, "group_size is 'rows'; expected row, tensor or a number"),
    ({"symmetric": 1}, "symmetric is 1"),
    ({"codebook": "nf5"}, "codebook is 'nf5'"),
    ({"codebook": "nf4"}, "codebook nf4 has 16 values: bits must be 4, found 8"),
    ({"scale_dtype": "int4"}, "scale_dtype is 'int4'"),
    ({"bitz": 4}, "unknown scheme key 'bitz'; known: bits, group_size"),
    ({"double_quant": 1}, "double_quant is 1"),
    ({"double_quant": True, "scale_dtype": "float16"}, "scale_dtype must be float32"),
    ({"fit": "best"}, "fit is 'best'; expected one of range, mse, hqq, ggml"),
    ({"fit": "hqq"}, "symmetric false"),
    ({"fit": "ggml"}, "int8 row ggml is none of them"),
    ({"bits": 2, "codebook": [0, 1, "x"]}, "expected finite numbers"),
    ({"bits": 2, "codebook": [0, 1, 1]}, "expected different numbers"),
    ({"bits": 3, "codebook": [-1, 0, 1]}, "codebook has 3 values; with bits 3 expected 5 to 8"),
    ({"bits": 2, "codebook": [-1, 0, 1], "symmetric": False}, "codebook table3 has its own zero"),
])  # fmt: skip
def test_a_scheme_checks_itself(values, message):
    with pytest.raises(InputError, match=message):
        Scheme.from_dict(values)
