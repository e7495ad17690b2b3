"""Every kernel computes what the codes stand for: the difference from float64 is float32 rounding and nothing else."""

import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.compiled import threads
from quant.kernels import cpu, reference, rows_of_8, vectors
from quant.nn.modules import QLinear, QWeight
from quant.tensor.grids import grid_of
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme

SCHEMES = [
    *(Scheme(bits, size, symmetric) for bits in range(2, 9) for size in ("tensor", "row", 32) for symmetric in (True, False)),
    *(Scheme(4, size, codebook=codebook) for codebook in ("nf4", "fp4") for size in ("row", 8, 64)),
    Scheme(4, 64, codebook="nf4", double_quant=True), Scheme(8, 64, scale_dtype="bfloat16"), Scheme(4, 32, scale_dtype="float16"),
    Scheme(3, 32, codebook=(-1.0, -0.4, -0.1, 0.0, 0.2, 1.0)), Scheme(5, 6, symmetric=False), Scheme(4, 3), Scheme(8, 1),
    Scheme(4, 32, scale_dtype="float16", fit="ggml"),
    *(Scheme(bits, size, levels="full", scale_dtype=dtype) for bits in (2, 4, 8) for size, dtype in
      (("tensor", "float32"), ("row", "int8"), (32, "int8"), (64, "float16"))),
    *(Scheme(bits, size, False, zeros="whole", scale_dtype=dtype) for bits in (3, 4, 8) for size, dtype in
      (("tensor", "float32"), ("row", "int8"), (32, "int8"), (64, "float16"))),
    Scheme(4, 64, False, scale_dtype="int8"), Scheme(4, 64, codebook="nf4", scale_dtype="int8"),
    Scheme(4, 64, False, double_quant=True, zeros="whole"),
]  # fmt: skip
EACH = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(product, tensor, x, bias=None):
    """|y - exact| is within what rounding of float32 sums can make of it."""
    y, weight = product(x, bias), dequantize(tensor).double()
    exact = x.double() @ weight.T + (0 if bias is None else bias.double())
    rounding = (x.double().abs() @ weight.abs().T + (0 if bias is None else bias.double().abs())) * 2**-24
    assert y.dtype == x.dtype and y.shape == exact.shape
    # 16: sums are of a few hundred terms, whose errors add up like a random walk; 1 more for the rounding of the result
    assert ((y.double() - exact).abs() <= 16 * rounding + 1e-30).all()


@EACH
@pytest.mark.parametrize("make", [cpu.Matmul, reference.Matmul], ids=["cpu", "reference"])
def test_products_are_exact_but_for_rounding(scheme, make):
    for rows, columns in ((1, 192), (37, 192), (64, 384)):
        tensor = quantize(normal(rows, columns), scheme)
        product = make(tensor)
        for count in (1, 2, cpu.FEW_ROWS, cpu.FEW_ROWS + 1):
            check(product, tensor, normal(count, columns, seed=count), normal(rows, seed=9))


@pytest.mark.parametrize("columns", [512, 768, 832])
@pytest.mark.parametrize("size", [32, 64, 96, 128, 256, 384, 512, "row"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_blocks_may_have_several_groups_and_groups_several_blocks(bits, size, columns):
    for symmetric in (True, False):
        tensor = quantize(normal(9, columns), Scheme(bits, size, symmetric))
        check(cpu.Matmul(tensor), tensor, normal(1, columns, seed=1))


@pytest.mark.parametrize("columns", [1, 7, 31, 33, 101])
@pytest.mark.parametrize("bits", range(2, 9))
def test_odd_sizes(columns, bits):
    tensor = quantize(normal(5, columns), Scheme(bits))
    for count in (1, 3, 40):
        check(cpu.Matmul(tensor), tensor, normal(count, columns))


@EACH
@pytest.mark.parametrize("columns", [172, 31])
def test_rows_may_end_with_a_shorter_group(scheme, columns):
    for size in ({64, 24} if isinstance(scheme.group_size, int) and scheme.fit != "ggml" else {scheme.group_size}):
        tensor = quantize(normal(37, columns), scheme.override({"group_size": size}))
        product, rows = cpu.Matmul(tensor), torch.tensor([36, 0, 0, 17])
        for count in (1, 3, cpu.FEW_ROWS + 1):
            check(product, tensor, normal(count, columns, seed=count), normal(37, seed=9))
        assert torch.allclose(product.gather(rows), dequantize(tensor)[rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("has_bands", [True, False], ids=["bands", "tiles"])
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(4, 64, codebook="nf4")], ids=lambda scheme: scheme.label)
def test_any_number_of_rows(monkeypatch, scheme, has_bands):
    """Without bands, as on a processor without AVX-512."""
    if not has_bands:
        monkeypatch.setattr(cpu, "MULTIPLY_BANDS", None)
    tensor = quantize(normal(48, 128), scheme)
    product = cpu.Matmul(tensor)
    for count in (*range(1, 34), 64, 127, 300, cpu.PREPARED_ROWS, cpu.PREPARED_ROWS + 1):
        check(product, tensor, normal(count, 128, seed=count))
    assert product(normal(0, 128), None).shape == (0, 48)
    assert product(normal(2, 3, 128), None).shape == (2, 3, 48)


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 8), st.integers(1, 11), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(1, 150),
       st.integers(2, 40), st.integers(0, 999))
def test_bands_of_any_shape(bits, blocks, groups, symmetric, is_table, rows, count, seed):
    """Groups of 64 to 704 columns, some longer than a strip; weights of less than a band, or whose last one is not full."""
    size = 64 * blocks
    codebook = tuple(i**3 for i in range(-3, 1 << bits))[: 1 << bits] if is_table and bits <= 5 else "linear"
    scheme = Scheme(bits, size, symmetric or codebook != "linear", codebook=codebook)
    tensor = quantize(normal(rows, size * groups, seed=seed), scheme)
    check(cpu.Matmul(tensor), tensor, normal(count, size * groups, seed=seed + 1), normal(rows, seed=seed + 2))


@pytest.mark.parametrize("count", [2, 7, 40])
def test_the_number_of_threads_changes_nothing(count):
    product, x = cpu.Matmul(quantize(normal(300, 576), Scheme(4, 64, symmetric=False))), normal(count, 576)
    before, found = torch.get_num_threads(), []
    try:
        for threads_ in (1, 2, 3):
            torch.set_num_threads(threads_)
            found.append(product(x, None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_tiles_have_no_seam(monkeypatch):
    monkeypatch.setattr(cpu, "MULTIPLY_BANDS", None)
    monkeypatch.setattr(cpu, "TILE", 512)
    tensor = quantize(normal(50, 128), Scheme(4, 64, symmetric=False))
    check(cpu.Matmul(tensor), tensor, normal(40, 128))


@pytest.mark.parametrize("count", [1, 5, 40])
def test_activations_need_not_be_contiguous(count):
    tensor = quantize(normal(32, 64), Scheme())
    check(cpu.Matmul(tensor), tensor, normal(64, count).T)
    check(cpu.Matmul(tensor), tensor, normal(count, 128)[:, ::2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations_are_rounded_once_at_the_end(dtype):
    tensor, x = quantize(normal(32, 64), Scheme(4, 32)), normal(3, 64).to(dtype)
    product = cpu.Matmul(tensor)
    assert torch.equal(product(x, None), product(x.float(), None).to(dtype))


@pytest.mark.parametrize("group", [32, 64, 192])
def test_the_plain_loop_equals_the_shuffled_one(group):
    """What processors without the byte shuffle run."""
    tensor = quantize(normal(9, 192), Scheme(4, group, codebook="nf4"))
    x, codes, scales = normal(192), tensor.codes.numpy(), tensor.scales.scales.numpy()
    values = grid_of(tensor.scheme).values.numpy()
    ordered = rows_of_8.ordered(x.numpy(), 4)
    blocks = group // vectors.BLOCK
    plain = [rows_of_8.dot_plain(codes[row], ordered, values, scales[row], 192 // group, blocks) for row in range(9)]
    check(lambda *_: torch.tensor([plain], dtype=torch.float32), tensor, x[None])


def test_threads_of_python_may_use_one_weight_at_once():
    tensor = quantize(normal(64, 256), Scheme(4, 64))
    product = cpu.Matmul(tensor)
    inputs = [normal(1, 256, seed=seed) for seed in range(200)]
    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(inputs, pool.map(lambda x: product(x, None), inputs), strict=True):
            check(lambda *_, y=y: y, tensor, x)


@EACH
@pytest.mark.parametrize("make", [cpu.Matmul, reference.Matmul], ids=["cpu", "reference"])
def test_gathered_rows_are_those_of_the_weight(scheme, make):
    tensor, rows = quantize(normal(37, 192), scheme), torch.tensor([36, 0, 0, 17])
    assert torch.allclose(make(tensor).gather(rows), dequantize(tensor)[rows], rtol=1e-6, atol=1e-6)


def test_no_rows():
    product = cpu.Matmul(quantize(normal(8, 16), Scheme()))
    assert product.gather(torch.tensor([], dtype=torch.long)).shape == (0, 16)
    assert product(normal(0, 16), normal(8)).shape == (0, 8)


@pytest.mark.parametrize("rows", [[-1], [8], [0, 9, 1]])
def test_rows_that_are_not_there_are_refused(rows):
    product = cpu.Matmul(quantize(normal(8, 16), Scheme()))
    with pytest.raises(IndexError, match="of a weight with 8 rows"):
        product.gather(torch.tensor(rows))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tensor = quantize(normal(300, 128), Scheme())
        for count in (1, 3, 40):
            check(cpu.Matmul(tensor), tensor, normal(count, 128))
    finally:
        torch.set_num_threads(before)


def test_gradients_reach_the_activations():
    tensor = quantize(normal(8, 16), Scheme())
    weight = QWeight((8, 16), Scheme())
    weight.load_state_dict(tensor.tensors())
    x = normal(3, 16).requires_grad_()
    QLinear(weight)(x).sum().backward()
    assert torch.allclose(x.grad, dequantize(tensor).sum(0).expand(3, 16), atol=1e-5)


def test_new_codes_are_seen():
    linear = QLinear(QWeight((8, 16), Scheme()))
    assert not linear(normal(2, 16)).any()
    tensor = quantize(normal(8, 16), Scheme())
    linear.weight.load_state_dict(tensor.tensors())
    assert torch.allclose(linear(normal(2, 16)), normal(2, 16) @ dequantize(tensor).T, atol=1e-5)


LOOP = """
from numba import carray
from quant.compiled.threads import FIRST, claim, compiled_loop

@compiled_loop
def loop(job_pointer):
    carray(job_pointer, FIRST + 1)[FIRST] = claim(job_pointer)
"""


def test_a_compiled_loop_is_kept_on_disk_until_any_source_beside_it_changes(tmp_path):
    (tmp_path / "kept.py").write_text(LOOP)

    def loads_from_disk() -> int:
        spec = importlib.util.spec_from_file_location("kept", tmp_path / "kept.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.loop.cache_hits

    assert [loads_from_disk(), loads_from_disk()] == [0, 1]
    (tmp_path / "beside.py").write_text("# its functions may be compiled into the loop")
    threads.digest_of.cache_clear()
    assert loads_from_disk() == 0


# too long to be compiled into its callers
LONG = "\n".join(f"            total += (total >> {i % 7 + 1}) ^ (i * {i + 3})" for i in range(300))
TWO_LOOPS = f"""
import numpy, sys
from numba import carray, njit
from quant.compiled.threads import compiled_loop, run
def returning(number):
    @njit
    def returned(count):
        total = 0
        for i in range(count):
{LONG}
        return number if total else 0
    return returned
one, two = returning(1), returning(2)
@compiled_loop
def first(job):
    carray(job, 1)[0] = one(carray(job, 1)[0])
if 'second' in sys.argv:
    @compiled_loop
    def second(job):
        carray(job, 1)[0] = two(carray(job, 1)[0])
    for loop in (first, second):
        found = numpy.full(1, 9)
        run(loop.address, found.ctypes.data)
        print(loop.cache_hits, found[0])
"""


def test_a_loop_from_the_cache_lends_its_functions_to_no_other(tmp_path):
    """The first process compiles one loop; the next has it from the cache, and compiles another with a function of equal name."""
    (tmp_path / "two.py").write_text(TWO_LOOPS)
    for words in ([], ["second"], ["second"]):
        done = subprocess.run([sys.executable, tmp_path / "two.py", *words], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.stdout == "1 1\n1 2\n"


CHILD = """
import re, sys, torch
from pathlib import Path
from quant.kernels.cpu import Matmul
from quant.tensor.qtensor import QTensor, layout
from quant.tensor.scheme import Scheme
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def product(scheme, rows, columns):
    stored = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in layout((rows, columns), scheme).items()}
    return Matmul(QTensor.from_tensors(stored, (rows, columns), scheme))
for scheme in (Scheme(), Scheme(4, 64), Scheme(3, 64), Scheme(4, 64, codebook="nf4", double_quant=True)):
    small, large = product(scheme, 8, 4096), product(scheme, 4096, 4096)
    for count in (1, 3):
        x = torch.ones(count, 4096)
        small(x, None)
        before = peak()
        large(x, None)
        print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory of a process is read from /proc")
def test_decoding_allocates_no_dequantized_weight():
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=True)
    grown = [float(line) for line in re.findall(r"[\d.]+", done.stdout)]
    assert len(grown) == 8 and max(grown) < 4  # MiB; the weight would be 64


# Codes that begin behind a page which may not be read, or end before one.
FENCED = """
import ctypes, mmap, dataclasses, torch
from quant.kernels import cpu, precision
from quant.tensor.qtensor import quantize
from quant.tensor.scheme import Scheme
libc, page = ctypes.CDLL(None), mmap.PAGESIZE
for bits in range(2, 9):
    for group, columns in ((32, 96), (64, 320), (64, 512), (128, 768), ("row", 101)):
        tensor = quantize(torch.randn(35, columns), Scheme(bits, group))
        room = -(-tensor.codes.numel() // page) * page
        area = mmap.mmap(-1, room + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for fence in (start, start + page + room):
            assert libc.mprotect(ctypes.c_void_p(fence), page, 0) == 0
        for first in (page, page + room - tensor.codes.numel()):
            codes = torch.frombuffer(area, dtype=torch.uint8, count=tensor.codes.numel(), offset=first).view_as(tensor.codes)
            codes.copy_(tensor.codes)
            product = cpu.Matmul(dataclasses.replace(tensor, codes=codes))
            for choice in ("exact", "int8") if precision.HAS_INT8 else ("exact",):
                with precision.using(choice):
                    for count in (1, 2, 8, 40):
                        x = torch.randn(count, columns)
                        assert torch.equal(product(x, None), cpu.Matmul(tensor)(x, None))
            product.gather(torch.arange(35))
print("nothing else was read")
"""


def test_nothing_before_or_behind_the_codes_is_read():
    done = subprocess.run([sys.executable, "-c", FENCED], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "nothing else was read\n", done.stderr
