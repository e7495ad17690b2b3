"""The divergence of a part quantized alone is that of an artifact with that part quantized, and the model is left as it was."""

import json
import shutil
from functools import cache

import pytest
import torch
from conftest import ARCHITECTURES, EMBEDDED, EMBEDDED_TOKENS, ROOT, config_of, run_stage, save_model

from quant.errors import InputError
from quant.model.artifact import write_artifact
from quant.model.checkpoint import Checkpoint
from quant.model.selection import select
from quant.quality import sensitivity
from quant.quality.evaluate import evaluate, evaluate_base
from quant.quality.protocol import ScoringProtocol
from quant.quality.sensitivity import measure_sensitivity, parts, quantized
from quant.quality.sensitivity_plan import SensitivityPlan
from quant.runners import open_runner
from quant.tensor.scheme import Scheme
from quant.text.corpus import Corpus, write_corpus

PROTOCOL = ScoringProtocol(context=32, stride=32)
CORPUS = Corpus("x", tuple(f"line {number} of a text: {'abc ' * (number % 7)}" for number in range(30)))
INT4 = Scheme(4, 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """model(architecture, dtype) -> a tiny model whose weights are so large that every part's divergence is far above rounding
    errors of float32, and whose vocabulary fits the embedded tokenizer."""
    @cache
    def make(architecture, dtype=torch.float32):
        config = config_of(architecture)
        config.vocab_size, config.initializer_range = EMBEDDED_TOKENS, 0.3
        return save_model(config, tmp_path_factory.mktemp(architecture), dtype)

    return make


def measure(base, reference, plan=None, protocol=PROTOCOL):
    if not reference.is_dir():
        evaluate_base(base, CORPUS, protocol, "cpu", reference)
    return measure_sensitivity(base, CORPUS, protocol, "cpu", reference, plan or SensitivityPlan(windows=1000))


@pytest.mark.parametrize(("architecture", "dtype"), [
    ("gpt2", torch.float16), ("llama", torch.float32), ("phi3", torch.bfloat16), ("gpt_neox", torch.float32),
    ("llama-tied", torch.float32), ("gemma2", torch.float32),
])  # fmt: skip
def test_a_part_diverges_as_an_artifact_of_it_does(model, tmp_path, architecture, dtype):
    """Fused matrices, transposed ones, tied, untied and capped heads: each part against the pipeline's own way to quantize it."""
    base = model(architecture, dtype)
    found = measure(base, tmp_path / "reference")
    asked = parts(Checkpoint(base).inventory, INT4)
    assert [(part.kind, part.name) for part in asked] == [(part["kind"], part["name"]) for part in found["parts"]]
    for part, measured in zip(asked, found["parts"], strict=True):
        write_artifact(base, part.recipe, tmp_path / "artifact")
        expected = evaluate(tmp_path / "artifact", base, CORPUS, PROTOCOL, "cpu", tmp_path / "reference")
        assert measured["kld_mnats"] == pytest.approx(expected["metrics"]["kld_mnats"], rel=1e-3), part.name
        assert measured["interval"] == pytest.approx(expected["intervals"]["kld_mnats"], rel=1e-3), part.name
        assert measured["ppl_change_pct"] == pytest.approx(expected["metrics"]["ppl_change_pct"], rel=1e-3, abs=1e-5), part.name
        codes = sum(row["bytes"] for row in expected["size_breakdown"] if row["part"] == "codes")
        assert measured["weights"] == 2 * codes, part.name
    assert found["tokens"] == expected["protocol"]["tokens"]
    assert all(part["kld_mnats"] > 0 for part in found["parts"])


@pytest.mark.parametrize(("architecture", "names"), [
    ("gpt2", ["all", "q", "k", "v", "o", "up", "down", "embedding", "0", "1"]),
    ("llama", ["all", "q", "k", "v", "o", "up", "gate", "down", "embedding", "head", "0", "1"]),
    ("llama-tied", ["all", "q", "k", "v", "o", "up", "gate", "down", "embedding", "0", "1"]),
])  # fmt: skip
def test_the_parts_are_those_of_the_model(model, architecture, names):
    found = parts(Checkpoint(model(architecture)).inventory, INT4)
    assert [part.name for part in found] == names and found[0].kind == "all"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_restored_also_after_an_error(model, architecture):
    base = model(architecture, torch.float16)
    opened, checkpoint = open_runner(base).model, Checkpoint(base)
    before = {name: value.clone() for name, value in opened.state_dict().items()}
    for part in parts(checkpoint.inventory, INT4):
        weights = [selected for selected in select(checkpoint.inventory, part.recipe) if selected.is_quantized]
        with pytest.raises(KeyboardInterrupt), quantized(opened, checkpoint, weights):
            changed = {name for name, value in opened.state_dict().items() if not torch.equal(value, before[name])}
            assert changed >= {selected.weight.name for selected in weights}
            raise KeyboardInterrupt
        assert all(torch.equal(value, before[name]) for name, value in opened.state_dict().items())


def test_the_base_itself_does_not_diverge(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sensitivity, "quantize", lambda weight, _: weight)
    monkeypatch.setattr(sensitivity, "dequantize", lambda weight: weight.float())
    for part in measure(model("gpt2"), tmp_path / "reference")["parts"]:
        assert part["kld_mnats"] == pytest.approx(0, abs=1e-4) and part["ppl_change_pct"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("protocol", "windows", "tokens"), [
    (ScoringProtocol(context=32, stride=32), 3, 96), (ScoringProtocol(context=32, stride=8), 3, 48),
    (ScoringProtocol("llama.cpp/1", context=32, stride=32), 3, 45), (ScoringProtocol(context=32, stride=32), 10**6, None),
])  # fmt: skip
def test_the_first_windows_of_the_protocol_are_scored(model, tmp_path, protocol, windows, tokens):
    base = model("gpt2")
    every = evaluate_base(base, CORPUS, protocol, "cpu", tmp_path / "reference")["protocol"]["tokens"]
    found = measure(base, tmp_path / "reference", SensitivityPlan(windows=windows), protocol)
    assert found["tokens"] == (tokens or every)


def test_rows_that_end_with_a_shorter_group_are_measured_with_the_plans_scheme(model, tmp_path):
    assert measure(model("llama-odd"), tmp_path / "reference")["scheme"] == Scheme(4, 64).to_dict()


@pytest.mark.parametrize(("values", "message"), [
    ({"bits": 9}, r"sensitivity\.bits is 9; expected a whole number from 2 to 8"),
    ({"group_size": 0}, r"sensitivity\.group_size is 0; expected row"),
    ({"windows": 0}, r"sensitivity\.windows is 0; expected a number of windows from 1"),
    ({"window": 3}, r"unknown sensitivity key 'window'; known: bits, group_size, windows"),
    (5, "sensitivity is 5; expected keys and values"),
])  # fmt: skip
def test_a_wrong_section_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        SensitivityPlan.from_section(values)


def test_what_is_measured_twice_is_the_same(model, tmp_path):
    found = [measure(model("gpt2"), tmp_path / "reference", SensitivityPlan(windows=4)) for _ in range(2)]
    assert found[0] == found[1]


@pytest.mark.parametrize("section", [{"bits": 3, "windows": 4}, None])
def test_the_stage_writes_its_parts_and_null_skips_it(tmp_path, section):
    for name in ("stages", "quant"):
        (tmp_path / name).symlink_to(ROOT / name)
    params = {"evaluate": {"context": 32, "stride": 32}, "device": "cpu", "sensitivity": section}
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    if section:
        base = shutil.copytree(EMBEDDED, tmp_path / "models" / "base")
        write_corpus(CORPUS, tmp_path / "data" / "eval", tmp_path / "data" / "private")
        evaluate_base(base, CORPUS, PROTOCOL, "cpu", tmp_path / "data" / "reference")
    done = run_stage("sensitivity", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and done.stdout.startswith("sensitivity: ")
    found = json.loads((tmp_path / "reports" / "studies" / "sensitivity.json").read_text())
    if section:
        assert found["tokens"] == 128 and found["scheme"]["bits"] == 3 and found["parts"][0]["kind"] == "all"
    else:
        assert found == {"parts": []}
