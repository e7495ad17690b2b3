"""The same codes and the same scales, bit for bit, as the libraries that define the formats: 200 tensors or more each."""

import numpy
import pytest
import torch

from quant.errors import InputError
from quant.tensor import ggml
from quant.tensor.codebooks import CODEBOOKS
from quant.tensor.ggml_blocks import from_bytes, to_bytes
from quant.tensor.packing import unpack
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import GGML_TYPES, Scheme

SEEDS = range(200)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def weight(seed: int, multiple: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Odd numbers of rows, 1 to 5 times `multiple` columns; normal, heavy-tailed, tiny, with rows of zeros, or on a raster
    of eighths (where many weights lie half way between two codes)."""
    random = torch.Generator().manual_seed(seed)
    shape = (1 + seed % 9, multiple * (1 + seed % 5))
    normal = torch.randn(shape, generator=random)
    kinds = (normal, normal * 0.02, normal**5, normal * 1e-6, (normal * 8).round() / 8)
    w = kinds[seed % len(kinds)]
    if seed % 7 == 0:
        w[0] = 0
    return w.to(dtype)


def codes_of(tensor) -> torch.Tensor:
    return unpack(tensor.codes, tensor.scheme.bits, tensor.shape[-1])


@pytest.fixture(scope="module")
def functional():
    return pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("codebook", ["nf4", "fp4"])
def test_4_bit_tables_are_those_of_bitsandbytes(functional, codebook):
    for seed in SEEDS:
        group = (32, 64, 128)[seed % 3]
        w = weight(seed, group, DTYPES[seed % 3])
        packed, state = functional.quantize_4bit(w, blocksize=group, quant_type=codebook)
        ours = quantize(w, Scheme(bits=4, group_size=group, codebook=codebook))
        assert torch.equal(ours.scales.scales.flatten(), state.absmax), seed
        pairs = codes_of(ours).view(-1, 2)  # bitsandbytes holds the first of two codes high
        assert torch.equal(pairs[:, 0] << 4 | pairs[:, 1], packed.flatten()), seed
        assert torch.equal(state.code, torch.tensor(CODEBOOKS[codebook].values))
        if w.dtype == torch.float32:
            assert torch.equal(dequantize(ours), functional.dequantize_4bit(packed, state)), seed


@pytest.mark.parametrize("codebook", ["nf4", "fp4"])
def test_double_quantized_scales_are_those_of_bitsandbytes(functional, codebook):
    for seed in SEEDS:
        w = weight(seed, (64, 448, 1024)[seed % 3])  # up to 400 groups: more than one block of scales
        packed, state = functional.quantize_4bit(w, blocksize=64, quant_type=codebook, compress_statistics=True)
        ours = quantize(w, Scheme(bits=4, group_size=64, codebook=codebook, double_quant=True))
        assert torch.equal(ours.scales.scale_codes.flatten(), state.absmax), seed
        assert torch.equal(ours.scales.scale_scales, state.state2.absmax), seed
        assert torch.equal(ours.scales.scale_offset[0], state.offset), seed
        assert torch.equal(dequantize(ours), functional.dequantize_4bit(packed, state)), seed


def test_int8_by_rows_is_the_vectorwise_int8_of_bitsandbytes(functional):
    for seed in SEEDS:
        w = weight(seed, (7, 33, 64, 101)[seed % 4], DTYPES[seed % 2])
        codes, absmax, _ = functional.int8_vectorwise_quant(w)
        ours = quantize(w, Scheme(bits=8, group_size="row"))
        kept = absmax > 0  # bitsandbytes divides zero by zero in a row of zeros
        assert torch.equal((codes_of(ours).int() - 128)[kept], codes.int()[kept]), seed
        assert torch.equal(ours.scales.scales.flatten(), absmax / 127), seed
        assert not dequantize(ours)[~kept].any()


@pytest.mark.parametrize("name", GGML_TYPES)
def test_blocks_are_those_of_gguf(name):
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[name]
    for seed in SEEDS:
        w = weight(seed, 32)
        ours = quantize(w, ggml.scheme_of(name))
        expected = quants.quantize(w.numpy(), kind)
        assert numpy.array_equal(to_bytes(ours).numpy(), expected), seed
        again = from_bytes(torch.from_numpy(expected), ours.scheme).tensors()
        assert all(torch.equal(tensor, again[key]) for key, tensor in ours.tensors().items()), seed
        assert numpy.array_equal(dequantize(ours).numpy(), quants.dequantize(expected, kind)), seed


def test_other_schemes_have_no_blocks():
    with pytest.raises(InputError, match=r"int4 g32 .* expected fit ggml"):
        to_bytes(quantize(torch.ones(2, 32), Scheme(4, 32)))
