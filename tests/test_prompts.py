"""Products of prompts: exact, or rounded to bfloat16 where that is chosen; scoring is always exact."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT

from quant.compiled import threads
from quant.errors import InputError
from quant.kernels import cpu, decode, onednn, prompts, reference
from quant.kernels.frame import HEIGHT, ROWS, Y
from quant.model.artifact import write_artifact
from quant.model.recipe import Recipe
from quant.runners import open_runner
from quant.speed.environment import environment
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme

WITH, WITHOUT = "flags\t\t: avx2 avx512f avx512_bf16 sha_ni", "flags\t\t: avx2 avx512f"
SCHEMES = [Scheme(), Scheme(4, 64), Scheme(4, 64, codebook="nf4"), Scheme(3, 32, symmetric=False), Scheme(5, 48),
           Scheme(2, "tensor")]
schemes = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


@pytest.fixture
def rounded(monkeypatch):
    monkeypatch.setattr(prompts, "CHOICE", "bfloat16")


def weight_of(scheme: Scheme, rows: int = 101, columns: int = 192):
    torch.manual_seed(0)
    return quantize(torch.randn(rows, columns), scheme)


@pytest.mark.parametrize("columns", [192, 200])
@pytest.mark.parametrize("scheme", [*SCHEMES, *(Scheme(bits, 32) for bits in range(2, 9)), Scheme(4, 96, symmetric=False)],
                         ids=lambda scheme: scheme.label)
def test_tiles_are_what_the_gathered_rows_are(scheme, columns):
    """200 columns: a last group that is shorter, or rows that are no whole blocks."""
    weight = weight_of(scheme, columns=columns)
    matmul = cpu.Matmul(weight)
    rows = matmul.gather(torch.arange(101))
    assert (rows - dequantize(weight)).abs().max() <= 2**-22 * rows.abs().max()
    for loop, dtype in ((decode.to_float32, torch.float32), (decode.to_bfloat16, torch.bfloat16)):
        tile = torch.empty(weight.shape, dtype=dtype)
        job = threads.Job.from_buffer_copy(matmul._job)
        job[Y], job[ROWS] = tile.data_ptr(), len(tile)
        threads.run(loop.address, job)
        assert torch.equal(tile, rows.to(dtype))


@pytest.mark.skipif(not onednn.IS_POSSIBLE, reason="this processor has no AVX-512 with BF16")
@pytest.mark.parametrize("scheme", [*SCHEMES, *(Scheme(bits, 32) for bits in range(2, 9)), Scheme(4, 96, symmetric=False)],
                         ids=lambda scheme: scheme.label)
def test_panels_are_what_onednn_makes_of_the_tile(scheme):
    weight = weight_of(scheme, rows=208)
    if scheme.columns_per_group(192) % 32:
        return  # such a weight has no panels
    matmul, found = cpu.Matmul(weight), onednn.panels(208, 192)
    job = threads.Job.from_buffer_copy(matmul._job)
    job[Y], job[ROWS], job[HEIGHT] = found.address, 208, 32
    threads.run(cpu.TO_PANELS, job)
    tile = matmul.gather(torch.arange(208)).bfloat16()
    expected = torch.ops.mkldnn._reorder_linear_weight(tile, 64)
    one, other = (torch.frombuffer((ctypes.c_uint8 * (256 * 192 * 2)).from_address(torch.ops.mkldnn.data_ptr(tensor)),
                                   dtype=torch.bfloat16).view(4, 96, 64, 2)[:3].float() for tensor in (found.tensor, expected))
    assert ((one - other).abs() <= 2**-7 * other.abs()).all()  # a sum that lies between two may round to either
    assert (one != other).float().mean() < 2e-3


@pytest.mark.skipif(not onednn.IS_POSSIBLE, reason="this processor has no AVX-512 with BF16")
def test_another_order_of_onednn_is_noticed(monkeypatch):
    assert onednn._made(128, 64)
    monkeypatch.setattr("quant.kernels.panels.ROWS_OF_PANEL", 32)
    assert onednn._made(128, 64) is None


@pytest.mark.skipif(not onednn.IS_POSSIBLE, reason="this processor has no AVX-512 with BF16")
def test_threads_have_panels_of_their_own():
    mine = onednn.panels(64, 96)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(onednn.panels, 64, 96).result()
    assert onednn.panels(64, 96) is mine and others.address != mine.address


@pytest.mark.skipif(not onednn.IS_POSSIBLE, reason="this processor has no AVX-512 with BF16")
def test_many_shapes_hold_no_more_than_so_many_bytes(monkeypatch):
    monkeypatch.setattr(onednn, "MOST_HELD", 3 * 2 * 64 * 96)
    with ThreadPoolExecutor(1) as pool:
        found = [pool.submit(onednn.panels, rows, 96).result() for rows in (64, 128, 192, 64)]
    assert found[0] and found[1] and found[2] is None and found[3] is found[0]


@schemes
@pytest.mark.usefixtures("rounded")
@pytest.mark.parametrize("rows", [101, 160])
@pytest.mark.parametrize("order", ["panels", "matrix"])
@pytest.mark.parametrize("tile", [192 * 2 * 40, cpu.TILE], ids=["tiles", "one tile"])
def test_rounded_products_are_those_of_rounded_operands(monkeypatch, scheme, tile, order, rows):
    monkeypatch.setattr(cpu, "TILE", tile)
    if order == "matrix":
        monkeypatch.setattr(onednn, "panels", lambda *_: None)
    weight, x, bias = weight_of(scheme, rows), torch.randn(3, 19, 192), torch.randn(rows)
    found = cpu.Matmul(weight)(x, bias)
    a, b = x.bfloat16().double(), dequantize(weight).bfloat16().double()
    expected, size = a @ b.T, a.abs() @ b.abs().T
    assert found.dtype == torch.float32 and ((found - bias - expected).abs() <= 2**-8 * expected.abs() + 2**-18 * size).all()
    assert torch.equal(found, cpu.Matmul(weight)(x, bias)), "the same bytes again"
    without = cpu.Matmul(weight)(x, None)
    assert torch.equal(without, without.bfloat16().float()) and torch.equal(without + bias, found)


@pytest.mark.usefixtures("rounded")
def test_a_few_rows_are_never_rounded():
    weight, x = weight_of(Scheme()), torch.randn(cpu.FEW_ROWS, 192)
    assert (cpu.Matmul(weight)(x, None) - reference.Matmul(weight)(x.double(), None)).abs().max() < 1e-4


@pytest.mark.usefixtures("rounded")
def test_exact_is_of_the_thread_that_asks_for_it():
    @prompts.using("exact")
    def asks(_):
        return prompts.rounds()

    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(asks, range(50)))
        with prompts.using("exact"):
            assert not prompts.rounds() and all(pool.map(lambda _: prompts.rounds(), range(20)))
    assert prompts.rounds()


def test_scoring_is_exact_and_a_prompt_rounds_where_chosen(make_model, tmp_path, monkeypatch):
    write_artifact(make_model("gpt2"), Recipe(Scheme(), include=("*",)), tmp_path / "int8")
    runner, tokens = open_runner(tmp_path / "int8"), torch.arange(3, 51).view(2, 24)
    exact = runner.logits(tokens)
    monkeypatch.setattr(prompts, "CHOICE", "bfloat16")
    assert torch.equal(runner.logits(tokens), exact)
    with torch.inference_mode():
        rounded = runner.model(tokens, use_cache=False).logits
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_what_is_chosen():
    assert prompts.chosen(None, WITH) == prompts.chosen("", WITHOUT) == prompts.chosen("exact", WITHOUT) == "exact"
    assert prompts.chosen("bfloat16", WITH) == "bfloat16"
    assert environment()["cpu_prompts"] == prompts.CHOICE


@pytest.mark.parametrize("wanted, message", [("fast", "'fast'; expected exact or bfloat16"),
                                             ("bfloat16", "does not multiply; unset it or choose exact")])
def test_other_choices_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        prompts.chosen(wanted, WITHOUT)


def test_a_wrong_choice_is_one_line():
    code = "from quant.command import run; run(lambda words: __import__('quant.kernels.prompts'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, prompts.VARIABLE: "fast"})
    assert done.returncode and done.stderr.count("\n") == 1 and "QUANT_PROMPTS is 'fast'" in done.stderr
