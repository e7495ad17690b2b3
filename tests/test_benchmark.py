"""Benchmark and evaluation of a tiny model: what a result holds, and what stays out of it."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml
from conftest import EMBEDDED_TOKENS, ROOT, RUNTIMES, run_stage

from quant.errors import InputError
from quant.files import write_json
from quant.methods import load
from quant.quality.evaluate import evaluate, evaluate_base
from quant.quality.protocol import ScoringProtocol
from quant.runners.sizes import disk_bytes
from quant.speed import watch
from quant.speed.benchmark import benchmark
from quant.speed.plan import TimingPlan
from quant.speed.quiet import Load
from quant.text.corpus import Corpus, write_corpus
from quant.variants import Variant

LINES = ("the silverware of the lighthouse keeper rose N %", "<unk> said the harbour was closed") * 20
PRIVATE, PUBLIC = Corpus("ptb", LINES, private=True), Corpus("x", LINES)
PLAN = TimingPlan(prompts=(8, 512), tokens=4, rounds=2, threads=1, wait=0)
QUIET = Load(cores=2, threads=1, loop_slowdown=1.02, involuntary_switches_per_s=5.0, others_cpu=0.05, stolen_cpu=0.0)
BUSY = replace(QUIET, loop_slowdown=3.5, others_cpu=1.9)
PROTOCOL = ScoringProtocol(context=48, stride=48)


@pytest.fixture(scope="module")
def evaluated(runtimes, tmp_path_factory):
    """(result of the base, result of int4, folder of the base's predictions)"""
    reference = tmp_path_factory.mktemp("evaluated") / "reference"
    base = evaluate_base(runtimes["base"], PUBLIC, PROTOCOL, "cpu", reference)
    return base, evaluate(runtimes["int4"], runtimes["base"], PUBLIC, PROTOCOL, "cpu", reference), reference


def test_the_text_of_the_penn_treebank_stays_out_of_what_is_written(runtimes):
    private, public = (benchmark(runtimes["bf16"], runtimes["base"], corpus, PLAN, "cpu") for corpus in (PRIVATE, PUBLIC))
    assert private["generation"]["prompt"] is None and "silverware" not in json.dumps(private)
    assert public["generation"]["prompt"].startswith(" the silver")


def test_a_benchmark_holds_times_bandwidth_memory_and_its_plan(runtimes):
    found = benchmark(runtimes["int4"], runtimes["base"], PUBLIC, PLAN, "cpu", load("quant").imports)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, allow_nan=False))
    assert found["plan"] == {"prompts": (8, 512), "tokens": 4, "rounds": 2, "threads": 1, "wait": 0, "torch_threads": 1}
    long = found["timing"]["prefill_long"]
    assert (long["prompt_tokens"], long["asked_tokens"]) == (64, 512)
    decode, metrics = found["timing"]["decode"], found["metrics"]
    assert decode["weight_bytes_per_token"] < decode["base_weight_bytes_per_token"] / 4
    rate = decode["weight_bytes_per_token"] / decode["ms"]["median"] / 1e6
    assert decode["gb_per_s"] == pytest.approx(rate, rel=1e-4)
    for key, value in (("decode_ms_per_token", decode["ms"]["median"]), ("decode_speedup", decode["speedup"]["median"]),
                       ("prefill_ms", found["timing"]["prefill"]["ms"]["median"]), ("load_s", found["load"]["load_s"])):
        assert metrics[key] == pytest.approx(value, rel=1e-3)
    memory = found["memory"]
    assert metrics["peak_rss_mib"] == max(memory["load_peak_mib"], memory["generate_peak_mib"])
    assert found["generation"]["prompt_tokens"] == 8 and found["generation"]["tokens"] == 5


@pytest.mark.parametrize("kind", ["base", "gguf-f16"])
def test_a_plan_that_does_not_fit_is_refused(runtimes, kind):
    with pytest.raises(InputError, match=r"prompts, 128, and benchmark\.tokens, 64, .* context of 64 .*smaller"):
        benchmark(runtimes[kind], runtimes["base"], PUBLIC, TimingPlan(wait=0), "cpu")


@pytest.mark.parametrize(("loads", "is_busy", "rounds"), [
    ([QUIET, QUIET, QUIET], False, 4), ([BUSY, QUIET], True, 2), ([QUIET, BUSY], True, 4),
], ids=["quiet", "busy-before", "busy-after"])  # fmt: skip
def test_a_busy_machine_shortens_a_benchmark_and_flags_it(runtimes, monkeypatch, loads, is_busy, rounds):
    """quiet: also a third load is given, for a second attempt, which the real clock of this test may cause."""
    found = iter(loads)
    monkeypatch.setattr(watch, "wait_for_quiet", lambda *_: (next(found), 3.14))
    monkeypatch.setattr(watch, "measure_load", lambda _: next(found))
    result = benchmark(runtimes["bf16"], runtimes["base"], PUBLIC, replace(PLAN, rounds=4), "cpu")
    load = json.loads(json.dumps(result))["machine_load"]
    assert set(load) == {"before", "after", "waited_s", "is_busy", "rounds", "omp_wait_policy"}
    assert (load["before"], load["after"]) == (loads[0].to_dict(), loads[1].to_dict())
    assert (load["is_busy"], load["rounds"], load["waited_s"]) == (is_busy, rounds, 3.1) and result["plan"]["rounds"] == 4
    assert len(result["timing"]["prefill"]["ms"]["raw"]) == rounds
    if is_busy:
        assert result["attempts"] == 1 and result["is_noisy"]
        assert all(phase["is_noisy"] for phase in result["timing"].values())


@pytest.mark.slow
def test_memory_is_the_models_without_libraries(runtimes, tmp_path):
    """As a stage, in a process of its own."""
    for name in ("stages", "quant"):
        (tmp_path / name).symlink_to(ROOT / name)
    timed = {"prompts": [8], "tokens": 4, "rounds": 1, "wait": 0}
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"benchmark": timed}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    method, row = RUNTIMES["bf16"]
    planned = Variant("bf16", load(method), load(method).resolve({}, row))
    write_json(tmp_path / "data" / "plan" / "variants" / "bf16.json", planned.to_dict())
    (tmp_path / "models").mkdir()
    for name in ("base", "bf16"):
        (tmp_path / "models" / name).symlink_to(runtimes[name])
    write_corpus(PUBLIC, tmp_path / "data" / "eval", tmp_path / "data" / "private")
    done = run_stage("benchmark", "bf16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    memory = json.loads((tmp_path / "reports" / "speed" / "bf16.json").read_text())["memory"]
    assert memory["interpreter_mib"] > 150 and 2 < memory["load_peak_mib"] < 60


def test_an_evaluation_holds_quality_size_and_its_protocol(runtimes, evaluated):
    base, int4, _ = evaluated
    for found, folder in ((base, "base"), (int4, "int4")):
        assert found["parameters"] == EMBEDDED_TOKENS * 256 + 64 * 256 + 12 * 256 * 256 + 13 * 256 + 2 * 256
        held = sum(found["held_bytes"].values())
        assert sum(row["bytes"] for row in found["size_breakdown"]) == held
        metrics = found["metrics"]
        assert metrics["weights_mib"] == pytest.approx(held / 2**20, rel=1e-5)
        assert metrics["disk_mib"] == pytest.approx(disk_bytes(runtimes[folder]) / 2**20, rel=1e-5)
        assert metrics["bits_per_weight"] == pytest.approx(8 * held / found["parameters"], rel=1e-5)
        assert (found["protocol"]["context"], found["protocol"]["sentences"]) == (48, 40)
        assert sum(found["blocks"]["tokens"]) == found["protocol"]["tokens"] and sum(found["module_counts"].values())
        low, high = found["intervals"]["ppl_change_pct"]
        assert low <= metrics["ppl_change_pct"] <= high
        assert found["intervals"]["is_significant"] == (low > 0 or high < 0)
    assert base["metrics"]["kld_mnats"] == 0 < int4["metrics"]["kld_mnats"]
    ratio = int4["metrics"]["ppl"] / base["metrics"]["ppl"]
    assert int4["metrics"]["ppl_change_pct"] == pytest.approx(100 * (ratio - 1), rel=1e-3)


def test_an_evaluation_gives_the_same_bytes_again(runtimes, evaluated):
    _, int4, reference = evaluated
    again = evaluate(runtimes["int4"], runtimes["base"], PUBLIC, PROTOCOL, "cpu", reference)
    assert json.dumps(again, sort_keys=True) == json.dumps(int4, sort_keys=True)


def test_the_base_is_evaluated_first(runtimes, tmp_path):
    with pytest.raises(InputError, match=r"data/reference does not exist; evaluate the base first, or run dvc repro"):
        evaluate(runtimes["int4"], runtimes["base"], PUBLIC, PROTOCOL, "cpu", tmp_path / "data" / "reference")


def test_what_a_manifest_notes_of_the_making_is_in_the_result(evaluated, runtimes, tmp_path):
    """For the report, which is written without the models."""
    base, plain, reference = evaluated
    assert "manifest" not in plain and "manifest" not in base
    folder = shutil.copytree(runtimes["int4"], tmp_path / "noted")
    manifest = json.loads((folder / "manifest.json").read_text())
    noted = {"calibration": {"windows": 4}, "example": {"weights": [1 / 3]}, "allocation": None}
    (folder / "manifest.json").write_text(json.dumps(manifest | noted))
    found = evaluate(folder, runtimes["base"], PUBLIC, PROTOCOL, "cpu", reference)
    assert found["manifest"] == {"calibration": {"windows": 4}, "example": {"weights": [0.333333]}}
    assert {key: value for key, value in found.items() if key != "manifest"} == plain
