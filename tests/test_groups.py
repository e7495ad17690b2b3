"""Full levels, whole zeros, 8-bit scales and a shorter last group: what each promises; and the functions for solvers of codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import InputError
from quant.tensor import ggml
from quant.tensor.ggml_blocks import to_bytes
from quant.tensor.grids import grid_of
from quant.tensor.groups import choose_groups, store_groups
from quant.tensor.int8_scales import LARGEST, Int8Scales
from quant.tensor.packing import row_bytes, unpack
from quant.tensor.qtensor import QTensor, assemble, dequantize, layout, quantize
from quant.tensor.scheme import Scheme

KINDS = {"narrow": {}, "full": {"levels": "full"}, "real": {"symmetric": False}, "whole": {"symmetric": False, "zeros": "whole"}}
SCHEMES = [
    *(Scheme(bits, size, scale_dtype=dtype, fit=fit, **kind) for kind in KINDS.values() for bits in (2, 4, 5, 8)
      for size in ("tensor", "row", 64) for dtype in ("float32", "bfloat16", "int8") for fit in ("range", "mse")
      if (dtype, size) != ("int8", "tensor")),
    *(Scheme(4, 64, codebook=codebook, scale_dtype=dtype) for codebook in ("nf4", "fp4") for dtype in ("float32", "int8")),
    Scheme(3, 64, codebook=(-1.0, -0.4, -0.1, 0.0, 0.2, 1.0), scale_dtype="int8"), Scheme(3, 64, False, fit="hqq"),
    Scheme(4, 64, double_quant=True, levels="full"), Scheme(4, 64, False, double_quant=True, zeros="whole"),
    *(ggml.scheme_of(name) for name in ("Q4_0", "Q4_1", "Q8_0")),
]  # fmt: skip
EACH = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


def weight(rows=7, columns=172, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def codes_of(tensor):
    return unpack(tensor.codes, tensor.scheme.bits, tensor.shape[-1])


def squares(w, scheme, importance=None):
    """Squared error of each group, times the importance."""
    error = (w - dequantize(quantize(w, scheme, importance))).double().square() * (1 if importance is None else importance)
    index = torch.tensor(scheme.group_index(w.shape[1])).expand(w.shape)
    return torch.zeros((len(w), index.max() + 1), dtype=torch.float64).scatter_add_(1, index, error)


def of_columns(parameters, tensor):
    """Scales or zeros [rows, groups] -> [rows, columns]."""
    return parameters[:, tensor.scheme.group_index(tensor.shape[-1])]


@EACH
def test_packed_bytes_are_as_the_layout_says_and_come_back(scheme):
    stored = quantize(weight(), scheme).tensors()
    assert {name: (t.dtype, tuple(t.shape)) for name, t in stored.items()} == layout((7, 172), scheme)
    assert torch.equal(dequantize(QTensor.from_tensors(stored, (7, 172), scheme)), dequantize(quantize(weight(), scheme)))
    assert Scheme.from_dict(scheme.to_dict()) == scheme
    if scheme.zeros == "whole":
        groups = scheme.scale_shape(7, 172)[1]
        assert stored["zeros"].shape[1] == row_bytes(groups, scheme.bits)


@EACH
def test_a_weight_is_its_code_times_the_scale_plus_the_zero(scheme):
    tensor = quantize(weight(), scheme)
    expected = grid_of(scheme).decode(codes_of(tensor)) * of_columns(tensor.groups.scale_values(), tensor)
    zeros = tensor.groups.zero_values()
    assert (zeros is None) == scheme.symmetric
    assert torch.equal(dequantize(tensor), expected if zeros is None else expected + of_columns(zeros, tensor))


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if isinstance(scheme.group_size, int) and not
                                    (scheme.double_quant or scheme.scale_dtype == "int8")], ids=lambda scheme: scheme.label)
def test_a_shorter_last_group_is_quantized_as_the_body_and_the_tail_are(scheme):
    w, size = weight(), scheme.group_size
    body = 172 // size * size
    parts = [quantize(part.contiguous(), scheme) for part in (w[:, :body], w[:, body:])]
    tensor = quantize(w, scheme)
    assert torch.equal(codes_of(tensor), torch.cat([codes_of(part) for part in parts], dim=1))
    assert torch.equal(tensor.groups.scale_values(), torch.cat([part.groups.scale_values() for part in parts], dim=1))
    assert torch.equal(dequantize(tensor), torch.cat([dequantize(part) for part in parts], dim=1))


@pytest.mark.parametrize("columns", [1, 63, 64, 65])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_shorter_than_a_group_are_one_group(kind, columns):
    group, row = (quantize(weight(5, columns), Scheme(4, size, **KINDS[kind])) for size in (64, "row"))
    if columns <= 64:
        assert torch.equal(dequantize(group), dequantize(row))
    assert group.scales.scales.shape == (5, -(-columns // 64))


def test_groups_of_columns():
    assert Scheme(group_size=3).group_index(8) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert Scheme().group_index(3) == Scheme(group_size="tensor").group_index(3) == [0, 0, 0]
    assert Scheme(group_size=64).scale_shape(5, 172) == (5, 3) and Scheme(group_size="tensor").scale_shape(5, 172) == (1, 1)


@given(bits=st.integers(2, 8), kind=st.sampled_from(["full", "whole"]), fit=st.sampled_from(["range", "mse"]),
       dtype=st.sampled_from(["float32", "float16", "bfloat16", "int8"]), seed=st.integers(0, 500), power=st.integers(-6, 6),
       sign=st.sampled_from([-1, 1]))
def test_what_a_grid_holds_survives(bits, kind, fit, dtype, seed, power, sign):
    """Codes with both ends in every group, times a power of two: the range is found again, and with it every weight."""
    scheme = Scheme(bits, 16, scale_dtype=dtype, fit=fit, **KINDS[kind])
    codes = torch.randint(0, 2**bits, (3, 40), generator=torch.Generator().manual_seed(seed))
    zero = 2 ** (bits - 1) if kind == "full" else seed % 2**bits
    codes[:, ::8], codes[:, 1::8] = 0, 2**bits - 1
    sign = sign if kind == "full" else 1
    # a scale is 127 steps of its row's number, a power of two, so that 8 bits and float16 hold it
    w = (codes - zero).float() * sign * 127 * 2.0**power if dtype != "bfloat16" else (codes - zero).float() * sign * 2.0**power
    tensor = quantize(w, scheme)
    assert torch.equal(dequantize(tensor), w)
    assert torch.equal(codes_of(tensor), codes.to(torch.uint8))


@given(bits=st.integers(2, 8), seed=st.integers(0, 500), dtype=st.sampled_from(["float32", "float16"]))
def test_one_more_level_never_adds_error_to_a_search(bits, seed, dtype):
    full, narrow = (squares(weight(4, 80, seed) ** 3, Scheme(bits, 32, fit="mse", scale_dtype=dtype, **KINDS[kind]))
                    for kind in ("full", "narrow"))
    assert (full <= narrow * 1.00001).all()


def test_one_more_level_gains_where_levels_are_few():
    full, narrow = (squares(weight(64, 256), Scheme(2, 64, fit="mse", **KINDS[kind])).sum() for kind in ("full", "narrow"))
    assert full < 0.8 * narrow


def test_full_levels_map_the_largest_weight_with_its_sign_onto_the_lowest():
    w = torch.tensor([[0.5, -4.0, 3.0, 1.0], [0.5, 4.0, -3.0, 1.0], [-0.5, 8.0, -8.0, 0.0]])
    tensor = quantize(w, Scheme(4, levels="full"))
    assert tensor.scales.scales.flatten().tolist() == [0.5, -0.5, 1.0]
    assert codes_of(tensor).tolist() == [[9, 0, 14, 10], [7, 0, 14, 6], [8, 15, 0, 8]]  # -0.5 is a half: to the even code
    assert torch.equal(dequantize(tensor)[:2], w[:2]) and dequantize(tensor)[2].tolist() == [0, 7, -8, 0]


@given(bits=st.integers(2, 8), fit=st.sampled_from(["range", "mse"]), seed=st.integers(0, 500), shift=st.integers(-3, 3),
       dtype=st.sampled_from(["float32", "float16", "int8"]))
def test_whole_zeros_keep_the_weight_zero_and_stay_near_the_rest(bits, fit, seed, shift, dtype):
    w = weight(3, 40, seed) + shift
    w[:, ::5] = 0
    tensor = quantize(w, Scheme(bits, 16, fit=fit, scale_dtype=dtype, **KINDS["whole"]))
    assert not dequantize(tensor)[:, ::5].any()
    assert bool((tensor.groups.scale_values() > 0).all())
    if fit == "range" and dtype != "int8":
        # rounding the zero moves either end by half a step at most, where a weight is half a step off by itself; and the range
        # is shorter by the rounding of the scale, for each step
        scales = of_columns(tensor.groups.scale_values(), tensor)
        assert ((w - dequantize(tensor)).abs() <= scales * (1.0001 + 2**bits * 2**-11)).all()


@given(seed=st.integers(0, 500), power=st.integers(-24, 12), signed=st.booleans())
def test_8_bit_scales_are_off_by_half_a_step_at_most(seed, power, signed):
    scales = weight(5, 9, seed).exp() * 2.0**power * (weight(5, 9, seed + 1).sign() if signed else 1)
    scales[0] = 0
    scales[1, 1:] *= 1e-4
    stored = Int8Scales.of(scales)
    step, error = stored.row_scales.float(), (stored.rows(slice(None)) - scales).abs()
    assert stored.scale_codes.abs().max() <= LARGEST and (scales.abs().amax(1, keepdim=True) <= 127.5 * step).all()
    assert (error <= step * torch.where(scales.abs() < step / 2, 1.0, 0.500001)).all()
    assert torch.equal(stored.rows(slice(None)).sign(), scales.sign()), "none becomes 0 or changes its sign"
    assert torch.equal(stored.rows(torch.tensor([3, 1])), stored.rows(slice(None))[[3, 1]])


def test_codes_are_nearest_under_8_bit_scales_as_stored():
    w = weight()
    tensor = quantize(w, Scheme(4, 16, scale_dtype="int8"))
    scales = of_columns(tensor.groups.scale_values(), tensor)
    inside = w.abs() <= 7.5 * scales
    assert inside.float().mean() > 0.97
    assert ((w - dequantize(tensor)).abs() <= 0.500001 * scales)[inside].all()


@EACH
def test_importance_of_one_changes_no_bit(scheme):
    plain = quantize(weight(), scheme).tensors()
    for importance in (torch.ones(172), torch.ones(7, 172)):
        for name, tensor in quantize(weight(), scheme, importance).tensors().items():
            assert torch.equal(tensor, plain[name]), name


@given(bits=st.integers(2, 4), kind=st.sampled_from(list(KINDS)), size=st.sampled_from(["tensor", "row", 16]),
       by_row=st.booleans(), seed=st.integers(0, 500))
def test_a_search_minimises_the_error_that_matters(bits, kind, size, by_row, seed):
    w, importance = weight(4, 40, seed), weight(4, 40, seed + 1).exp().square()
    importance = importance if by_row else importance[0]
    scheme = Scheme(bits, size, fit="mse", **KINDS[kind])
    for other in (scheme, scheme.override({"fit": "range"})):
        unweighted = (w - dequantize(quantize(w, other))).double().square() * importance
        weighted = squares(w, scheme, importance)
        assert weighted.sum() <= unweighted.sum() * 1.00001


def test_importance_is_split_as_the_weights_are(monkeypatch):
    importance = weight(7, 172, 3).exp()
    schemes = [Scheme(3, size, fit="mse", **KINDS["full"]) for size in ("tensor", "row", 64)]
    whole = [quantize(weight(), scheme, importance) for scheme in schemes]
    monkeypatch.setattr("quant.tensor.groups.CHUNK", 344)
    for scheme, expected in zip(schemes, whole, strict=True):
        assert torch.equal(dequantize(quantize(weight(), scheme, importance)), dequantize(expected))


@pytest.mark.parametrize(("importance", "message"), [
    (torch.ones(7), r"importance has shape \[7\]; expected \[7, 172\] or one for each column"),
    (-torch.ones(172), "importance holds NaN or a negative number"),
    (torch.full((172,), float("nan")), "importance holds NaN or a negative number"),
])  # fmt: skip
def test_wrong_importance_is_refused(importance, message):
    with pytest.raises(InputError, match=message):
        quantize(weight(), Scheme(fit="mse"), importance)


@EACH
def test_a_solver_that_rounds_to_nearest_gives_what_quantize_gives(scheme):
    w, expected = weight(), quantize(weight(), scheme)
    groups = choose_groups(w, scheme)
    tensor = assemble(codes_of(expected), groups, (7, 172), scheme)
    assert all(torch.equal(part, expected.tensors()[name]) for name, part in tensor.tensors().items())
    for found, stored in ((groups.scale_values(), expected.groups.scale_values()),
                          (groups.zero_values(), expected.groups.zero_values())):
        assert found is stored is None or (found.dtype == torch.float32 and torch.equal(found, stored))


@EACH
def test_stored_groups_are_stored_again_as_they_are(scheme):
    once = choose_groups(weight(), scheme)
    twice = store_groups(once.scale_values(), once.zero_values(), scheme)
    # quantized scales are relative to a mean, or to a largest one, which moves with its own rounding
    rounding = 0.02 if scheme.double_quant else 2**-10 if scheme.scale_dtype == "int8" else 0
    assert torch.allclose(twice.scale_values(), once.scale_values(), rtol=rounding, atol=0)
    assert (once.zeros is None and twice.zeros is None) or torch.equal(twice.zeros, once.zeros)


def test_given_groups_may_have_negative_scales():
    scheme = Scheme(4, 2, levels="full", scale_dtype="int8")
    groups = store_groups(torch.tensor([[-127.0, 1.0], [0.0, 0.0]]), None, scheme)
    assert groups.scale_values().tolist() == [[-127.0, 1.0], [0.0, 0.0]] and groups.zero_values() is None
    whole = store_groups(torch.tensor([[0.5, -2.0]]), torch.tensor([[-2.6, 9.0]]), Scheme(4, 2, False, zeros="whole"))
    assert whole.zero_values().tolist() == [[-2.5, 8.0]]
    with pytest.raises(InputError, match="a scale or zero exceeds float16"):
        store_groups(torch.tensor([[1e6]]), None, Scheme(scale_dtype="float16"))
    with pytest.raises(InputError, match="a scale or zero exceeds int8"):
        store_groups(torch.tensor([[1e9]]), None, Scheme(scale_dtype="int8"))


def test_a_row_of_ggml_is_whole_blocks():
    with pytest.raises(InputError, match="a row of 172 weights is not whole blocks of ggml; expected a multiple of 32"):
        to_bytes(quantize(weight(), ggml.scheme_of("Q4_0")))


@pytest.mark.parametrize(("values", "message"), [
    ({"levels": "all"}, "levels is 'all'; expected one of narrow, full"),
    ({"zeros": "int"}, "zeros is 'int'; expected one of real, whole"),
    ({"levels": "full", "symmetric": False}, "levels full is for symmetric steps, and asymmetric int8 has none"),
    ({"levels": "full", "bits": 4, "codebook": "nf4"}, "levels full is for symmetric steps, and nf4 has none"),
    ({"zeros": "whole"}, "zeros whole is for asymmetric steps, and int8 is symmetric"),
    ({"zeros": "whole", "symmetric": False, "fit": "hqq"}, "fit hqq solves for a zero that is a real number"),
    ({"scale_dtype": "int8", "group_size": "tensor"}, "group_size must be row or a number, found tensor"),
    ({"scale_dtype": "int8", "double_quant": True}, "scale_dtype must be float32, found int8"),
    ({"bits": 4, "group_size": 32, "scale_dtype": "float16", "fit": "ggml", "levels": "full"}, "is none of them.*levels narrow"),
])  # fmt: skip
def test_a_scheme_checks_itself(values, message):
    with pytest.raises(InputError, match=message):
        Scheme.from_dict(values)


def test_labels_name_what_is_not_the_default():
    assert Scheme(4, 64, levels="full", scale_dtype="int8").label == "int4 g64 full i8"
    assert Scheme(4, 32, False, zeros="whole", scale_dtype="float16", fit="mse").label == "int4 g32 asym whole fp16 mse"
