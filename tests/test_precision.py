"""Products of several rows in another precision, where one is chosen: bfloat16, or activations in 8 bits; scoring is exact."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml
from conftest import EMBEDDED_TOKENS, ROOT

from quant.benches import precision as bench
from quant.compiled import threads
from quant.errors import InputError
from quant.kernels import cpu, decode, onednn, precision, reference
from quant.kernels.frame import HEIGHT, ROWS, Y
from quant.model.artifact import write_artifact
from quant.model.recipe import Recipe
from quant.runners import open_runner
from quant.speed.environment import environment
from quant.tensor.products import cpuinfo
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme
from quant.text.corpus import Corpus, write_corpus

WITH, WITHOUT = "flags\t\t: avx2 avx512f avx512_bf16 sha_ni", "flags\t\t: avx2 avx512f"
SCHEMES = [Scheme(), Scheme(4, 64), Scheme(4, 64, codebook="nf4"), Scheme(3, 32, symmetric=False), Scheme(5, 48),
           Scheme(2, "tensor")]
needs_int8 = pytest.mark.skipif(not precision.HAS_INT8, reason="this processor has no AVX-512 with VNNI")
schemes = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


@pytest.fixture
def rounded(monkeypatch):
    monkeypatch.setattr(precision, "CHOICE", "bfloat16")


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
    @precision.using("exact")
    def asks(_):
        return precision.current()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(asks, range(50))) == {"exact"}
        with precision.using("exact"):
            assert precision.current() == "exact" and set(pool.map(lambda _: precision.current(), range(20))) == {"bfloat16"}
    assert precision.current() == "bfloat16"


@pytest.mark.parametrize("choice", ["bfloat16", pytest.param("int8", marks=needs_int8)])
def test_scoring_is_exact_and_a_prompt_rounds_where_chosen(make_model, tmp_path, monkeypatch, choice):
    write_artifact(make_model("gpt2"), Recipe(Scheme(), include=("*",)), tmp_path / "int8")
    runner, tokens = open_runner(tmp_path / "int8"), torch.arange(3, 51).view(2, 24)
    exact = runner.logits(tokens)
    monkeypatch.setattr(precision, "CHOICE", choice)
    assert torch.equal(runner.logits(tokens), exact)
    with torch.inference_mode():
        rounded = runner.model(tokens, use_cache=False).logits
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_what_is_chosen():
    assert precision.chosen(None, WITH) == precision.chosen("", WITHOUT) == precision.chosen("exact", WITHOUT) == "exact"
    assert precision.chosen("bfloat16", WITH) == "bfloat16" and precision.chosen("int8", WITHOUT, has_int8=True) == "int8"
    assert precision.multiplies_int8(16, {"avx512f", "avx512vnni"})
    assert not precision.multiplies_int8(8, {"avx512vnni"}) and not precision.multiplies_int8(16, {"avx512f"})
    assert environment()["cpu_precision"] == precision.CHOICE


@pytest.mark.parametrize("wanted, message", [("fast", "'fast'; expected exact, bfloat16 or int8"),
                                             ("bfloat16", "does not multiply; unset it or choose exact"),
                                             ("int8", "needs vectors of 16 floats and AVX-512 VNNI; unset it or choose exact")])
def test_other_choices_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        precision.chosen(wanted, WITHOUT)


def test_a_wrong_choice_is_one_line():
    code = "from quant.command import run; run(lambda words: __import__('quant.kernels.precision'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, precision.VARIABLE: "fast"})
    assert done.returncode and done.stderr.count("\n") == 1 and "QUANT_PRECISION is 'fast'" in done.stderr


BANDED = [*(Scheme(bits, size) for bits in range(2, 9) for size in (64, "row")), Scheme(4, 128, symmetric=False),
          Scheme(6, 64, symmetric=False), Scheme(8, "tensor"), Scheme(3, 192), Scheme(4, 64, codebook="nf4"),
          Scheme(4, 64, codebook="fp4"), Scheme(3, 64, codebook=(-1.0, -0.4, -0.1, 0.0, 0.2, 1.0))]
banded = pytest.mark.parametrize("scheme", BANDED, ids=lambda scheme: scheme.label)


def in_8_bits(x: torch.Tensor) -> torch.Tensor:
    """Each 64 columns of a row rounded to 255 steps, as float64."""
    blocks = x.view(len(x), -1, 64)
    largest = blocks.abs().amax(2, keepdim=True)
    steps = (blocks * torch.where(largest == 0, 0.0, 127 / largest)).round()
    return (steps.double() * largest.double() / 127).view(x.shape)


@needs_int8
@banded
@pytest.mark.parametrize("count", [2, 3, 5, 8, 9, 23, 40])
@pytest.mark.parametrize("columns", [192, 576])
def test_products_in_8_bits_are_those_of_rounded_activations(scheme, count, columns):
    """101 rows: a last band that is not full. 576 columns: strips of several groups, and a last one that is shorter."""
    weight = weight_of(scheme, columns=columns)
    x, bias = torch.randn(count, columns), torch.randn(101)
    x[1, 64:128] = 0
    with precision.using("int8"):
        found = cpu.Matmul(weight)(x, bias)
        assert torch.equal(found, cpu.Matmul(weight)(x, bias)), "the same bytes again"
    stored, zeros = dequantize(weight).double(), weight.groups.zero_values()
    expected, size = in_8_bits(x) @ stored.T, x.double().abs() @ stored.abs().T
    allowed = 2**-20 * size
    if zeros is not None or scheme.codebook != "linear":  # zeros are added exactly; tables take 8 bits too
        allowed = 0.02 * size
        exact = x.double() @ stored.T
        assert (found - bias - exact).norm() <= 0.012 * exact.norm()
    assert ((found - bias - expected).abs() <= allowed + 1e-6).all()


@needs_int8
@banded
def test_a_single_row_is_never_rounded(scheme):
    weight, x = weight_of(scheme), torch.randn(1, 192)
    exact = cpu.Matmul(weight)(x, None)
    with precision.using("int8"):
        assert torch.equal(cpu.Matmul(weight)(x, None), exact)


@needs_int8
@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(5, 64, codebook=tuple(torch.linspace(-1, 1, 32).tolist())),
                                    Scheme(4, 96)], ids=lambda scheme: scheme.label)
@pytest.mark.parametrize("count", [2, 40])
def test_what_has_no_bands_is_multiplied_exactly(scheme, count):
    weight, x = weight_of(scheme), torch.randn(count, 192)
    exact = cpu.Matmul(weight)(x, None)
    with precision.using("int8"):
        assert torch.equal(cpu.Matmul(weight)(x, None), exact)


@needs_int8
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("count", [2, 20])
def test_what_is_no_number_spoils_its_row_alone(number, count):
    weight, x = weight_of(Scheme(4, 64)), torch.randn(count, 192)
    spoiled = x.clone()
    spoiled[1, 70] = number
    with precision.using("int8"):
        whole, found = cpu.Matmul(weight)(x, None), cpu.Matmul(weight)(spoiled, None)
    assert not found[1].isfinite().any() and torch.equal(found[0], whole[0]) and torch.equal(found[2:], whole[2:])


@needs_int8
def test_threads_change_nothing():
    weight, x = weight_of(Scheme(4, 64), rows=300, columns=576), torch.randn(30, 576)
    before = torch.get_num_threads()
    try:
        with precision.using("int8"):
            found = []
            for threads_ in (1, 2, 3):
                torch.set_num_threads(threads_)
                found.append([cpu.Matmul(weight)(x[:count], None) for count in (2, 7, 30)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


@needs_int8
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_batch_of_sequences_decodes_in_8_bits_by_the_program(make_model, tmp_path, architecture):
    """The program's products are those of the modules, called one by one."""
    write_artifact(make_model(architecture), Recipe(Scheme(4, 64), include=("*",)), tmp_path / "int4")
    model, tokens = open_runner(tmp_path / "int4").model, torch.arange(3, 51).view(3, 16)
    steps = {}
    for choice in ("exact", "int8"):
        for is_used in (True, False):
            stack = next(module._stack for module in model.modules() if hasattr(module, "_stack"))
            stack.is_used = is_used
            with torch.inference_mode(), precision.using(choice):
                cache = model(tokens, use_cache=True).past_key_values
                steps[choice, is_used] = model(tokens[:, :1], past_key_values=cache, use_cache=True).logits
            stack.is_used = True
    one, other, exact = steps["int8", True], steps["int8", False], steps["exact", True]
    assert (one - other).abs().max() <= 1e-4 * exact.abs().max()
    assert 0 < (one - exact).abs().max() < 0.1 * exact.abs().max()


def test_the_bench_measures_each_precision_from_the_base_and_from_exact(lively, tmp_path, monkeypatch):
    base, text = lively("gpt2", vocab_size=EMBEDDED_TOKENS), tmp_path / "text"
    write_artifact(base, Recipe(Scheme(), include=("*",)), tmp_path / "int8")
    write_corpus(Corpus("made up", ("the cat sat on the mat", "a dog ran to the house") * 20), text, tmp_path / "private")
    monkeypatch.setattr(bench, "TEXT", text)
    monkeypatch.setattr(bench, "PRIVATE", tmp_path / "private")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    rows = {row["precision"]: row for row in bench.measured(tmp_path / "int8", base, params, 4)}
    exact = rows.pop("exact")
    assert exact["from_exact_mnats"] == 0 < exact["kld_mnats"]
    assert set(rows) == {name for name, has in (("bfloat16", precision.multiplies_bfloat16(cpuinfo())),
                                                ("int8", precision.HAS_INT8)) if has}
    assert all(row["from_exact_mnats"] > 0 and row["ppl"] != exact["ppl"] for row in rows.values())
