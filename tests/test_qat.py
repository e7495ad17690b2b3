"""Training with rounded weights: what multiplies is what is stored, gradients pass through, a stopped run resumes exactly."""

import hashlib
import json
import math
import runpy
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import EMBEDDED, ROOT, config_of, save_model
from made_up import CORPUS, MODEL, TRAINED, made_up, write_results
from test_novels import sequences
from torch.nn.utils import parametrize

from quant.model.checkpoint import Checkpoint
from quant.quality.protocol import ScoringProtocol
from quant.report.document import render_markdown
from quant.report.results import read_run
from quant.runners import open_runner
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme
from quant.text.corpus import Corpus
from quant.text.novels import TEST, chapters
from quant.training import qat
from quant.training.qat import Distillation, StoredValues, save_student, student_of
from quant.training.study import bits_of, measure_trained
from quant.training.train import Schedule, Training, logits_of, mean_loss, windows_of

SCHEMES = pytest.mark.parametrize("scheme", qat.TRAINED.values(), ids=qat.TRAINED)
CONTEXT = 8
STREAM = (torch.arange(400) ** 2) % 96
PROTOCOL = ScoringProtocol("joined/1", 256, 256, "{}\n")
HELD_OUT = windows_of((torch.arange(80) ** 2) % 96, CONTEXT)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model whose predictions are far from uniform, in 16 bits as the real one."""
    config = config_of("gpt2")
    config.initializer_range = 0.2
    return save_model(config, tmp_path_factory.mktemp("base"), torch.float16)


def teacher_of(base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def training_of(base, scheme, folder, **changes):
    schedule = Schedule(**{"epochs": 3, "batch_size": 4, "warmup": 3, "peak_rate": 2e-3, "average": 0.0, **changes})
    student, loss = student_of(base, scheme), Distillation(teacher_of(base))
    return Training(student, schedule, folder, tell=lambda _: None, loss=loss)


def values_of(model):
    """The matrices that multiply, [out, in], by name, of those that are quantized in training."""
    return {name: module.weight.detach().T for name, module in model.named_modules() if parametrize.is_parametrized(module)}


def rounded(matrix, scheme):
    return dequantize(quantize(matrix, scheme))


@SCHEMES
def test_training_begins_at_rounding_to_nearest_bit_for_bit(base, scheme):
    checkpoint, values = Checkpoint(base), values_of(student_of(base, scheme))
    assert len(values) == 2 * 4, "of two blocks: attention's two matrices and the feed-forward layer's two"
    for name, value in values.items():
        assert torch.equal(value, rounded(checkpoint.read(f"{name}.weight").T.float(), scheme)), name


@SCHEMES
def test_what_multiplies_is_what_is_stored_bit_for_bit(base, scheme, tmp_path):
    """While it trains, in the checkpoint that is saved, and in the artifact made of that; everything else fits 16 bits."""
    from quant.model.artifact import write_artifact
    from quant.model.recipe import Recipe

    training = training_of(base, scheme, tmp_path / "state")
    training.run(STREAM, HELD_OUT, CONTEXT)
    values, wanted = values_of(training.model), logits_of(training.model.eval(), HELD_OUT)
    for name, value in values.items():
        assert torch.equal(value, rounded(value, scheme)), name
        assert not torch.equal(value, rounded(Checkpoint(base).read(f"{name}.weight").T.float(), scheme)), "it was trained"
    save_student(training.model, base, tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model")
    for weight in checkpoint.inventory.weights:
        stored = checkpoint.read(weight.tensor)
        assert torch.equal(stored, values[weight.module].T if weight.is_block_matrix else stored.half().float()), weight.name
    write_artifact(tmp_path / "model", Recipe(scheme), tmp_path / "artifact")
    runner = open_runner(tmp_path / "artifact")
    for name, value in values.items():
        assert torch.equal(dequantize(runner.model.get_submodule(name).weight.qtensor), value), name
    found = runner.logits(HELD_OUT[:, :-1]).flatten(0, 1)
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max(), "those were computed in bfloat16"


@SCHEMES
@pytest.mark.parametrize("transposed", [False, True])
def test_the_gradient_passes_straight_through(scheme, transposed):
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gradient = torch.randn(128, 128, generator=torch.Generator().manual_seed(2))
    module = StoredValues(weight, scheme, transposed)
    (module(weight) * gradient).sum().backward()
    assert torch.equal(weight.grad, gradient), "as of the identity"
    matrix, back = (tensor.detach().T if transposed else tensor.detach() for tensor in (weight, gradient))
    scales = module.scales.detach().view(128, 2, 1)
    steps, values = matrix.view(128, 2, 64) / scales, rounded(matrix, scheme).view(128, 2, 64) / scales
    limit = 1.0 if scheme.is_linear else 1.5
    by_scale = torch.where(steps.abs() > limit, steps.sign() * limit, values - steps) * back.reshape(128, 2, 64)
    assert torch.allclose(module.scales.grad, by_scale.sum(-1).flatten(), rtol=1e-4, atol=1e-4)


def test_a_group_of_zeros_and_a_scale_below_zero_stay_finite():
    weight = torch.zeros(1, 64, requires_grad=True)
    for scheme in qat.TRAINED.values():
        module = StoredValues(weight, scheme, transposed=False)
        module.scales.data -= 0.1
        values = module(weight)
        values.sum().backward()
        assert not values.any() and torch.isfinite(module.scales.grad).all()


@SCHEMES
def test_the_divergence_falls_and_the_teacher_stays_as_it_is(base, scheme, tmp_path):
    training = training_of(base, scheme, tmp_path, epochs=6)
    before = mean_loss(training.model, HELD_OUT, training.loss)
    training.run(STREAM, HELD_OUT, CONTEXT)
    after = mean_loss(training.model, HELD_OUT, training.loss)
    assert 0 < after < 0.8 * before and after == pytest.approx(training.best)
    untouched = teacher_of(base).state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in training.loss.teacher.state_dict().items())
    assert mean_loss(training.loss.teacher, HELD_OUT, training.loss) == pytest.approx(0, abs=1e-6)


def test_a_stopped_run_gives_the_same_bytes(base, tmp_path):
    scheme, digests = qat.TRAINED["ternary"], []

    class Stop(Exception):
        pass

    def stop(line):
        if line.startswith("epoch 2"):
            raise Stop

    for name, stops in (("one", False), ("two", True)):
        if stops:
            stopped = training_of(base, scheme, tmp_path / name)
            stopped.tell = stop
            with pytest.raises(Stop):
                stopped.run(STREAM, HELD_OUT, CONTEXT)
        training = training_of(base, scheme, tmp_path / name)
        training.run(STREAM, HELD_OUT, CONTEXT)
        save_student(training.model, base, tmp_path / name / "model")
        digests.append(hashlib.sha256((tmp_path / name / "model" / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_bits_count_codes_and_scales():
    four, three = (bits_of(scheme) for scheme in qat.TRAINED.values())
    assert four == {"levels": 4, "bits_per_weight": 2.25, "least_bits_per_weight": 2.25}
    assert three == {"levels": 3, "bits_per_weight": 2.25, "least_bits_per_weight": pytest.approx(math.log2(3) + 0.25)}
    assert bits_of(Scheme(3, 64, scale_dtype="float16"))["bits_per_weight"] == 3.25


def test_the_study_measures_each_scheme_both_ways(tmp_path):
    """On the embedded model. With rounding alone as its training, four levels give equal rows."""
    four, three = qat.TRAINED.values()
    save_student(student_of(EMBEDDED, four), EMBEDDED, tmp_path / "model")
    corpus = Corpus("x", tuple(line for line in chapters(TEST)[0][:60]))
    schemes = {"four": four, "three": three, "int4": qat.ROUNDED["int4"]}
    found = measure_trained(EMBEDDED, schemes, {"four": tmp_path / "model"}, corpus, PROTOCOL, tmp_path / "scratch")
    rows = {(row["scheme"], row["way"]): row for row in found["rows"]}
    assert list(rows) == [("four", "nearest"), ("four", "trained"), ("three", "nearest"), ("int4", "nearest")]
    kld = {key: row["kld_mnats"] for key, row in rows.items()}
    assert kld["int4", "nearest"] < kld["four", "nearest"] == kld["four", "trained"] < kld["three", "nearest"]
    trained = rows["four", "trained"]
    assert trained["intervals"] == rows["four", "nearest"]["intervals"] and trained["ppl"] > found["base"]["ppl"]
    pairs = trained["kld_mnats_minus_nearest"]
    assert pairs["four"] == [0, 0, 0] and pairs["int4"][1] > 0 > pairs["three"][2]
    assert pairs["int4"][0] == pytest.approx(kld["four", "trained"] - kld["int4", "nearest"], rel=1e-4)
    low, high = trained["intervals"]["kld_mnats"]
    assert low < trained["kld_mnats"] < high and found["quantized_weights"] == 4 * 12 * 256 * 256
    assert json.loads(json.dumps(found)) == found


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """Runs the stage on the real texts without training or measuring; returns what it would train on, and what it wrote."""
    seen = []

    def run(training, stream, validation, context):
        seen.append((stream, validation, context))
        training.epoch = training.best_epoch = training.schedule.epochs
        training.best = 0.005

    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quant.pipeline.run", lambda stage: stage())
    monkeypatch.setattr("quant.training.train.Training.run", run)
    monkeypatch.setattr("quant.training.study.measure_trained", lambda *_: {"rows": []})
    runpy.run_module("stages.train_quantized")
    return seen, json.loads((tmp_path / "reports" / "studies" / "trained.json").read_text())


def test_nothing_of_the_test_text_is_trained_on(stage):
    from transformers import AutoTokenizer

    seen, written = stage
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    forbidden = sequences([line for lines in chapters(TEST) for line in lines])
    assert len(seen) == 2 and len(forbidden) > 80_000
    for stream, validation, context in seen:
        texts = [tokenizer.decode(stream), tokenizer.decode(validation.flatten())]
        assert context == 256 and len(stream) > 800_000 and not forbidden & sequences(texts)
    about = written["training"]["schemes"]
    assert {found["steps"] for found in about.values()} == {404 * qat.SCHEDULE.epochs}
    assert all(found["tokens"] == found["steps"] * 8 * 256 for found in about.values())


def test_the_stage_is_frozen_and_its_numbers_are_those_in_git():
    dvc, lock = (yaml.safe_load((ROOT / name).read_text())["stages"]["train-quantized"] for name in ("dvc.yaml", "dvc.lock"))
    path = "reports/studies/trained.json"
    assert dvc["frozen"] is True and dvc["outs"] == [{path: {"cache": False}}]
    assert [(out["path"], out["md5"]) for out in lock["outs"]] == [(path, hashlib.md5((ROOT / path).read_bytes()).hexdigest())]


def test_the_numbers_are_measured_as_the_pipeline_measures():
    """By the protocol of params.yaml, on the default text; rounding grows worse with fewer levels, and training is closer."""
    found = json.loads((ROOT / "reports" / "studies" / "trained.json").read_text())
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    described = ScoringProtocol.from_dict(params["evaluate"]).describe(256)
    assert described.items() <= found["protocol"].items() and found["protocol"]["source"] == params["data"]["source"]
    learnt = json.loads((EMBEDDED / "training.json").read_text())
    assert found["base"]["ppl"] == pytest.approx(learnt["test"]["perplexity"], rel=1e-3)
    assert found["protocol"]["tokens"] == learnt["test"]["tokens"] - 1, "the first has nothing before it"
    assert found["training"]["tokens"] == learnt["training"]["tokens"]
    kld = {(row["scheme"], row["way"]): row["kld_mnats"] for row in found["rows"]}
    nearest = [kld[name, "nearest"] for name in ("int4", "int3", "int2", "ternary")]
    assert nearest == sorted(nearest)
    for name in qat.TRAINED:
        (row,) = (row for row in found["rows"] if (row["scheme"], row["way"]) == (name, "trained"))
        assert row["kld_mnats_minus_nearest"][name][2] < 0 and kld[name, "trained"] < kld[name, "nearest"] / 2
        assert found["training"]["schemes"][name]["best_epoch"] > 0


def chapter(run):
    return render_markdown(run, CORPUS, MODEL).partition("## Where rounding ends and training begins\n")[2].partition("\n## ")[0]


def test_the_report_shows_what_training_gains():
    text = chapter(made_up())
    rows = [line for line in text.splitlines() if line.startswith("| ") and "levels |" in line]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {levels} levels", way] for levels in (4, 3) for way in ("rounding to nearest", "training")]
    assert "| 2.25 | 2.25 | 20.90 | +0.900 | +0.818 to +1.000 | 9.00 | 8.50 to 9.50 | 90.0 |" in rows[1]
    assert "**4 levels**: rounded 54.0 mnat, trained 9.0, 6.0 times less. Trained, it is closer than rounding to 7 levels" in text
    assert "closer than rounding to 4 levels" in text and "and not significantly different from rounding to 7 levels" in text
    assert "1,200 steps of 8 windows, 2,457,600 tokens: 3 passes" in text and "`models/made-up`" in text


@pytest.mark.parametrize(("pair", "words"), [
    ([1.0, 0.5, 1.5], "trained 9.0, training made it worse."), ([0.0, -0.5, 0.5], "trained 9.0, no significant gain."),
])  # fmt: skip
def test_training_that_gains_nothing_is_told(pair, words):
    first, second, *others = TRAINED["rows"]
    second = second | {"kld_mnats_minus_nearest": second["kld_mnats_minus_nearest"] | {"int2": pair}}
    assert words in chapter(replace(made_up(), trained=TRAINED | {"rows": [first, second, *others]}))


def test_without_the_numbers_the_report_says_so(tmp_path):
    run = replace(made_up(), trained=None)
    text = chapter(run)
    assert "there is no reports/studies/trained.json" in text and "python -m stages.train_quantized" in text and "|" not in text
    write_results(run, tmp_path)
    assert read_run(run.params, tmp_path).trained is None
    write_results(made_up(), tmp_path)
    assert read_run(run.params, tmp_path).trained == TRAINED
