"""Bytes by role and part: every tensor once, none left out, codes and scales separate. And peaks of memory."""

import subprocess
import sys

import pytest
import torch
from conftest import EMBEDDED_TOKENS, ROOT

from quant.model.architectures import architecture_of
from quant.progress import MIB
from quant.runners import StoredTensor, open_runner
from quant.runners.sizes import bytes_per_token, disk_bytes, held_bytes, size_breakdown

MATRIX, VECTOR = 12 * 256 * 256, 13 * 256 + 2 * 256  # of the one block; biases, and weights and biases of the norms
TABLES = EMBEDDED_TOKENS * 256 + 64 * 256
ALL = MATRIX + VECTOR + TABLES


def sums(folder, *keys):
    """Bytes of the breakdown, summed by the given keys."""
    total = {}
    for row in size_breakdown(open_runner(folder).tensors()):
        key = tuple(row[name] for name in keys)
        total[key if len(keys) > 1 else key[0]] = total.get(key if len(keys) > 1 else key[0], 0) + row["bytes"]
    return total


@pytest.mark.parametrize("kind", ["base", "int4", "bnb-int8", "bnb-nf4", "bnb-nf4-dq", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m"])
def test_the_breakdown_adds_up(runtimes, kind):
    runner = open_runner(runtimes[kind])
    rows = size_breakdown(runner.tensors())
    assert sum(row["bytes"] for row in rows) == sum(held_bytes(runner).values())
    assert {row["group"] for row in rows} == {"attention", "mlp", "embedding", "norm"}


def test_a_plain_model_is_floats_and_its_tied_head_is_counted_once(runtimes):
    assert sums(runtimes["base"], "part") == {"floats": 4 * ALL}
    by_role = sums(runtimes["base"], "role")
    assert by_role["embedding+head"] == 4 * EMBEDDED_TOKENS * 256 and by_role["embedding"] == 4 * 64 * 256
    assert by_role["q+k+v"] == 4 * (3 * 256 * 256 + 3 * 256) and by_role["up"] == 4 * (4 * 256 * 256 + 4 * 256)
    assert by_role["norm"] == 4 * 6 * 256


def test_our_codes_scales_and_zeros(runtimes):
    weights = MATRIX + TABLES + 3 * 256  # everything but biases
    found = sums(runtimes["int4"], "part")
    per_group, kept = 4 * weights // 64, 4 * (ALL - weights)
    assert found == {"codes": weights // 2, "scales": per_group, "zeros": per_group, "floats": kept}
    assert sums(runtimes["int4"], "role")["up"] == 4 * 256 * 256 // 2 + 2 * 4 * 4 * 256 * 256 // 64 + 4 * 4 * 256


@pytest.mark.parametrize(("tensor", "roles"), [
    ("transformer.h.0.attn.c_attn.weight", ("q", "k", "v")),
    ("transformer.h.0.attn.c_attn.k_v.weight.codes", ("k", "v")),
    ("transformer.h.0.attn.c_attn.q.weight.scales", ("q",)),
    ("transformer.h.0.attn.c_attn.bias", ("q", "k", "v")),
    ("transformer.h.0.mlp.c_fc.weight.absmax", ("up",)),
    ("transformer.wte.weight.codes", ("embedding", "head")),
    ("transformer.wpe.weight", ("embedding",)),
    ("transformer.h.0.ln_1.bias", ("norm",)),
    ("transformer.h.0.adapter.weight", ("other",)),
])  # fmt: skip
def test_a_tensor_has_the_roles_of_its_module(tensor, roles):
    config = {"model_type": "gpt2"}
    assert architecture_of(config).roles_of_tensor(tensor, config) == roles


def test_bitsandbytes_scales_and_their_scales(runtimes):
    blocks, kept = MATRIX // 64, 4 * (ALL - MATRIX)
    assert sums(runtimes["bnb-nf4"], "part") == {
        "codes": MATRIX // 2, "scales": 4 * blocks, "codebook": 4 * 16 * 4, "floats": kept,
    }  # fmt: skip
    nested = blocks + 4 * blocks // 256 + 4 * 4  # a byte a scale, a float per 256 of them, an offset per matrix
    assert sums(runtimes["bnb-nf4-dq"], "part") == {
        "codes": MATRIX // 2, "scales": nested, "codebook": 4 * (16 + 256) * 4, "floats": kept,
    }  # fmt: skip


def test_int8_of_bitsandbytes_is_counted_before_and_after_its_first_call(runtimes):
    runner, rows = open_runner(runtimes["bnb-int8"]), 3 * 256 + 256 + 4 * 256 + 256
    for _ in range(2):
        found = {}
        for row in size_breakdown(runner.tensors()):
            found[row["part"]] = found.get(row["part"], 0) + row["bytes"]
        assert found == {"codes": MATRIX, "scales": 4 * rows, "floats": 4 * (ALL - MATRIX)}
        runner.logits(torch.zeros(1, 4, dtype=torch.int64))


def test_gguf_blocks_are_split_as_their_types_lay_them_out(runtimes):
    found = sums(runtimes["gguf-q8_0"], "part", "dtype")
    weights = MATRIX + EMBEDDED_TOKENS * 256
    kept = 4 * (ALL - weights)
    assert found == {("codes", "q8_0"): weights, ("scales", "q8_0"): 2 * weights // 32, ("floats", "float32"): kept}
    mixed = sums(runtimes["gguf-q4_k_m"], "dtype", "part")
    per_block = {kind: {part: size for (dtype, part), size in mixed.items() if dtype == kind} for kind in ("q4_k", "q6_k")}
    q4, q6 = per_block["q4_k"], per_block["q6_k"]
    assert q4["codes"] == 16 * q4["scales"] == 16 * q4["zeros"] and q6["codes"] * 18 == 192 * q6["scales"]


def test_what_decoding_reads(runtimes):
    assert bytes_per_token(open_runner(runtimes["base"]).tensors()) == 4 * (ALL - 64 * 256)
    untied = [StoredTensor("e", ("embedding",), "floats", "float32", 7), StoredTensor("h", ("head",), "floats", "float32", 5)]
    assert bytes_per_token(untied) == 5


def test_on_disk(runtimes):
    assert disk_bytes(runtimes["base"]) == (runtimes["base"] / "model.safetensors").stat().st_size
    assert disk_bytes(runtimes["gguf-f16"]) == (runtimes["gguf-f16"] / "model.gguf").stat().st_size


PEAK = """
import numpy
from quant.progress import MIB
from quant.speed.memory import PeakMemory

peak = PeakMemory()
block = numpy.ones(64 * MIB // 8)
del block
first = peak.phase()
second = peak.phase()
kept = numpy.ones(32 * MIB // 8)
third = peak.phase()
assert 62 * MIB < first["peak"] < 80 * MIB and first["resident"] < 10 * MIB, first
assert second["peak"] < 10 * MIB, second
assert 30 * MIB < third["resident"] <= third["peak"] < 48 * MIB and peak.interpreter > 10 * MIB, third
"""


def test_peaks_are_those_of_their_phase():
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_gpu_has_peaks_of_its_own():
    from quant.speed.memory import PeakMemory

    peak = PeakMemory("cuda")
    block = torch.ones(64 * MIB // 4, device="cuda")
    del block
    found = peak.phase()
    assert found["gpu_peak"] - found["gpu"] >= 64 * MIB
