"""Distillation: what stays in float beside the codes learns, the codes stay, and nothing gets worse."""

from dataclasses import replace

import pytest
import torch
from conftest import VOCABULARY, config_of, save_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import quant.transformers_format  # noqa: F401  registers the format
from quant.calibration import distill as module
from quant.calibration.distill import distill
from quant.calibration.saved import Saved
from quant.calibration.sequential import Settings, calibrate
from quant.calibration.skeleton import Skeleton
from quant.calibration.solver import Solver
from quant.errors import InputError
from quant.files import sha256_of, write_json
from quant.methods.calibrated import build as building
from quant.methods.calibrated.spec import Spec
from quant.model.artifact import artifact_layout, write_selected
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.model.selection import select, with_classes
from quant.tensor.groups import has_row_scales, times_rows
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme

STEPS = 30
SCHEME = Scheme(2, 16, levels="full", scale_dtype="float16")
CLASSES = [Scheme(4, 16, scale_dtype="int8"), None, Scheme(3, 16, scale_dtype="float16", symmetric=False)]
OWN = [SCHEME, Scheme(3, "row"), Scheme(2, 16, scale_dtype="bfloat16", symmetric=False), Scheme(4, 16, codebook="nf4"),
       Scheme(3, 24, scale_dtype="int8", levels="full"), Scheme(3, 16, scale_dtype="int8", symmetric=False, zeros="whole"),
       Scheme(2, 16, scale_dtype="int8", symmetric=False), Scheme(3, 16, symmetric=False, zeros="whole", scale_dtype="float16")]
SHARED = [Scheme(2, "tensor"), Scheme(2, 16, double_quant=True)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def make_sharp(tmp_path_factory):
    """make_sharp(architecture, dtype) -> a tiny model with larger weights than usual, so that it predicts something."""
    made = {}

    def make(architecture="gpt2", dtype=torch.float32):
        if (architecture, dtype) not in made:
            config = config_of(architecture)
            config.initializer_range = 0.1
            made[architecture, dtype] = save_model(config, tmp_path_factory.mktemp(architecture), dtype)
        return made[architecture, dtype]

    return make


@pytest.fixture
def tokens():
    return torch.randint(3, VOCABULARY, (96, 32), generator=torch.Generator().manual_seed(5))


def finished(folder, tokens, work, scheme=SCHEME, include=("attention", "mlp"), classes=None):
    """A finished pass: (skeleton, weights, saved). classes: schemes of classes of the embedding's rows."""
    checkpoint = Checkpoint(folder)
    weights = [s for s in select(checkpoint.inventory, Recipe(scheme, include=include)) if s.is_quantized]
    saved, skeleton = Saved(work, "x"), Skeleton(checkpoint)
    if classes:
        whole = next(s for s in select(checkpoint.inventory, Recipe(scheme, include=("embedding",))) if s.is_quantized)
        weights.append(with_classes(whole, torch.arange(whole.weight.shape[0]) % len(classes), classes))
        rows = checkpoint.read(whole.weight.tensor).float()
        for part in weights[-1].parts:
            if part.scheme:
                saved.put(weights[-1], part, quantize(rows[weights[-1].rows_of(part)], part.scheme))
        saved.finish("outside")
    calibrate(skeleton, [s for s in weights if s.classes is None], tokens, Settings(Solver(refits=0, sweeps=0)), saved)
    return skeleton, weights, saved


def write(skeleton, weights, saved, distilled, out):
    write_selected(skeleton.checkpoint, weights, out,
                   quantizer=lambda selected, part, _: distilled.apply(selected, part, saved.read(selected, part)),
                   replaced=saved.floats() | distilled.floats)
    return out


def divergence(folder, base, tokens):
    """Mean divergence of a stored model in mnat a token."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        found, expected = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(tokens).logits.log_softmax(-1)
                           for path in (folder, base))
    return 1000 * float((expected.exp() * (expected - found)).sum() / tokens.numel())


@pytest.mark.parametrize(("architecture", "classes"), [
    ("gpt2", None), ("llama", None), ("gemma3_text", None), ("gpt2", CLASSES), ("llama", CLASSES)])
def test_held_out_divergence_falls_at_the_same_codes(make_sharp, tokens, tmp_path, architecture, classes):
    base = make_sharp(architecture)
    skeleton, weights, saved = finished(base, tokens, tmp_path / "work", classes=classes)
    before = write(skeleton, weights, saved, distill(skeleton, weights, saved, tokens, 0), tmp_path / "before")
    distilled = distill(skeleton, weights, saved, tokens, STEPS)
    after = write(skeleton, weights, saved, distilled, tmp_path / "after")
    assert distilled.is_better and 0 < distilled.after < distilled.before and not distilled.left_out
    held_out = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[: len(tokens) // 8]]
    for folder, expected in ((before, distilled.before), (after, distilled.after)):
        assert divergence(folder, base, held_out) == pytest.approx(expected, rel=1e-3), "measured as it is stored"
    stored = [Checkpoint(folder) for folder in (before, after)]
    changed = set()
    for name in artifact_layout(skeleton.inventory, weights):
        old, new = (checkpoint.read(name) for checkpoint in stored)
        assert old.dtype == new.dtype and old.shape == new.shape
        if not torch.equal(old, new):
            changed.add(name.rpartition(".")[2])
    assert {"scales", "weight"} <= changed <= {"scales", "row_scales", "zeros", "weight", "bias"}, "norms and scales, no codes"
    if classes:
        assert {"row_scales", "zeros"} <= changed


def test_rows_that_are_not_quantized_and_matrices_stay(make_sharp, tokens, tmp_path):
    skeleton, weights, saved = finished(make_sharp(), tokens, tmp_path / "work", classes=CLASSES)
    distilled = distill(skeleton, weights, saved, tokens, 4)
    assert not any(".class1" in name for name in distilled.groups)
    shapes = {weight.name: weight.shape for weight in skeleton.inventory.weights}
    assert distilled.floats and all(len(shapes[name]) == 1 for name in distilled.floats)


def test_the_same_seed_gives_the_same_bytes_and_another_others(make_sharp, tokens, tmp_path):
    skeleton, weights, saved = finished(make_sharp("llama"), tokens, tmp_path / "work")
    found = []
    for seed in (0, 0, 1):
        distilled = distill(skeleton, weights, saved, tokens, 5, seed)
        found.append(write(skeleton, weights, saved, distilled, tmp_path / f"out{len(found)}") / "model.safetensors")
    first, second, third = map(sha256_of, found)
    assert first == second != third


def test_what_gets_worse_is_not_kept(make_sharp, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RATE", 1.0)
    skeleton, weights, saved = finished(make_sharp(), tokens, tmp_path / "work")
    distilled = distill(skeleton, weights, saved, tokens, 5)
    assert not distilled.is_better and distilled.groups == distilled.floats == {}
    assert "the values before are kept" in str(distilled) and not distilled.to_dict()["is_used"]


@pytest.mark.parametrize("scheme", SHARED, ids=lambda scheme: scheme.label)
def test_scales_that_rows_share_are_left_out_and_named(make_sharp, tokens, tmp_path, scheme):
    skeleton, weights, saved = finished(make_sharp(), tokens, tmp_path / "work", scheme)
    distilled = distill(skeleton, weights, saved, tokens, 15)
    assert distilled.left_out == tuple(selected.weight.module for selected in weights)
    assert f"no factors for {distilled.left_out[0]}, " in str(distilled)
    assert distilled.groups == {} and distilled.floats, "norms and biases learn all the same"
    with pytest.raises(InputError, match="share what is stored"):
        times_rows(quantize(torch.randn(3, 32), scheme).groups, torch.ones(3))


def test_without_steps_or_a_window_to_hold_out_nothing_is_trained(make_sharp, tokens, tmp_path):
    skeleton, weights, saved = finished(make_sharp(), tokens[:1], tmp_path / "work")
    for steps in (0, 4):
        distilled = distill(skeleton, weights, saved, tokens[:1], steps)
        assert distilled.groups == distilled.floats == {} and not distilled.is_better
    assert "fewer than two windows" in str(distilled) and distilled.to_dict()["held_out_kld_mnats"]["before"] is None


def test_batches_of_logits_do_not_change_the_loss(make_sharp, tokens, tmp_path, monkeypatch):
    skeleton, weights, saved = finished(make_sharp(), tokens, tmp_path / "work")
    whole = distill(skeleton, weights, saved, tokens, 3)
    monkeypatch.setattr(module, "BATCH_LOGITS", 1)
    pieces = distill(skeleton, weights, saved, tokens, 3)
    assert pieces.before == pytest.approx(whole.before, rel=1e-4) and pieces.after == pytest.approx(whole.after, rel=1e-3)


@pytest.mark.parametrize("scheme", OWN, ids=lambda scheme: scheme.label)
@given(seed=st.integers(0, 10**6), spread=st.floats(0, 0.5), size=st.floats(1e-6, 1e3))
@settings(max_examples=15, deadline=None)
def test_factors_fold_into_what_is_stored_of_each_row(scheme, seed, spread, size):
    generator = torch.Generator().manual_seed(seed)
    tensor = quantize(size * torch.randn(5, 40, generator=generator), scheme)
    factors = (spread * torch.randn(5, generator=generator)).exp()
    groups = times_rows(tensor.groups, factors)
    before, after = tensor.tensors(), replace(tensor, scales=groups.scales, zeros=groups.zeros).tensors()
    assert {key: value.dtype for key, value in before.items()} == {key: value.dtype for key, value in after.items()}
    for key, value in before.items():
        if key in ("codes", "scale_codes") or (key == "zeros" and scheme.zeros == "whole"):
            assert torch.equal(after[key], value)
        else:
            expected = (value.float() * factors.unsqueeze(-1)).to(value.dtype)
            stays = (after[key] == value).all(-1)
            assert ((after[key] == expected).all(-1) | stays).all(), "a row is scaled as a whole, or stays as a whole"
            if size > 1e-2:
                assert torch.equal(after[key], expected)
    if scheme.symmetric and scheme.scale_dtype == "float32":
        values = dequantize(replace(tensor, scales=groups.scales))
        assert torch.allclose(values, dequantize(tensor) * factors.unsqueeze(-1), rtol=1e-6)
    same = times_rows(tensor.groups, torch.ones(5))
    assert all(torch.equal(old, new) for old, new in zip(vars(tensor.scales).values(), vars(same.scales).values(), strict=True))


@pytest.mark.parametrize(("scale", "factor"), [(60000.0, 2.0), (6e-8, 0.1)])
def test_a_row_that_would_leave_its_dtypes_range_stays(scale, factor):
    scheme = Scheme(4, "row", scale_dtype="float16")
    assert has_row_scales(scheme)
    groups = quantize(torch.ones(2, 16), scheme).groups
    groups = replace(groups, scales=replace(groups.scales, scales=torch.tensor([[scale], [1.0]], dtype=torch.float16)))
    found = times_rows(groups, torch.tensor([factor, factor])).scales.scales.flatten()
    assert found[0] == groups.scales.scales[0, 0] and found[1] == torch.tensor(factor, dtype=torch.float16)


def prepared_in(folder, tokens):
    folder.mkdir()
    save_file({"tokens": tokens.to(torch.int32)}, folder / "windows.safetensors")
    write_json(folder / "about.json", {"source": "x", "split": "train", "windows": len(tokens), "length": tokens.shape[1],
                                       "private": None})
    return folder


def test_a_row_of_params_distills_and_a_killed_run_keeps_its_blocks(make_sharp, tokens, tmp_path, monkeypatch):
    base, prepared = make_sharp(dtype=torch.float16), prepared_in(tmp_path / "prepared", tokens)
    row = {"bits": 2, "group_size": 16, "levels": "full", "scale_dtype": "float16", "refits": 0, "sweeps": 0, "distill": STEPS}
    told = []
    building.build(base, prepared, Spec.from_dict(row), tmp_path / "whole", told.append)
    assert any(line.startswith("distillation: held-out divergence ") for line in told)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "distill", killed)
        with pytest.raises(KeyboardInterrupt):
            building.build(base, prepared, Spec.from_dict(row), tmp_path / "again", told.append)
    told.clear()
    building.build(base, prepared, Spec.from_dict(row), tmp_path / "again", told.append)
    assert told[0] == "going on after block 1, which an earlier run finished"
    assert sha256_of(tmp_path / "whole" / "model.safetensors") == sha256_of(tmp_path / "again" / "model.safetensors")
    building.build(base, prepared, Spec.from_dict(row | {"distill": 0}), tmp_path / "plain", lambda _: None)
    assert divergence(tmp_path / "whole", base, tokens) < divergence(tmp_path / "plain", base, tokens)
    assert "distilled" not in (tmp_path / "plain" / "manifest.json").read_text()
    stored = Checkpoint(tmp_path / "whole").tensors
    assert {info.dtype for name, info in stored.items() if name.endswith("bias")} == {torch.float16}


@pytest.mark.parametrize("value", [-1, 1.5, True, "80", None])
def test_steps_are_a_whole_number(value):
    with pytest.raises(InputError, match=r"distill is .*; expected a whole number from 0"):
        Spec.from_dict({"distill": value})


def test_steps_go_through_json():
    assert Spec.from_dict({}).distill == 0
    spec = Spec.from_dict({"distill": 80})
    assert spec.to_dict()["distill"] == 80 and Spec.from_dict(spec.to_dict()) == spec
