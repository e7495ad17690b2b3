"""llama.cpp's K-quants as grids of this project: their bytes, and what they stand for to gguf and llama.cpp."""

import ctypes
from functools import cache

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import InputError
from quant.tensor.ggml import scheme_of, type_of
from quant.tensor.ggml_blocks import from_bytes, to_bytes
from quant.tensor.groups import store_groups, times_rows
from quant.tensor.qtensor import dequantize, layout, quantize
from quant.tensor.scheme import GGML_TYPES, K_TYPES, Scheme

K_QUANTS = pytest.mark.parametrize("name", K_TYPES)
EVERY = pytest.mark.parametrize("name", [*GGML_TYPES, *K_TYPES])


def block_bytes(name):
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[name]]


def random_blocks(name, rows, seed):
    """Any bytes at all, but with finite float16 numbers: a half with all exponent bits set is made smaller."""
    size, count = block_bytes(name)
    data = torch.from_numpy(numpy.random.default_rng(seed).integers(0, 256, (rows * 2, count), dtype=numpy.uint8))
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,),
              "Q5_0": (0,), "Q4_1": (0, 2), "Q5_1": (0, 2)}[name]
    for place in places:
        data[:, place + 1] &= 0xBF
    return data.view(rows, -1), 2 * size


@EVERY
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_bytes_are_read_as_gguf_reads_them_and_written_back(name, seed):
    from gguf import GGMLQuantizationType, quants

    data, columns = random_blocks(name, 3, seed)
    tensor = from_bytes(data, scheme_of(name, "mse"))
    assert tensor.shape == (3, columns)
    assert torch.equal(to_bytes(tensor), data)
    assert numpy.array_equal(dequantize(tensor).numpy(), quants.dequantize(data.numpy(), GGMLQuantizationType[name]))


@cache
def ggml():
    from quant.gguf.library import library_folder

    try:
        return ctypes.CDLL(str(next(library_folder().glob("libggml-base.*"))))
    except (InputError, StopIteration, OSError) as error:
        pytest.skip(f"needs llama.cpp's library: {error}")


@EVERY
def test_llama_cpp_reads_the_same_values(name):
    data, columns = random_blocks(name, 16, 7)
    ours = dequantize(from_bytes(data, scheme_of(name, "mse"))).numpy()
    found = numpy.empty((16, columns), dtype=numpy.float32)
    function = getattr(ggml(), f"dequantize_row_{name[0].lower() + name[1:]}")
    function.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
    function.restype = None
    function(data.numpy().ctypes.data, found.ctypes.data, found.size)
    if "1" in name or name in ("Q2_K", "Q4_K", "Q5_K"):  # a compiler may fuse the product with the sum that follows
        size = numpy.abs(ours).max(initial=0)
        assert numpy.allclose(found, ours, rtol=1e-6, atol=1e-6 * size)
    else:
        assert numpy.array_equal(found, ours)


@K_QUANTS
@pytest.mark.parametrize("fit", ["range", "mse"])
def test_a_weight_survives_its_bytes_and_comes_near(name, fit):
    from gguf import GGMLQuantizationType, quants

    weight = torch.randn(5, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[1] = 0
    weight[2] = weight[2].abs()
    tensor = quantize(weight, scheme_of(name, fit), torch.rand(512))
    data = to_bytes(tensor)
    assert 8 * data.numel() / weight.numel() == 8 * block_bytes(name)[1] / 256
    assert sum(part.numel() * part.element_size() for part in tensor.tensors().values()) == data.numel()
    assert {key: (part.dtype, tuple(part.shape)) for key, part in tensor.tensors().items()} == layout((5, 512), tensor.scheme)
    assert numpy.array_equal(dequantize(tensor).numpy(), quants.dequantize(data.numpy(), GGMLQuantizationType[name]))
    assert not dequantize(tensor)[1].any()
    bits = tensor.scheme.bits
    assert (dequantize(tensor) - weight)[[0, 2]].square().mean() < (0.4 if fit == "range" else 0.3) * 0.02**2 * 4.0 ** (2 - bits)


@K_QUANTS
def test_what_is_stored_is_stored_so_again(name):
    scheme = scheme_of(name)
    stored = quantize(torch.randn(4, 512, generator=torch.Generator().manual_seed(1)), scheme).groups
    again = store_groups(stored.scale_values(), stored.zero_values(), scheme)
    assert torch.equal(again.scale_values(), stored.scale_values())
    if not scheme.symmetric:
        assert torch.equal(again.zero_values(), stored.zero_values())


@K_QUANTS
def test_rows_can_be_scaled_without_their_codes(name):
    groups = quantize(torch.randn(3, 256, generator=torch.Generator().manual_seed(2)), scheme_of(name)).groups
    scaled = times_rows(groups, torch.tensor([1.0, 2.0, 0.5]))
    assert torch.equal(scaled.scale_values(), groups.scale_values() * torch.tensor([[1.0], [2.0], [0.5]]))


@K_QUANTS
def test_kernels_multiply_with_nested_scales(name):
    from quant.kernels import cpu, reference

    tensor = quantize(torch.randn(40, 512, generator=torch.Generator().manual_seed(3)), scheme_of(name))
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(4))
    for rows in (x, x[:1]):
        assert torch.allclose(cpu.Matmul(tensor)(rows, None), reference.Matmul(tensor)(rows, None), rtol=1e-4, atol=1e-3)


def test_schemes_and_types():
    assert [type_of(scheme_of(name, "mse")) for name in (*GGML_TYPES, *K_TYPES)] == [*GGML_TYPES, *K_TYPES]
    assert type_of(Scheme(4, 64, scale_dtype="float16")) is None
    assert type_of(Scheme(4, 32)) is None
    with pytest.raises(InputError, match=r"scale_dtype nested is that of Q2_K, .* int4 g64 nested is none of them"):
        Scheme(4, 64, scale_dtype="nested")
    with pytest.raises(InputError, match=r"a row of 320 weights is not whole blocks of 256"):
        layout((2, 320), scheme_of("Q4_K"))
