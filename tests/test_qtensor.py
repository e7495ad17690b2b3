"""One quantizer for every width, grid and grouping."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.codebooks import FP4, NF4, grid_of
from quant.errors import InputError
from quant.qtensor import dequantize, layout, quantize
from quant.scheme import Scheme

SCHEMES = [
    *(Scheme(bits=bits, group_size=size, symmetric=symmetric)
      for bits in range(2, 9) for size in ("tensor", "row", 16) for symmetric in (True, False)),
    *(Scheme(bits=4, group_size=16, codebook=codebook) for codebook in ("nf4", "fp4")),
    Scheme(scale_dtype="float16"), Scheme(bits=3, group_size=16, symmetric=False, scale_dtype="bfloat16"),
]  # fmt: skip
EACH = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


def weight(rows=7, columns=48, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@EACH
def test_no_code_is_nearer(scheme):
    """Each weight gets the code whose value is nearest, under the scale that is stored."""
    w = weight()
    tensor = quantize(w, scheme)
    scales, zeros = tensor.scales.float(), None if tensor.zeros is None else tensor.zeros.float()
    size = {"tensor": 48, "row": 48}.get(scheme.group_size, scheme.group_size)
    rows, groups = 7, 48 // size
    scales = scales.expand(rows, groups).repeat_interleave(size, 1)
    offset = 0 if zeros is None else zeros.expand(rows, groups).repeat_interleave(size, 1)
    grid = grid_of(scheme)
    lowest = getattr(grid, "lowest", 0)
    values = grid.decode(torch.arange(lowest, 2**scheme.bits, dtype=torch.uint8))
    best = (w.unsqueeze(-1) - (values * scales.unsqueeze(-1) + (offset.unsqueeze(-1) if zeros is not None else 0))).abs().amin(-1)
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
    assert ((w - dequantize(tensor)).abs() <= tensor.scales * 0.500001).all()


def test_error_falls_as_bits_grow():
    errors = [(weight() - dequantize(quantize(weight(), Scheme(bits=bits)))).square().mean() for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)


def test_long_weights_are_quantized_in_pieces_without_a_seam(monkeypatch):
    whole = [quantize(weight(), scheme) for scheme in SCHEMES]
    monkeypatch.setattr("quant.qtensor.CHUNK", 96)
    for scheme, expected in zip(SCHEMES, whole, strict=True):
        for name, tensor in quantize(weight(), scheme).tensors().items():
            assert torch.equal(tensor, expected.tensors()[name]), (scheme.label, name)


@EACH
def test_zeros_stay_zero_and_constants_stay_finite(scheme):
    assert not dequantize(quantize(torch.zeros(3, 32), scheme)).any()
    assert torch.isfinite(dequantize(quantize(torch.full((3, 32), 1e-42), scheme))).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_quantized_from_what_they_hold(dtype):
    w = weight().to(dtype)
    assert torch.equal(quantize(w, Scheme()).codes, quantize(w.float(), Scheme()).codes)


def test_one_dimension_is_one_row():
    tensor = quantize(weight()[0], Scheme())
    assert tensor.scales.shape == (1, 1) and dequantize(tensor).shape == (48,)


@pytest.mark.parametrize(("w", "scheme", "message"), [
    (torch.tensor([[1.0, float("nan")]]), Scheme(), "NaN"),
    (torch.ones(2, 48), Scheme(group_size=32), "group_size 32 does not divide the 48 columns"),
    (torch.full((1, 4), 1e30), Scheme(scale_dtype="float16"), "a scale exceeds float16"),
    (torch.ones(2, 2, 2), Scheme(), "one or two dimensions"),
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
    ({"scale_dtype": "int8"}, "scale_dtype is 'int8'"),
    ({"bitz": 4}, "unknown scheme key 'bitz'; known: bits, group_size"),
])  # fmt: skip
def test_a_scheme_checks_itself(values, message):
    with pytest.raises(InputError, match=message):
        Scheme.from_dict(values)


def test_nf4_and_fp4_codes_and_scales_are_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    for codebook, table in (("nf4", NF4), ("fp4", FP4)):
        for seed in range(100):
            w = weight(5 + seed % 7, 64 * (1 + seed % 3), seed)
            packed, state = functional.quantize_4bit(w, blocksize=64, quant_type=codebook)
            ours = quantize(w, Scheme(bits=4, group_size=64, codebook=codebook))
            assert torch.equal(ours.scales.flatten(), state.absmax)
            low, high = ours.codes & 15, ours.codes >> 4  # ours holds the first code low, bitsandbytes high
            assert torch.equal((low << 4 | high).flatten(), packed.flatten()), (codebook, seed)
            assert torch.equal(state.code, torch.tensor(table))
