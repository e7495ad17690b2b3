"""Products of float32 by either library: both equal float64's, and the choice between them is one of facts."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT
from torch.nn import functional

from quant.errors import InputError
from quant.kernels import cpu, reference
from quant.runners import open_runner
from quant.speed.environment import environment
from quant.tensor import products
from quant.tensor.qtensor import quantize
from quant.tensor.scheme import Scheme

AMD, INTEL = "vendor_id\t: AuthenticAMD\nflags\t\t: fma avx2 avx512f", "vendor_id\t: GenuineIntel\nflags\t\t: fma avx2 avx512f"
# Layouts of a matrix [rows, columns] with random elements.
LAYOUTS = {
    "rows": lambda rows, columns: torch.randn(rows, columns),
    "columns": lambda rows, columns: torch.randn(columns, rows).T,
    "part": lambda rows, columns: torch.randn(rows, columns + 7)[:, 3 : columns + 3],
    "part of columns": lambda rows, columns: torch.randn(columns, rows + 9)[:, :rows].T,
    "every second": lambda rows, columns: torch.randn(rows, 2 * columns)[:, ::2],
    "one row": lambda rows, columns: torch.randn(1, columns).expand(rows, columns),
}


both = pytest.mark.usefixtures("library")


@pytest.fixture(params=products.LIBRARIES)
def library(request, monkeypatch):
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(products, "LIBRARY", request.param)


def assert_near(found, x, weight, bias=None):
    """Within a few roundings of each sum's terms."""
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    size = functional.linear(x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs())
    assert found.dtype == torch.float32 and found.shape == exact.shape
    assert ((found - exact).abs() <= 8 * 2**-24 * size).all()


@both
@pytest.mark.parametrize("rows, columns, outputs", [
    (1, 64, 64), (7, 96, 8), (8, 8, 8), (33, 129, 517), (64, 256, 768), (300, 5, 40), (0, 16, 16), (257, 1, 19), (16, 2048, 9),
])  # fmt: skip
def test_linear_equals_float64(rows, columns, outputs):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, columns), torch.randn(outputs, columns), torch.randn(outputs)
    assert_near(products.linear(x, weight), x, weight)
    assert_near(products.linear(x, weight, bias), x, weight, bias)
    assert_near(products.linear(x.view(1, rows, columns), weight, bias)[0], x, weight, bias)
    assert_near(products.product(x, weight.T.contiguous()), x, weight)


@both
@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("of_weight", LAYOUTS)
def test_any_layout(of_x, of_weight):
    """oneDNN's plain loop, which it takes for some layouts, is thousands of times slower: this test would take minutes."""
    torch.manual_seed(0)
    x, weight = LAYOUTS[of_x](256, 384), LAYOUTS[of_weight](512, 384)
    assert_near(products.linear(x, weight), x, weight)


@both
def test_other_operands_are_torchs():
    x, weight = torch.randn(16, 32), torch.randn(24, 32)
    assert torch.equal(products.linear(x.double(), weight.double()), functional.linear(x.double(), weight.double()))
    assert torch.equal(products.linear(x.bfloat16(), weight.bfloat16()), functional.linear(x.bfloat16(), weight.bfloat16()))
    learned = weight.clone().requires_grad_()
    products.linear(x, learned).sum().backward()
    assert torch.allclose(learned.grad, x.sum(0).expand(24, 32), atol=1e-5)
    with pytest.raises(RuntimeError, match="shapes"):
        products.linear(x, torch.randn(24, 31))


@both
def test_the_same_bytes_again_and_in_other_threads():
    torch.manual_seed(0)
    x, weight, threads = torch.randn(200, 256), torch.randn(1000, 256), torch.get_num_threads()

    def once(_):
        with products.FastProducts():
            return functional.linear(x, weight)

    torch.set_num_threads(1)
    try:
        first = once(0)
        with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            assert all(torch.equal(first, other) for other in pool.map(once, range(40)))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_within_the_mode_a_models_products_are_those_of_the_library(monkeypatch):
    monkeypatch.setattr(products, "LIBRARY", "onednn")
    taken = []
    monkeypatch.setattr(products, "linear", lambda x, weight, bias=None: taken.append((x, weight, bias)) or "taken")
    x, weight, bias = torch.randn(4, 10, 32), torch.randn(24, 32), torch.randn(24)
    with products.FastProducts():
        found = [functional.linear(x, weight, bias), torch.addmm(bias, x[0], weight.T), x @ weight.T, torch.matmul(x, weight.T),
                 x[0].mm(weight.T), torch.nn.Linear(32, 24)(x)]
        assert found == ["taken"] * 6
        others = [torch.bmm(x, x.mT), x @ x.mT, torch.addmm(x[0, :, :10], x[0], x[0].T),
                  torch.addmm(bias, x[0], weight.T, beta=2)]
    assert all(isinstance(other, torch.Tensor) for other in others)
    assert isinstance(functional.linear(x, weight), torch.Tensor), "the mode ends"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_gives_the_same_logits(make_model, monkeypatch, family):
    runner, tokens = open_runner(make_model(family)), torch.arange(3, 51).view(2, 24)
    found = {}
    for name in products.LIBRARIES if torch.backends.mkldnn.is_available() else ("torch",):
        monkeypatch.setattr(products, "LIBRARY", name)
        found[name] = runner.logits(tokens)
        assert torch.equal(found[name], runner.logits(tokens))
    first = found["torch"]
    assert all((first - other).abs().max() <= 1e-5 * first.abs().max() for other in found.values())


@both
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(4, 64), Scheme(4, 64, codebook="nf4"), Scheme(3, 32, symmetric=False)],
                         ids=lambda scheme: scheme.label)
def test_many_rows_of_a_quantized_weight(monkeypatch, scheme):
    """In tiles of a few rows, of which the last is smaller."""
    torch.manual_seed(0)
    monkeypatch.setattr(cpu, "TILE", 192 * 40)
    weight, x, bias = quantize(torch.randn(101, 192), scheme), torch.randn(3, 19, 192), torch.randn(101)
    exact = reference.Matmul(weight)(x.double(), bias.double())
    found = cpu.Matmul(weight)(x, bias)
    assert (found - exact).abs().max() <= 2**-20 * exact.abs().max()
    assert torch.equal(found, cpu.Matmul(weight)(x, bias))


def test_the_library_is_a_matter_of_facts():
    for wanted, cpuinfo in ((None, AMD), ("", AMD), ("onednn", INTEL)):
        assert products.chosen(wanted, cpuinfo, True) == "onednn"
    for wanted, cpuinfo in ((None, INTEL), (None, AMD.replace(" avx512f", "")), (None, ""), ("torch", AMD)):
        assert products.chosen(wanted, cpuinfo, True) == "torch"
    assert products.chosen(None, AMD, False) == "torch"


@pytest.mark.parametrize("wanted, message", [("mkl", "expected torch or onednn, or nothing for the faster one"),
                                             ("onednn", "built without it; unset it or choose torch")])
def test_other_choices_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        products.chosen(wanted, AMD, False)


def test_a_wrong_choice_is_one_line():
    code = "from quant.command import run; run(lambda words: __import__('quant.tensor.products'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, products.VARIABLE: "mkl"})
    assert done.returncode and done.stderr.count("\n") == 1 and "QUANT_PRODUCTS is 'mkl'" in done.stderr


def test_both_libraries_are_chosen_by_the_environment():
    code = "import json; from quant.tensor import products; from quant.speed.environment import environment; " \
           "print(json.dumps([products.LIBRARY, environment()['cpu_products']]))"
    for name in products.LIBRARIES if torch.backends.mkldnn.is_available() else ("torch",):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={**os.environ, products.VARIABLE: name})
        assert json.loads(done.stdout) == [name, name]
    assert environment()["cpu_products"] == products.LIBRARY
