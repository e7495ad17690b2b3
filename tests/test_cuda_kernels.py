"""The CUDA kernels compute what the codes stand for, as far as the dtype of the activations goes.

On a GPU the tests run there. Without one, a child process runs them in Triton's interpreter: the same kernels, executed by
numpy, slowly. The interpreter is chosen before triton is imported, so it can't be this process, where torch's models may
have imported it. It can't show that the kernels compile: two tests compile them for GPUs that need not be there.
"""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.benches import cuda as cuda_bench
from quant.errors import InputError
from quant.nn.modules import QLinear, QWeight
from quant.tensor.qtensor import QTensor, dequantize, layout, quantize
from quant.tensor.scheme import Scheme

triton = pytest.importorskip("triton", reason="triton, which is made for Linux, is not installed")

from quant.kernels import cuda  # noqa: E402  it imports triton
from quant.kernels.reference import Matmul as Reference  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
RUNS = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(),
                          reason="there is no CUDA GPU; test_all_in_the_interpreter runs this in a process of its own")
ON_GPU = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="there is no CUDA GPU")
NO_CHILD = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile, and starts no second one")

SCHEMES = [
    *(Scheme(bits, size, symmetric) for bits in (4, 8) for size in ("tensor", "row", 32) for symmetric in (True, False)),
    *(Scheme(bits, 64, symmetric) for bits in (2, 3, 5, 6, 7) for symmetric in (True, False)),
    Scheme(4, 64, codebook="nf4"), Scheme(4, "row", codebook="fp4"), Scheme(4, 64, codebook="nf4", double_quant=True),
    Scheme(8, 64, double_quant=True), Scheme(8, 64, scale_dtype="bfloat16"), Scheme(4, 32, False, scale_dtype="float16"),
    Scheme(3, 32, codebook=(-1.0, -0.4, -0.1, 0.0, 0.2, 1.0)), Scheme(4, 96, codebook=tuple(range(-5, 6))),
    Scheme(5, 6, symmetric=False), Scheme(4, 3), Scheme(4, 2), Scheme(8, 1), Scheme(4, 32, scale_dtype="float16", fit="ggml"),
    *(Scheme(bits, 64, levels="full", scale_dtype=dtype) for bits, dtype in ((4, "float32"), (8, "int8"), (3, "float16"))),
    *(Scheme(bits, 64, False, zeros="whole", scale_dtype=dtype) for bits, dtype in ((4, "float16"), (8, "int8"), (3, "int8"))),
    Scheme(4, 64, False, scale_dtype="int8"), Scheme(4, 64, codebook="nf4", scale_dtype="int8"),
    Scheme(4, "tensor", False, zeros="whole"), Scheme(4, 64, False, double_quant=True, zeros="whole"),
]  # fmt: skip
EACH = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(tensor: QTensor) -> QTensor:
    stored = {name: part.to(DEVICE) for name, part in tensor.tensors().items()}
    return QTensor.from_tensors(stored, tensor.shape, tensor.scheme)


def check(tensor: QTensor, x: torch.Tensor, bias: torch.Tensor | None = None, rounded: torch.dtype = torch.float32):
    """|y - exact| is within what rounding can make of it: of float32 sums; of the result to `rounded`, the dtype of the
    activations; and, where tensor cores take several rows, of the weights to it."""
    x = x.to(rounded)
    y = cuda.Matmul(moved(tensor))(x.to(DEVICE), None if bias is None else bias.to(DEVICE))
    assert y.dtype == rounded and y.device.type == DEVICE and y.shape == (*x.shape[:-1], tensor.shape[0])
    weight, start = dequantize(tensor).double(), torch.zeros(()) if bias is None else bias.double()
    exact = x.double() @ weight.T + start
    reach = x.double().abs() @ weight.abs().T + start.abs()
    # 16: sums are of a few hundred terms, whose errors add up like a random walk
    bound = 16 * 2**-24 * reach + 1e-30
    if rounded != torch.float32:
        bound += torch.finfo(rounded).eps * exact.abs()  # twice what the nearest would be: the interpreter cuts bfloat16 off
        if x[..., 0].numel() > 1:
            bound += torch.finfo(rounded).eps / 2 * reach + torch.finfo(rounded).tiny * x.double().abs().sum(-1, keepdim=True)
    assert ((y.cpu().double() - exact).abs() <= bound).all()


@RUNS
@EACH
def test_products_are_exact_but_for_rounding(scheme):
    for rows, columns in ((1, 192), (37, 384)):
        tensor = quantize(normal(rows, columns), scheme)
        for count in (1, 3):
            check(tensor, normal(count, columns, seed=count), normal(rows, seed=9))


@RUNS
@EACH
@pytest.mark.parametrize("columns", [172, 31])
def test_rows_may_end_with_a_shorter_group(scheme, columns):
    tensor = quantize(normal(9, columns), scheme)
    for count in (1, 3):
        check(tensor, normal(count, columns, seed=count), normal(9, seed=9))


@RUNS
@pytest.mark.parametrize("scheme", SCHEMES[::3], ids=lambda scheme: scheme.label)
def test_half_precision(scheme):
    tensor = quantize(normal(9, 192), scheme)
    for count in (1, 5):
        check(tensor, normal(count, 192), normal(9, seed=9), rounded=torch.float16)


@RUNS
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(4, 64, False)], ids=lambda scheme: scheme.label)
@pytest.mark.parametrize("count", [1, pytest.param(5, marks=pytest.mark.skipif(
    INTERPRETED, reason="Triton's interpreter does not multiply bfloat16; the kernel is that of float16 but for the dtype"))])
def test_bfloat16(scheme, count):
    check(quantize(normal(9, 192), scheme), normal(count, 192), normal(9, seed=9), rounded=torch.bfloat16)


@RUNS
@pytest.mark.parametrize("columns", [1, 7, 33, 96, 200, 257])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_odd_sizes(bits, columns):
    for rows, count in ((1, 1), (5, 1), (5, 2), (35, 17)):
        check(quantize(normal(rows, columns), Scheme(bits, symmetric=bits == 8)), normal(count, columns))


@RUNS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(4, 32, codebook="nf4")], ids=lambda scheme: scheme.label)
def test_any_number_of_rows(scheme, dtype):
    tensor = quantize(normal(130, 96), scheme)
    for count in (1, 2, 16, 17, 40, 65, 130):
        check(tensor, normal(count, 96, seed=count), rounded=dtype)
    product = cuda.Matmul(moved(tensor))
    assert product(torch.zeros(0, 96, device=DEVICE), None).shape == (0, 130)


@RUNS
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(4, 64, False), Scheme(3)], ids=lambda scheme: scheme.label)
def test_rows_longer_than_a_step(scheme):
    check(quantize(normal(3, 2 * cuda.ONE_ROW.columns + 64), scheme), normal(1, 2 * cuda.ONE_ROW.columns + 64))


@RUNS
@pytest.mark.parametrize("count", [1, 5, 40])
def test_activations_need_not_be_contiguous(count):
    tensor = quantize(normal(32, 64), Scheme())
    check(tensor, normal(64, count).T)
    check(tensor, normal(count, 128)[:, ::2])
    check(tensor, normal(2, 64, count).transpose(1, 2))


@RUNS
@settings(max_examples=20, deadline=None)
@given(bits=st.integers(2, 8), columns=st.integers(1, 350), size=st.integers(1, 70), rows=st.integers(1, 40),
       leading=st.sampled_from([(), (1,), (4,), (2, 9), (1, 1, 1)]), symmetric=st.booleans(), has_bias=st.booleans())
def test_any_shape(bits, columns, size, rows, leading, symmetric, has_bias):
    tensor = quantize(normal(rows, columns), Scheme(bits, size, symmetric))
    check(tensor, normal(*leading, columns, seed=1), normal(rows, seed=2) if has_bias else None)


@RUNS
def test_it_equals_the_reference_in_a_module():
    tensor, x = quantize(normal(24, 64), Scheme(4, 32, codebook="nf4")), normal(2, 7, 64)
    weight = QWeight((24, 64), tensor.scheme)
    weight.load_state_dict(tensor.tensors())
    linear = QLinear(weight, normal(24)).to(DEVICE)
    linear.weight.multiply_with(cuda.Matmul(linear.weight.qtensor))
    assert torch.allclose(linear(x.to(DEVICE)).cpu(), Reference(tensor)(x, normal(24)), rtol=1e-5, atol=1e-5)


@ON_GPU
def test_the_device_chooses_the_kernel():
    linear = QLinear(QWeight((8, 16), Scheme())).to("cuda")
    linear(torch.zeros(1, 16, device="cuda"))
    assert isinstance(linear.weight.matmul(), cuda.Matmul)


@ON_GPU
@pytest.mark.parametrize("count", [1, 300])
def test_no_dequantized_weight_is_allocated(count):
    product = cuda.Matmul(made_of_ones(Scheme(4, 64), "cuda"))
    x = torch.ones(count, 4096, device="cuda", dtype=torch.bfloat16)
    y = product(x, None)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    product(x, None)
    assert torch.cuda.max_memory_allocated() - before <= 2 * y.nbytes + 4096


@pytest.mark.slow
@NO_CHILD
def test_all_in_the_interpreter():
    done = subprocess.run([sys.executable, "-m", "pytest", "tests/test_cuda_kernels.py"], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 2 * len(SCHEMES)


@NO_CHILD
def test_without_triton_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("cuda_without_triton", cuda.__file__)
    with pytest.raises(InputError, match="triton, which is not installed; pip install triton, or set device to cpu"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def made_of_ones(scheme: Scheme, device: str) -> QTensor:
    shape = (4096, 4096)
    stored = {name: torch.ones(size, dtype=dtype, device=device) for name, (dtype, size) in layout(shape, scheme).items()}
    return QTensor.from_tensors(stored, shape, scheme)


def compiled(scheme: Scheme, count: int, dtype: torch.dtype, architecture: int):
    """The kernel as a GPU of that architecture would get it; Triton brings NVIDIA's assembler, and needs no GPU for it."""
    x, y = torch.zeros(count, 4096, dtype=dtype), torch.zeros(count, 4096, dtype=dtype)
    kernel, _, arguments = cuda.Matmul(made_of_ones(scheme, "cpu")).launch(x, torch.zeros(4096), y)
    options = {name: arguments.pop(name) for name in ("num_warps", "num_stages")}
    constants = {name: value for name, value in arguments.items() if name.isupper() or value is None}
    types = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.uint8: "*u8"}
    signature = {name: "constexpr" if name in constants else
                 types[arguments[name].dtype] if isinstance(arguments[name], torch.Tensor) else "i32"
                 for name in kernel.arg_names}  # fmt: skip
    # Tensors are aligned to 16 bytes; a launch would see it, and which numbers are multiples of 16.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name] != "constexpr"
               and (isinstance(arguments[name], torch.Tensor) or arguments[name] % 16 == 0)}  # fmt: skip
    source = triton.compiler.ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, triton.backends.compiler.GPUTarget("cuda", architecture, 32), options)


INT8, INT4, NF4, INT3 = Scheme(), Scheme(4, 64, False), Scheme(4, 64, codebook="nf4", double_quant=True), Scheme(3, 32)


@pytest.mark.slow
@NO_CHILD
@pytest.mark.parametrize("architecture", [80, 90], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize(("scheme", "count", "dtype"), [
    *((scheme, count, torch.bfloat16) for scheme in (INT8, INT4, NF4, INT3) for count in (1, 300)),
    (INT8, 16, torch.bfloat16), (INT4, 40, torch.bfloat16), (NF4, 300, torch.float16), (INT8, 1, torch.float32),
    (INT8, 16, torch.float32), (INT4, 300, torch.float32),
], ids=lambda value: getattr(value, "label", str(value).removeprefix("torch.")))  # fmt: skip
def test_it_compiles(architecture, scheme, count, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(scheme, count, dtype, architecture)
    code = kernel.asm["ptx"]
    assert len(kernel.asm["cubin"]) > 1000
    assert kernel.metadata.shared <= 99 * 1024  # what a program may have on the smallest of these GPUs
    uses_tensor_cores = "mma.sync" in code or "wgmma.mma_async" in code
    assert uses_tensor_cores == (count > 1 and dtype != torch.float32)
    assert "tf32" not in code


@NO_CHILD
@pytest.mark.parametrize(("scheme", "load"), [(INT8, "v4.b32"), (INT4, "v2.b32")], ids=["int8", "int4"])
def test_codes_are_read_in_whole_pieces(scheme, load, tmp_path, monkeypatch):
    """16 codes an instruction: bytes that are fetched one by one would cost more instructions than the product itself."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled(scheme, 1, torch.float32, 80).asm["ptx"]
    assert re.search(rf"ld\.global\S*\.{load}", code) and not re.search(r"ld\.global\S*\.b8", code)


@pytest.mark.slow
@NO_CHILD
def test_every_contestant_of_the_measurement_multiplies_with_the_same_weight():
    weight, x = 0.02 * normal(64, 128), normal(3, 128, seed=1).to(torch.bfloat16)
    exact = x.float() @ weight.T
    sizes = {}
    for name, make in cuda_bench.contestants(weight, "cpu").items():
        product, sizes[name] = make()
        assert (product(x) - exact).norm() < (0.02 if "8" in name or "16" in name else 0.15) * exact.norm(), name
    assert sizes == {"bfloat16": 16384, "int8 row": 8448, "int4 g64": 4608, "nf4 g64": 4608, "bnb int8": 8448, "bnb nf4": 4608}


@NO_CHILD
def test_the_table_of_the_measurement():
    found = {1: {"bfloat16": ([0.02, 0.04, 0.02], 32_000_000), "int8 row": ([0.01, 0.02, 0.02], 16_000_000)}}
    _, first, second = cuda_bench.table(found, 3200).splitlines()
    assert first.split() == ["1", "bfloat16", "20.0", "1.00", "±", "0.00", "1600", "50", "%"]
    assert second.split() == ["1", "int8", "row", "20.0", "2.00", "±", "0.00", "800", "25", "%"]


@NO_CHILD
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_the_measurement_says_that_there_is_no_gpu():
    with pytest.raises(InputError, match="no CUDA GPU here; run this on a machine with one"):
        cuda_bench.main([])
