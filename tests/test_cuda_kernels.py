"""The CUDA kernels compute what the codes stand for, as far as the dtype of the activations goes.

On a GPU the tests run there. Without one, a child process runs them in Triton's interpreter: the same kernels, executed by
numpy, slowly. The interpreter is chosen before triton is imported, so it can't be this process, where torch's models may
have imported it. It can't show that the kernels compile: two tests compile them for GPUs that need not be there.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import InputError
from quant.nn.modules import QLinear, QWeight
from quant.tensor.qtensor import QTensor, dequantize, layout, quantize
from quant.tensor.scheme import Scheme

triton = pytest.importorskip("triton", reason="triton, which is made for Linux, is not installed")

from quant.benches.cuda import __main__ as cuda_command  # noqa: E402
from quant.benches.cuda import goals as cuda_goals  # noqa: E402
from quant.benches.cuda import model as cuda_model  # noqa: E402
from quant.benches.cuda import products as cuda_products  # noqa: E402
from quant.benches.cuda import tuning as cuda_tuning  # noqa: E402
from quant.benches.cuda import whole as cuda_bench  # noqa: E402  it imports triton
from quant.kernels import cuda  # noqa: E402
from quant.kernels.cuda import matmul  # noqa: E402
from quant.kernels.cuda.blocks import DEFAULT, DENSE, FEW, TABLE, TILES, Blocks, Entry, blocks_for  # noqa: E402
from quant.kernels.operands import Operands  # noqa: E402
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


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """In the interpreter every program costs milliseconds: fewer and larger ones, by the same ways as those of the table."""
    if INTERPRETED:
        sizes = {FEW: 64, TILES: 16, DENSE: 64}
        larger = {most: {bits: replace(blocks, n=sizes[blocks.way], programs=1) for bits, blocks in by_bits.items()}
                  for most, by_bits in DEFAULT.blocks.items()}
        matmul.use("", Entry("for the interpreter", larger))
    yield
    if INTERPRETED:
        TABLE.clear()
        matmul.plan_for.cache_clear()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(tensor: QTensor) -> QTensor:
    stored = {name: part.to(DEVICE) for name, part in tensor.tensors().items()}
    return QTensor.from_tensors(stored, tensor.shape, tensor.scheme)


def check(tensor: QTensor, x: torch.Tensor, bias: torch.Tensor | None = None, rounded: torch.dtype = torch.float32,
          blocks: Blocks | None = None):
    """|y - exact| is within what rounding can make of it: of float32 sums; of the result to `rounded`, the dtype of the
    activations; and of the weights to it, but for few rows."""
    x = x.to(rounded)
    bias_there = None if bias is None else bias.to(DEVICE)
    y = matmul.multiply(x.to(DEVICE), bias_there, Operands.of(moved(tensor)), blocks)
    assert y.dtype == rounded and y.device.type == DEVICE and y.shape == (*x.shape[:-1], tensor.shape[0])
    weight, start = dequantize(tensor).double(), torch.zeros(()) if bias is None else bias.double()
    exact = x.double() @ weight.T + start
    reach = x.double().abs() @ weight.abs().T + start.abs()
    # 16: sums are of a few hundred terms, whose errors add up like a random walk
    bound = 16 * 2**-24 * reach + 1e-30
    if rounded != torch.float32:
        bound += torch.finfo(rounded).eps * exact.abs()  # twice what the nearest would be: the interpreter cuts bfloat16 off
        way = (blocks or blocks_for("", x[..., 0].numel(), tensor.scheme.bits)).way
        if way != FEW:
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
    columns = 2 * blocks_for("", 1, scheme.bits).columns + 64
    check(quantize(normal(3, columns), scheme), normal(1, columns))


# A program computes few outputs and few columns, so that small matrices make several, divide their columns, and write in tiles.
WAYS = {
    "few rows": Blocks(FEW, n=4, columns=32, programs=1), "few rows in parts": Blocks(FEW, n=2, columns=32, programs=12),
    "tiles": Blocks(TILES, n=16, columns=32, programs=1), "tiles in parts": Blocks(TILES, n=16, columns=32, programs=40),
    "dense": Blocks(DENSE, n=4, columns=64), "dense in tiles": Blocks(DENSE, n=4, columns=64, scratch=5000),
}


@RUNS
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheme", [
    Scheme(), Scheme(4, 64, codebook="nf4"), Scheme(3, 64, False), Scheme(2, 32, False, zeros="whole"), Scheme(6, 7),
], ids=lambda scheme: scheme.label)  # fmt: skip
def test_every_way_gives_the_same(scheme, way):
    blocks = WAYS[way]
    tensor, bias = quantize(normal(11, 192), scheme), normal(11, seed=9)
    for count in (1, 6, 19):
        if blocks.way != FEW or count <= matmul.MOST_FEW_ROWS:
            check(tensor, normal(count, 192, seed=count), bias, rounded=torch.float16, blocks=blocks)
            check(tensor, normal(count, 192, seed=count), bias if count > 1 else None, blocks=blocks)


@RUNS
def test_a_row_in_parts_gives_the_same_bytes_again():
    o, x = Operands.of(moved(quantize(normal(8, 4096), Scheme(4, 64)))), normal(1, 4096).to(DEVICE)
    blocks = Blocks(FEW, n=4, columns=512, programs=64)
    assert matmul.plan(matmul.shape_of(o, 1), blocks).parts == 4
    first, second = (matmul.multiply(x, None, o, blocks) for _ in range(2))
    assert torch.equal(first, second)


@NO_CHILD
@pytest.mark.parametrize(("count", "way"), [(1, FEW), (8, FEW), (9, TILES), (32, TILES), (33, DENSE), (5000, DENSE)])
def test_the_table_has_a_way_for_any_number_of_rows(count, way):
    for bits in range(2, 9):
        assert blocks_for("", count, bits).way == way
        assert blocks_for("sm_00", count, bits, is_float32=True).way == (DENSE if way == TILES else way)


@NO_CHILD
def test_every_entry_of_the_table_says_where_it_came_from():
    for entry in (DEFAULT, *TABLE.values()):
        assert entry.source
        assert list(entry.blocks)[-1] is None and all(8 in by_bits for by_bits in entry.blocks.values())
        assert all(most <= matmul.MOST_FEW_ROWS for most, by_bits in entry.blocks.items()
                   for blocks in by_bits.values() if blocks.way == FEW)


@NO_CHILD
def test_a_small_matrix_makes_enough_programs():
    few = Blocks(FEW, n=8, columns=1024, programs=256)
    shape = {"columns": 8192, "bits": 4, "offset": 8, "group": 64, "is_words": True}
    large, small, smallest = (matmul.plan(matmul.Shape(1, rows, **shape), few) for rows in (4096, 512, 32))
    assert (large.grid, large.parts) == ((512, 1, 1), 1)
    assert (small.grid, small.constants["BLOCK_N"]) == ((256, 1, 1), 2)
    assert (smallest.grid, smallest.constants["BLOCK_N"], smallest.part) == ((32, 4, 1), 1, 2048)  # two steps of each part


@NO_CHILD
@pytest.mark.parametrize(("scheme", "is_words", "piece"), [
    (Scheme(), True, 8), (Scheme(4, 64), True, 8), (Scheme(2, 32), True, 16), (Scheme(3, 64), True, 8), (Scheme(5, 64), True, 4),
    (Scheme(4, 12), False, 4), (Scheme(8, 1), False, 1), (Scheme(2, 8), False, 8),
], ids=lambda value: getattr(value, "label", str(value)))  # fmt: skip
def test_codes_are_read_as_words_where_groups_allow_it(scheme, is_words, piece):
    shape = matmul.shape_of(Operands.of(quantize(normal(4, 192), scheme)), 1)
    constants = matmul.plan(shape, Blocks(FEW)).constants
    assert (constants["WORDS"], constants["PIECE"]) == (is_words, piece)
    assert not matmul.shape_of(Operands.of(quantize(normal(4, 33), scheme)), 1).is_words, "a row is not whole words"

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
def test_no_more_than_the_scratch_memory_is_allocated(count):
    """All of torch's product included: cuBLAS has its workspace from the first call on."""
    product = cuda.Matmul(made_of_ones(Scheme(4, 64), "cuda"))
    x = torch.ones(count, 4096, device="cuda", dtype=torch.bfloat16)
    y = product(x, None)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    product(x, None)
    scratch = blocks_for(matmul.generation(x.device), count, 4)
    assert torch.cuda.max_memory_allocated() - before <= 2 * y.nbytes + 4096 + (scratch.scratch if scratch.way == DENSE else 0)


@ON_GPU
def test_a_compiled_product_is_replayed_from_a_cuda_graph():
    weight = QWeight((256, 128), Scheme(4, 64))
    weight.load_state_dict(quantize(normal(256, 128), Scheme(4, 64)).tensors())
    linear = QLinear(weight, normal(256)).to("cuda", torch.bfloat16)
    compiled = torch.compile(linear, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for count in (1, 1, 1, 8, 8, 8, 300, 300, 300):
            x = torch.randn(count, 128, device="cuda", dtype=torch.bfloat16)
            assert torch.equal(compiled(x), linear(x))


@NO_CHILD
def test_a_graph_takes_the_tensors_that_the_kernel_has():
    """Marked as static, so that a CUDA graph does not copy them; and made outside inference mode, though the product is in it."""
    tensor = quantize(normal(24, 64), Scheme(4, 32, double_quant=True))
    weight = QWeight((24, 64), tensor.scheme)
    weight.load_state_dict(tensor.tensors())
    with torch.inference_mode():
        weight.multiply_with(cuda.Matmul(weight.qtensor))
    seen, x = [], normal(3, 64)

    def backend(graph, inputs):
        seen.append((graph, inputs))
        return graph.forward

    with torch.no_grad():
        found = torch.compile(weight.multiply, fullgraph=True, backend=backend)(x, None)
    assert torch.allclose(found, Reference(tensor)(x, None), atol=1e-5)
    [(graph, inputs)] = seen
    assert {id(tensor) for tensor in weight.matmul().operands.tensors()} <= {id(given) for given in inputs}
    assert all(given._dynamo_static_input_type and not given.is_inference() for given in weight.matmul().operands.tensors())
    assert next(str(node.target) for node in graph.graph.nodes if node.op == "call_function").startswith("quant.multiply")


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


def compiled(scheme: Scheme, count: int, dtype: torch.dtype, architecture: int, blocks: Blocks | None = None):
    """The kernel as a GPU of that architecture would get it; Triton brings NVIDIA's assembler, and needs no GPU for it."""
    o = Operands.of(made_of_ones(scheme, "cpu"))
    blocks = blocks or blocks_for(f"sm_{architecture}", count, scheme.bits, dtype == torch.float32)
    if blocks.way == DENSE:
        kernel, _, given, constants = matmul.dequantizing(o, 0, torch.zeros(4096, 4096, dtype=dtype), blocks)
    else:
        found = matmul.plan(matmul.shape_of(o, count), blocks)
        kernel, constants = found.kernel, found.constants
        x, y = torch.zeros(count, 4096, dtype=dtype), torch.zeros(count, 4096, dtype=torch.float32 if found.parts > 1 else dtype)
        given = matmul.arguments(x, None if found.parts > 1 else torch.zeros(4096), y, o, found)
    arguments = dict(zip(kernel.arg_names, given, strict=False)) | constants
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


INT8, INT4, NF4 = Scheme(), Scheme(4, 64, False), Scheme(4, 64, codebook="nf4", double_quant=True)
INT3, INT2 = Scheme(3, 32), Scheme(2, 64)


@pytest.mark.slow
@NO_CHILD
@pytest.mark.parametrize("architecture", [80, 90], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize(("scheme", "count", "dtype"), [
    *((scheme, count, torch.bfloat16) for scheme in (INT8, INT4, NF4, INT3, INT2) for count in (1, 8, 16, 300)),
    (INT8, 24, torch.bfloat16), (INT4, 3, torch.float16), (NF4, 300, torch.float16), (INT8, 1, torch.float32),
    (INT8, 16, torch.float32), (Scheme(5, 7), 2, torch.bfloat16),
], ids=lambda value: getattr(value, "label", str(value).removeprefix("torch.")))  # fmt: skip
def test_it_compiles(architecture, scheme, count, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(scheme, count, dtype, architecture)
    code = kernel.asm["ptx"]
    assert len(kernel.asm["cubin"]) > 1000
    assert kernel.metadata.shared <= 99 * 1024  # what a program may have on the smallest of these GPUs
    uses_tensor_cores = "mma.sync" in code or "wgmma.mma_async" in code
    assert uses_tensor_cores == (blocks_for("", count, scheme.bits, dtype == torch.float32).way == TILES)
    assert "tf32" not in code


@NO_CHILD
@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize(("scheme", "load"), [(INT8, "v2.b32"), (INT4, "b32"), (NF4, "b32"), (INT3, "b32"), (INT2, "b32")],
                         ids=["int8", "int4", "nf4", "int3", "int2"])
def test_codes_are_read_in_whole_words(scheme, load, count, tmp_path, monkeypatch):
    """Bytes that are fetched one by one would cost more instructions than the product itself."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled(scheme, count, torch.float32, 80).asm["ptx"]
    assert re.search(rf"ld\.global\S*\.{load}", code) and not re.search(r"ld\.global\S*\.b(8|16)\b", code)


@pytest.mark.slow
@NO_CHILD
def test_every_contestant_of_the_measurement_multiplies_with_the_same_weight():
    weight, x = 0.02 * normal(64, 128), normal(3, 128, seed=1).to(torch.bfloat16)
    exact = x.float() @ weight.T
    sizes, most = {}, {"8": 0.02, "f16": 0.02, "int3": 0.3, "int2": 0.7}
    for name, make in cuda_products.contestants(weight, "cpu").items():
        product, sizes[name] = make()
        bound = next((bound for word, bound in most.items() if word in name), 0.15)
        assert (product(x) - exact).norm() < bound * exact.norm(), name
    assert sizes == {"bf16": 16384, "int8 row": 8448, "int4 g64": 4608, "int4 g64 asym": 5120, "nf4 g64": 4608, "int3 g64": 3584,
                     "int2 g64": 2560, "bnb int8": 8448, "bnb nf4": 4608, "tinygemm int4 g64": 4608}


@RUNS
def test_the_check_of_the_measurement(monkeypatch):
    monkeypatch.setattr(cuda_bench, "CHECKED", [Scheme(4, 64), Scheme(3, 64, False)])
    monkeypatch.setattr(cuda_bench, "CHECKED_SHAPE", (7, 128))
    found = cuda_bench.check(DEVICE, (torch.float16, torch.float32))
    assert all(one["passes"] for one in found) and {one["way"] for one in found} == {FEW, TILES, DENSE, "table"}
    assert max(one["error"] for one in found) > 0


@NO_CHILD
def test_the_tables_of_the_measurement():
    found = {"bf16": {"us": {"1": 20.0, "8": 21.0}, "python_us": 30.0, "gb_per_s": 1600.0},
             "int8 row": {"us": {"1": 10.0, "8": 11.0}, "python_us": 40.0, "gb_per_s": 1700.0}}
    lines = cuda_goals.product_lines("64x32", found)
    assert lines[2] == "| product | 1 row | 8 rows | from Python | GB/s |"
    assert lines[4:] == ["| bf16 | 20.0 | 21.0 | 30 | 1600 |", "| int8 row | 10.0 | 11.0 | 40 | 1700 |", ""]
    rest = {"prefill_ms": 18.0, "steps_ms": 16.0, "peak_mib": 9.0, "weights_mib": 8.0}
    model = {"bf16": {**rest, "decode_ms": 3.0, "is_compiled": True}, "bnb": {**rest, "decode_ms": None, "is_compiled": False}}
    assert [line.split(" | ")[2] for line in cuda_goals.model_lines(model)[2:4]] == ["3.00", "not compiled"]


@NO_CHILD
def test_the_goals_of_the_measurement():
    us = {"bf16": {"1": 20, "8": 21, "512": 100, "2048": 300}, "int8 row": {"1": 10, "8": 11, "512": 110, "2048": 400},
          "int4 g64": {"1": 8, "8": 12, "512": 120, "2048": 310}, "tinygemm int4 g64": {"1": 7}, "int3 g64": {"1": 7}}
    compiled = {"is_compiled": True, "peak_mib": 100}
    model = {"bf16": {**compiled, "decode_ms": 3.0}, "int8": {**compiled, "decode_ms": 2.0, "may_take_mib": 120},
             "int4": {**compiled, "decode_ms": 1.2, "may_take_mib": 80}}
    found = {goal["goal"]: goal for goal in cuda_goals.goals({"s": {name: {"us": times} for name, times in us.items()}}, model)}
    passes = {name for name, goal in found.items() if goal["passes"]}
    assert set(found) - passes == {
        "s: 1 row of int4 g64 over the best of bf16, bnb nf4, tinygemm int4 g64", "s: 8 rows of int4 g64 over 1 row",
        "s: 2048 rows of int8 row over bf16", "s: 512 rows of int4 g64 over bf16", "compiled decoding, int8 over bf16",
        "peak memory of int4 over weights and one layer"}
    assert len(passes) == 7 and found["compiled decoding, int4 over bf16"]["found"] == pytest.approx(0.4)
    assert cuda_goals.goal_lines(list(found.values()))[-1] == "7 of 13 goals reached"
    assert cuda_goals.goals({}, {"bf16": compiled, "int8": {**compiled, "is_compiled": False}}) == [], "not compiled"


@NO_CHILD
def test_tuning_chooses_the_fastest_and_prints_what_the_table_takes():
    def time_us(blocks, rows, bits):
        if blocks.way == TILES:
            return None  # this GPU can't run them
        return {FEW: 10.0, DENSE: 30.0}[blocks.way] - blocks.n + rows / 100 + bits / 100

    entry, tried = cuda_tuning.tune(time_us, 10, lambda _: None, clock=lambda: 0.0)
    assert entry.blocks[1][4] == Blocks(FEW, n=16, columns=1024, warps=8)
    assert entry.blocks[64][8].way == entry.blocks[None][2].way == DENSE
    assert entry.source == "measured by quant.benches.cuda" and len(tried) == sum(
        len(list(cuda_tuning.candidates(most, bits))) for most in cuda_tuning.TIMED for bits in cuda_tuning.WIDTHS)
    pasted = eval("{" + "\n".join(cuda_tuning.lines_of("sm_90", entry)) + "}",
                  {"Entry": type(entry), "Blocks": Blocks, "FEW": FEW, "TILES": TILES, "DENSE": DENSE})
    assert pasted == {"sm_90": entry}


@NO_CHILD
def test_tuning_ends_in_time():
    seconds = iter(range(1000))
    entry, tried = cuda_tuning.tune(lambda *_: 1.0, 20, lambda _: None, clock=lambda: next(seconds))
    assert len(tried) == 20 and "candidates, for which time did not suffice" in entry.source
    assert list(entry.blocks) == [1, 2, 4, 8, 16, 64, None] and all(len(by_bits) == 4 for by_bits in entry.blocks.values())


@pytest.mark.slow
@NO_CHILD
def test_every_candidate_fits_a_gpu(tmp_path, monkeypatch):
    """The largest of each way, in the dtype that is tuned: 227 KiB of shared memory on an H100; others are told and left out."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for most in (8, 16, 64):
        for blocks in list(cuda_tuning.candidates(most, 4))[-5:]:
            assert compiled(Scheme(4, 64), most, torch.bfloat16, 90, blocks).metadata.shared <= 227 * 1024


@pytest.mark.slow
@NO_CHILD
def test_the_models_of_the_measurement(make_model, tmp_path):
    for name in cuda_model.ROWS:
        cuda_model.build(make_model("llama-tied"), name, tmp_path / name)
        found = cuda_model.measure(tmp_path / name, None, "cpu", prompt=16, tokens=2)
        assert found["prefill_ms"] > 0 and found["steps_ms"] > 0 and found["decode_ms"] is None and found["weights_mib"] > 0
        assert ("may_take_mib" in found) == (not name.startswith("bnb")), "of this project's artifacts"


@NO_CHILD
def test_the_whole_measurement_but_for_its_clock(monkeypatch, tmp_path, capsys, make_model):
    """Every part on tiny matrices of the CPU, with made-up times: nothing is missing when a GPU is at hand."""
    monkeypatch.setattr(cuda_products, "replayed_us", lambda _, x, *__: 10.0 + len(x) / 100)
    monkeypatch.setattr(cuda_products, "started_us", lambda *_: 50.0)
    monkeypatch.setitem(TABLE, "sm_00", DEFAULT)  # and gone again afterwards
    monkeypatch.setattr(cuda_products, "COPIES_BYTES", 10_000)
    for name, value in {"SHAPES": ((64, 128),), "TUNED_SHAPES": ((64, 128),), "ROWS": (1, 8, 512),
                        "generation": lambda _: "sm_00", "memory_read_gb_per_s": lambda _: 3000.0,
                        "check": lambda _: [{"passes": True}],
                        "write_random_model": lambda _, folder: folder.symlink_to(make_model("llama-tied"))}.items():
        monkeypatch.setattr(cuda_bench, name, value)
    for function in (cuda_bench.tune, cuda_bench.products, cuda_bench.model):
        monkeypatch.setattr(cuda_bench, function.__name__, partial(function, device="cpu"))
    monkeypatch.setattr(cuda_model, "PROMPT", 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda_bench, "environment", dict)
    monkeypatch.setattr(cuda_model, "ROWS", {"int8": cuda_model.ROWS["int8"]})
    cuda_bench.run_parts(cuda_command.PARTS, tmp_path / "cuda.json")
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert set(found) == {"environment", "generation", "memory_read_gb_per_s", "check", "tuning", "products", "model", "goals"}
    ours = {"bf16", *cuda_products.SCHEMES}
    assert ours <= set(found["products"]["64x128"]) <= ours | set(cuda_products.PEERS), "peers need what is only said to be there"
    assert set(found["model"]) == {"bf16", "int8"} and len(found["goals"]) == 2 + 2 + 6 * 2 + 1
    assert TABLE["sm_00"].source == "measured by quant.benches.cuda"
    shown = capsys.readouterr().out
    assert '"sm_00": Entry(' in shown and "**64x128**" in shown and "goals reached" in shown


@NO_CHILD
def test_the_arguments_of_the_measurement():
    assert cuda_command.parts("model,check") == ("check", "model")
    with pytest.raises(InputError, match="not some of check,tune,products,model"):
        cuda_command.main(["--parts", "all"])


@NO_CHILD
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_the_measurement_says_that_there_is_no_gpu():
    with pytest.raises(InputError, match="no CUDA GPU here; run this on a machine with one"):
        cuda_command.main([])
