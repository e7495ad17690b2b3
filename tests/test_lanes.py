"""Products in vectors of 8 and of 16 floats: both are tested where a processor has both, and each has its own cache."""

import json
import os
import subprocess
import sys
from itertools import product

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.compiled import lanes
from quant.errors import InputError
from quant.kernels import cpu, reference, windows
from quant.speed.environment import environment
from quant.tensor.qtensor import quantize
from quant.tensor.scheme import Scheme

HAS_BOTH = lanes.chosen(None, lanes.features()) == 16
WIDE = {"avx2", "avx512f", "avx512bw", "avx512vl"}

# Every width with groups of each kind that has a function of its own, with tables and zeros, and sizes that are no whole blocks.
CHILD = """
import json, sys, torch
from quant.compiled import lanes, threads
from quant.kernels import cpu, loops, reference
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme
values = lambda count: tuple(i ** 3 / (count - 1) ** 3 for i in range(1 - count, count, 2))
schemes = [Scheme(bits, size, symmetric) for bits in range(2, 9) for size in (32, 64, 96, 128, 192, "row")
           for symmetric in (True, False)]
schemes += [Scheme(bits, size, codebook=values(2 ** bits)) for bits in (2, 3, 4, 5) for size in (32, 64, 128, "row")]
schemes += [Scheme(4, 64, codebook=name) for name in ("nf4", "fp4")]
worst, random = 0.0, torch.Generator().manual_seed(1)
for scheme in schemes:
    for rows, columns in ((1, 384), (37, 384), (5, 100), (3, 31)):
        tensor, x = quantize(torch.randn(rows, columns, generator=random), scheme), torch.randn(1, columns, generator=random)
        size = dequantize(tensor).double().abs() @ x[0].double().abs()
        exact = reference.Matmul(tensor)(x.double(), None)[0]
        worst = max(worst, float(((cpu.Matmul(tensor)(x, None)[0] - exact).abs() / size).max()))
print(json.dumps({"lanes": lanes.LANES, "worst": worst, "hits": loops.multiply_row.cache_hits, "vectors": lanes.description()}))
"""


def child(folder, **variables):
    """What CHILD prints in a process of its own, whose cache is a folder."""
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **variables})
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


@pytest.mark.skipif(not HAS_BOTH, reason="this processor has no AVX-512")
def test_both_widths_equal_the_reference_and_neither_loads_the_others_code(tmp_path):
    for count, hits in ((16, 0), (8, 0), (16, 1), (8, 1)):
        found = child(tmp_path, QUANT_LANES=str(count))
        assert (found["lanes"], found["hits"]) == (count, hits)
        assert found["worst"] < 16 * 2**-24


@pytest.mark.skipif("avx2" not in lanes.features(), reason="pretends that the processor is one of x86 with AVX2")
def test_the_cache_of_one_processor_serves_no_other(tmp_path):
    """A processor with AVX-512 fills the cache, then one without it takes the same checkout."""
    child(tmp_path)
    features = "+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+sse4.2,+ssse3,+popcnt"
    found = child(tmp_path, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=features)
    assert (found["lanes"], found["hits"], found["vectors"]) == (8, 0, "8 floats (AVX2)")
    assert found["worst"] < 16 * 2**-24


def test_the_widest_vectors_that_the_processor_has_are_taken():
    assert lanes.chosen(None, WIDE) == lanes.chosen("", WIDE) == lanes.chosen("16", WIDE) == 16
    assert lanes.chosen("8", WIDE) == lanes.chosen(None, {"avx2"}) == lanes.chosen(None, set()) == 8
    assert lanes.chosen(None, WIDE - {"avx512vl"}) == 8


@pytest.mark.parametrize("wanted, message", [("12", "expected 8 or 16"), ("wide", "expected 8 or 16"), ("16", "lacks avx512f")])
def test_other_widths_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        lanes.chosen(wanted, {"avx2"})


def test_the_environment_names_the_vectors():
    assert environment()["cpu_vectors"] == lanes.description()
    assert lanes.description().startswith(f"{lanes.LANES} floats")


@pytest.mark.parametrize("bits, size", list(product(range(2, 9), (32, 64))))
def test_every_code_of_a_block_has_one_lane(bits, size):
    places = [windows.code_of(bits, size, 16, vector, lane) for vector in range(size // 16) for lane in range(16)]
    assert sorted(places) == list(range(size))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(1, 12), st.integers(1, 6), st.booleans(), st.integers(1, 40), st.integers(0, 999))
def test_any_number_of_groups_and_blocks(bits, blocks, groups, symmetric, rows, seed):
    random = torch.Generator().manual_seed(seed)
    scheme = Scheme(bits, 32 * blocks, symmetric)
    tensor = quantize(torch.randn(rows, 32 * blocks * groups, generator=random), scheme)
    x = torch.randn(1, 32 * blocks * groups, generator=random)
    exact = reference.Matmul(tensor)(x.double(), None)
    size = reference.Matmul(tensor).weight.dequantize_rows(slice(0, rows)).double().abs() @ x[0].double().abs()
    assert ((cpu.Matmul(tensor)(x, None) - exact).abs()[0] <= 16 * 2**-24 * size).all()
