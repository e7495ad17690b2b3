"""make bench, on a model small enough for a test: every variant is really quantized, loaded and run."""

import json
import subprocess
import sys

import pytest
from conftest import EMBEDDED_TOKENS, ROOT
from transformers import GPT2Config

from quant.benches import decode
from quant.errors import InputError
from quant.kernels.precision import HAS_INT8, multiplies_bfloat16
from quant.speed.quiet import Load
from quant.speed.watch import Watch
from quant.tensor.products import cpuinfo

RATIOS = {
    "int8_vs_fp32", "int4_vs_fp32", "nf4_vs_fp32", "int8_vs_llamacpp_q8_0", "int4_vs_llamacpp_q4_0", "int8_vs_bnb_int8",
    "nf4_vs_bnb_nf4", "nf4_vs_int4", "fp4_vs_int4", "int3_vs_int4", "int2_vs_int4", "mixed_vs_int4_per_byte",
    "prefill_32_vs_fp32", "prefill_8_vs_fp32", "prefill_32_vs_bf16", "prefill_8_vs_bf16",
    "prefill_vs_fp32", "prefill_8_int8_vs_llamacpp_q8_0", "prefill_32_int8_vs_llamacpp_q8_0", "prefill_8_int4_vs_llamacpp_q4_0",
    "prefill_32_int4_vs_llamacpp_q4_0",
}  # fmt: skip
ROUNDED = {f"rounded_prefill_{length}_vs_{other}" for length in (8, 32) for other in ("fp32", "bf16")}
IN_8_BITS = {f"int8_prefill_{length}_vs_{other}" for length in (8, 32) for other in ("fp32", "bf16")} | {
    f"prefill_{length}_int4_int8_prompts_vs_llamacpp_q4_0" for length in (8, 32)}
HAS_BFLOAT16 = multiplies_bfloat16(cpuinfo())
BUSY = Load(cores=2, threads=2, loop_slowdown=3.5, involuntary_switches_per_s=200.0, others_cpu=1.9, stolen_cpu=0.0)
WITHOUT_TORCH = """
import sys
from quant.benches.decode import main
try:
    main(["--help"])
finally:
    assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The file that one run of a tiny model writes."""
    config = GPT2Config(architectures=["GPT2LMHeadModel"], n_embd=64, n_head=2, n_layer=1, n_positions=64, n_ctx=64,
                        vocab_size=EMBEDDED_TOKENS, bos_token_id=0, eos_token_id=0, dtype="float32")  # fmt: skip
    model = decode.BenchmarkModel(lambda: config, {"prefill_long": 32, "prefill": 8}, tokens=20, rounds=4)
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(decode.MODELS, "tiny", model)
        patch.setattr(decode, "OUT", out)
        patch.setattr(decode, "watch_machine", lambda threads, _: Watch(threads, [BUSY], 10.2))
        decode.main(["tiny"])
    return json.loads(out.read_text())


@pytest.mark.slow
def test_every_variant_is_measured_in_turn(bench):
    assert set(bench["ratios"]) == RATIOS | (ROUNDED if HAS_BFLOAT16 else set()) | (IN_8_BITS if HAS_INT8 else set())
    assert bench["ratios"] == bench["models"]["tiny"]["ratios"]
    variants = bench["models"]["tiny"]["variants"]
    assert len(variants) == 15 + HAS_BFLOAT16 + HAS_INT8
    for found in variants.values():
        assert len(found["decode"]["ms"]["raw"]) == 4  # half of the rounds, each of a slice of 16 tokens and one of 4
        assert len(found["prefill_long"]["ms"]["raw"]) == len(found["prefill"]["ms"]["raw"]) == 2


@pytest.mark.slow
def test_numbers_fit_each_other(bench):
    found = bench["models"]["tiny"]
    for variant in found["variants"].values():
        rate = variant["weight_bytes_per_token"] / variant["decode"]["ms"]["median"] / 1e6
        assert variant["gb_per_s"] == pytest.approx(rate, rel=1e-3)
        assert variant["share_of_bandwidth"] == pytest.approx(rate / found["memory_read_gb_per_s"], rel=1e-3)
    assert found["variants"]["fp32"]["decode"]["speed_over_fp32"]["raw"] == [1.0] * 4
    bytes_of = {name: variant["weight_bytes_per_token"] for name, variant in found["variants"].items()}
    assert bytes_of["fp32"] == bytes_of["fp32_our_decoding"] > bytes_of["bf16"] > bytes_of["int8"] > bytes_of["nf4"]
    assert bytes_of["int8"] == bytes_of["int8_dequantized_each_call"]


@pytest.mark.slow
def test_the_table_has_a_line_for_each(bench):
    lines = decode.table("tiny", bench["models"]["tiny"])
    assert sum(line.startswith(("roofline: ", "threads: ", "ratios of speeds")) for line in lines) == 3
    assert set(bench["models"]["tiny"]["decode_ms_by_threads"]["int4"]) == {"1", "2"}
    assert sum(line.startswith("sequences at once") for line in lines) == 2 * (1 + HAS_INT8)
    for of_variant in bench["models"]["tiny"]["batches"].values():
        assert all(list(by_count) == ["1", "2", "4", "8"] for by_count in of_variant.values())
    for variant in bench["models"]["tiny"]["variants"]:
        assert sum(line.startswith(f"{variant} ") for line in lines) == 1


@pytest.mark.slow
def test_a_busy_machine_is_in_the_result_and_under_the_table(bench):
    found = bench["models"]["tiny"]
    load = found["machine_load"]
    assert (load["is_busy"], load["rounds"], load["waited_s"]) == (True, 2, 10.2) and found["rounds"] == 2
    assert "Other work ran on this machine: don't trust these times." in decode.table("tiny", found)
    quiet = {**found, "machine_load": {**load, "is_busy": False}}
    assert "don't trust" not in "".join(decode.table("tiny", quiet))


def test_an_unknown_model_is_refused_before_any_work():
    with pytest.raises(InputError, match="unknown model gpt3; known: gpt2-124m, llama-1b"):
        decode.main(["gpt3"])


def test_help_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "gpt2-124m or llama-1b" in done.stdout, done.stderr


def test_what_does_not_fit_memory_is_left_out_in_words(tmp_path):
    from quant.benches.contestants import fitting

    folders = {name: tmp_path / name for name in ("base", "int8", "int3", "fp4", "mixed", "llamacpp_q8_0")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "weights").write_bytes(bytes(100))
    base, told = folders.pop("base"), []
    assert fitting(base, folders, 750, told.append) == folders and not told  # 150, four of 100 and one of 200
    left = fitting(base, folders, 600, told.append)
    assert set(folders) - set(left) == {"fp4", "mixed"} and [line.split()[0] for line in told] == ["fp4", "mixed"]
