"""Which part gets how many bits: the search, what it is told, and what it leads to in an artifact."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import EMBEDDED_TOKENS, VOCABULARY
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_classes import opened
from torch.nn.functional import kl_div

from quant.calibration.budget import Choice, _cheapest, allocate
from quant.calibration.probe import _Probe, as_table, from_table, part_costs
from quant.calibration.skeleton import Skeleton
from quant.calibration.vocabulary import vocabulary_moments
from quant.errors import InputError
from quant.methods import Preparation, load
from quant.methods.calibrated.prepare import in_classes
from quant.methods.calibrated.spec import Spec, changed
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.model.selection import select
from quant.tensor.scheme import Scheme
from quant.text.corpus import Corpus, write_corpus

CANDIDATES = [Scheme(bits, 32, fit="mse", scale_dtype="float16") for bits in (2, 3, 4, 8)]


def costs_of(chosen):
    return sum(choice.cost for choice in chosen.values())


def bits_of(chosen):
    return sum(choice.bits for choice in chosen.values())


@st.composite
def tables(draw, is_convex=False):
    """Parts with choices that cost less the more bits they take, or in any order."""
    parts = {}
    for part in range(draw(st.integers(1, 4))):
        widths = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=4)))
        costs = sorted((draw(st.integers(0, 1000)) / 8 for _ in widths), reverse=True)
        if is_convex:
            gains = sorted((draw(st.integers(1, 64)) for _ in widths[1:]), reverse=True)  # per bit
            costs = [sum(gain * (b - a) for gain, (a, b) in zip(gains[i:], itertools.pairwise(widths[i:]), strict=True))
                     for i in range(len(widths))]
        parts[f"part{part}"] = [Choice(f"int{w}", w, float(c)) for w, c in zip(widths, costs, strict=True)]
    return parts


def every(parts):
    return [dict(zip(parts, chosen, strict=True)) for chosen in itertools.product(*parts.values())]


@settings(max_examples=100, deadline=None)
@given(parts=tables(), share=st.floats(0, 1.1))
def test_the_choice_fits_and_is_within_an_upgrade_of_the_best(parts, share):
    everything = every(parts)
    least, most = (pick(bits_of(chosen) for chosen in everything) for pick in (min, max))
    budget = least + share * (most - least)
    found = allocate(parts, budget)
    assert found.keys() == parts.keys() and all(found[name] in parts[name] for name in parts) and bits_of(found) <= budget
    best = min(costs_of(chosen) for chosen in everything if bits_of(chosen) <= budget)
    within = [price for price in (2.0**i for i in range(-12, 12)) if bits_of(_cheapest(parts, price)) <= budget]
    if within:  # never worse than the multiplier alone
        assert costs_of(found) <= min(costs_of(_cheapest(parts, price)) for price in within) + 1e-9
    step = max(choices[0].cost - choices[-1].cost for choices in parts.values())
    assert best <= costs_of(found) <= best + step + 1e-9
    for name, choices in parts.items():  # nothing that saves anything fits any more
        assert not any(choice.cost < found[name].cost and bits_of(found | {name: choice}) <= budget for choice in choices)


@settings(max_examples=100, deadline=None)
@given(parts=tables(is_convex=True), price=st.integers(0, 65))
def test_the_choice_is_the_best_where_the_budget_is_that_of_a_price(parts, price):
    budget = bits_of(_cheapest(parts, price + 0.5))
    best = min(costs_of(chosen) for chosen in every(parts) if bits_of(chosen) <= budget)
    assert costs_of(allocate(parts, budget)) == pytest.approx(best, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(parts=tables(), budgets=st.tuples(st.integers(1, 160), st.integers(1, 160)).map(sorted))
def test_a_larger_budget_never_costs_more(parts, budgets):
    assume(budgets[0] >= sum(choices[0].bits for choices in parts.values()))
    small, large = (allocate(parts, budget) for budget in budgets)
    assert costs_of(large) <= costs_of(small) + 1e-9


def test_choices_that_take_more_bits_and_cost_more_are_never_taken():
    parts = {"a": [Choice("int2", 10, 5.0), Choice("nf4", 20, 1.0), Choice("int4", 21, 2.0)], "b": [Choice("int2", 10, 0.0)]}
    assert {name: choice.name for name, choice in allocate(parts, 1000).items()} == {"a": "nf4", "b": "int2"}


def test_a_budget_below_the_smallest_choices_is_told():
    parts = {"a": [Choice("int2", 2**23, 5.0), Choice("int4", 2**24, 1.0)], "b": [Choice("int2", 2**23, 1.0)]}
    with pytest.raises(InputError, match=r"smallest candidates take 2\.00 MiB, the budget leaves 1\.50 MiB for them; raise"):
        allocate(parts, 1.5 * 2**23)
    assert bits_of(allocate(parts, 2**24)) == 2**24


def windows(vocabulary=VOCABULARY, count=8, length=32):
    generator = torch.Generator().manual_seed(2)
    return torch.multinomial(1 / torch.arange(1.0, vocabulary + 1), count * length, True, generator=generator).view(count, length)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "llama-tied", "gemma2", "opt", "phi3", "gemma3_text"])
def test_the_measured_cost_of_a_part_is_that_of_the_whole_model_with_the_part_replaced(lively, monkeypatch, architecture):
    folder, tokens = lively(architecture), windows()
    checkpoint, model = Checkpoint(folder), opened(folder)
    inventory, kept = checkpoint.inventory, {}
    moments = vocabulary_moments(model.requires_grad_(False), tokens, 0)
    weights = [s for s in select(inventory, Recipe(CANDIDATES[0], include=("*",))) if s.is_quantized]
    weights = in_classes(weights, inventory, moments, 2)
    original = _Probe._candidates

    def keep(self, name, *rest):
        kept[name] = original(self, name, *rest).clone()
        return kept[name]

    monkeypatch.setattr(_Probe, "_candidates", keep)
    found = part_costs(Skeleton(checkpoint), weights, CANDIDATES, moments, tokens)
    assert from_table(json.loads(json.dumps(as_table(found)))) == found
    names = [selected.name_of(part) for selected in weights for part in selected.parts]
    assert set(found) == set(kept) == set(names) and any("class1" in name for name in names)
    with torch.no_grad():
        expected = model(tokens).logits.log_softmax(-1)
        for selected in weights:
            for part in selected.parts:
                name, value = selected.name_of(part), model.get_parameter(selected.weight.name).data
                before, matrix = value.clone(), value.T if selected.weight.transposed else value
                matrix[selected.index_of(part)] = kept[name]
                divergence = 1000 * float(kl_div(model(tokens).logits.log_softmax(-1), expected, reduction="none",
                                                 log_target=True).sum(-1).mean())
                value.copy_(before)
                cost = found[name]
                assert cost.costs[cost.measured] == pytest.approx(divergence, rel=2e-2, abs=2e-4), name
    for name, cost in found.items():
        assert list(cost.bits) == sorted(cost.bits) and cost.costs[0] > cost.costs[-1] >= 0, name
        assert all(a >= b for a, b in itertools.pairwise(cost.costs)), name
    assert sum(cost.weights for cost in found.values()) == sum(w.count for w in inventory.weights if not w.is_bias)


def test_a_probe_takes_only_the_parts_that_are_quantized(lively):
    folder = lively("gpt2")
    checkpoint = Checkpoint(folder)
    weights = [s for s in select(checkpoint.inventory, Recipe(CANDIDATES[0], include=("q", "down"))) if s.is_quantized]
    found = part_costs(Skeleton(checkpoint), weights, CANDIDATES, None, windows())
    assert set(found) == {f"transformer.h.{i}.{name}" for i in range(2) for name in ("attn.c_attn.q", "mlp.c_proj")}


def test_moments_of_the_embedding_are_those_of_its_rows_where_the_model_scales_them(lively):
    """Gemma multiplies rows by the root of the width: a change of a row counts as many times."""
    folder, tokens = lively("gemma3_text"), windows(count=2)
    model = opened(folder)
    first = vocabulary_moments(model.requires_grad_(False), tokens, 0).embedding
    embeddings = model.get_input_embeddings()
    scale, head = float(embeddings.embed_scale), embeddings.weight.clone()
    model.get_output_embeddings().weight = torch.nn.Parameter(head)
    embeddings.weight = torch.nn.Parameter(head * scale)
    embeddings.embed_scale.fill_(1.0)
    assert torch.allclose(vocabulary_moments(model.requires_grad_(False), tokens, 0).embedding * scale**2, first, rtol=1e-3)


WRONG = [
    ({"rounding": "best"}, "rounding is 'best'"), ({"targets": "new"}, "targets is 'new'"), ({"refits": -1}, "refits is -1"),
    ({"sweeps": 1.5}, r"sweeps is 1\.5"), ({"classes": 0}, "classes is 0"), ({"importance": "yes"}, "importance is 'yes'"),
    ({"equalize": 1}, "equalize is 1"), ({"budget": 0.4}, r"budget is 0\.4; expected bits a weight, from 0\.5 to 32"),
    ({"budget": 33}, "budget is 33"), ({"budget": True}, "budget is True"), ({"budget": "3"}, "budget is '3'"),
    ({"budget": float("nan")}, "budget is nan"), ({"size_mib": 0}, "size_mib is 0"),
    ({"size_mib": float("inf")}, "size_mib is inf"),
    ({"budget": 3, "size_mib": 3}, "budget and size_mib are given; expected one"),
    ({"budget": 3, "allocation": {"a": {"bits": 2}}}, "budget and allocation are given"),
    ({"budget": 3, "candidates": [9]}, "candidates holds 9"), ({"candidates": [True]}, "candidates holds True"),
    ({"candidates": []}, r"candidates is \[\]"), ({"candidates": 4}, "candidates is 4"),
    ({"budget": 3, "candidates": [{"bit": 4}]}, "unknown candidate key 'bit'"),
    ({"budget": 3, "candidates": [{"codebook": "nf4", "bits": 3}]}, "bits must be 4"),
    ({"budget": 3, "schemes": {"v": {"bits": 8}}}, "schemes is given beside a budget"),
    ({"allocation": "none.yaml"}, "allocation is 'none.yaml', which is no file"), ({"allocation": [1]}, r"allocation is \[1\]"),
    ({"allocation": {"a": 3}}, "expected parts such as"), ({"include": "all"}, "include is 'all'"),
    ({"bit": 3}, "unknown recipe key"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), WRONG, ids=[str(row) for row, _ in WRONG])
def test_a_wrong_row_is_refused(row, message):
    with pytest.raises(InputError, match=message):
        load("calibrated").resolve({}, row)


@pytest.mark.parametrize("row", [
    {}, {"budget": 3.5}, {"size_mib": 10, "candidates": [2, {"codebook": "nf4", "bits": 4}, {"codebook": [-1, 0, 1], "bits": 2}]},
    {"bits": 3, "schemes": {"v": {"bits": 8}}, "blocks": [0, "1-2"], "equalize": True},
    {"allocation": {"model.layers.0.mlp.up_proj": {"bits": 3, "group_size": 32}}}, {"codebook": "nf4", "bits": 4},
], ids=str)  # fmt: skip
def test_a_row_survives_json(row):
    method = load("calibrated")
    values = method.resolve({"group_size": 64, "levels": "full"}, row)
    assert json.loads(json.dumps(values)) == values and Spec.from_dict(values).to_dict() == values
    assert json.loads(json.dumps(method.wants(values))) == method.wants(values)


def test_a_table_drops_what_is_for_steps_only():
    start = Scheme(4, 32, symmetric=False, zeros="whole")
    assert changed(start, {"codebook": "nf4"}) == Scheme(4, 32, codebook="nf4")
    assert changed(replace(start, symmetric=True, zeros="real", levels="full"), {"bits": 3}).levels == "full"


@pytest.fixture(scope="module")
def planned(lively, tmp_path_factory):
    """planned(architecture, rows) -> the model's folder, the prepared folder of these rows, and the rows with all parameters."""
    from test_calibration_windows import text

    made = {}

    def make(architecture, rows, **changes):
        key = architecture, json.dumps(rows)
        if key not in made:
            folder = tmp_path_factory.mktemp("planned")
            base, method = lively(architecture, vocab_size=EMBEDDED_TOKENS, **changes), load("calibrated")
            (folder / "other.txt").write_text("\n".join(text(5, 100)))
            write_corpus(Corpus("text.txt", text(6, 60)), folder / "text", folder / "private")
            values = [method.resolve({}, row) for row in rows]
            method.prepare(Preparation(base, folder / "text", folder / "private", {
                "text": str(folder / "other.txt"), "windows": 12, "length": 32}, {"source": "grammar"}, {},
                [method.wants(row) for row in values]), folder / "prepared")
            made[key] = base, folder / "prepared", values
        return made[key]

    return make


def tensors_of(folder):
    return Checkpoint(folder).tensors


def bytes_of(folder):
    return sum(info.bytes for info in tensors_of(folder).values())


ALL = {"include": ["*"], "exclude": ["norm"], "group_size": 32, "scale_dtype": "int8", "refits": 0, "sweeps": 1}


def artifact(planned_row, out, values=None):
    base, prepared, rows = planned_row
    load("calibrated").build(base, prepared, rows[0] if values is None else values, out, lambda _: None)
    return out


@pytest.mark.parametrize(("architecture", "row"), [
    ("gpt2", {**ALL, "budget": 3.3}), ("llama", {**ALL, "budget": 4.2, "classes": 3}), ("llama-tied", {**ALL, "budget": 3.0}),
    ("gpt2", {**ALL, "size_mib": 0.12, "classes": 1}), ("gpt2", {**ALL, "exclude": [], "budget": 3.5}),
    ("gpt2", {**ALL, "include": ["q", "mlp", "embedding"], "budget": 8.5}),
], ids=["tied", "untied", "llama-tied", "size", "norms", "parts"])  # fmt: skip
def test_the_artifact_has_the_size_of_its_budget(planned, tmp_path, architecture, row):
    made = planned(architecture, [row])
    inventory, (values,) = Checkpoint(made[0]).inventory, made[2]
    out = artifact(made, tmp_path / "out")
    allowed = Spec.from_dict(values).bits_allowed(inventory.parameters) / 8
    assert 0.8 * allowed < bytes_of(out) <= allowed
    forecast = load("calibrated").sizes(inventory, made[0], values)
    assert forecast.file_bytes == pytest.approx(allowed) and forecast.held_bytes >= bytes_of(out)
    manifest = json.loads((out / "manifest.json").read_text())["allocation"]
    parts = manifest["parts"]
    assert sum(part["predicted_kld_mnats"] for part in parts) == pytest.approx(manifest["predicted_kld_mnats"])
    assert len({part["bits"] for part in parts}) > 1 and (opened(out)(windows()).logits.isfinite()).all()
    if "classes" not in row:
        assert sum("class" in part["name"] for part in parts) == 8


def test_a_budget_that_is_too_small_is_told_by_the_forecast_and_by_the_build(planned, tmp_path):
    made = planned("gpt2", [{**ALL, "budget": 3.3}])
    values = {**made[2][0], "budget": 2.0}
    for attempt in (lambda: load("calibrated").sizes(Checkpoint(made[0]).inventory, made[0], values),
                    lambda: artifact(made, tmp_path / "out", values)):
        with pytest.raises(InputError, match="raise the budget or add a smaller candidate"):
            attempt()


def test_an_edited_allocation_changes_its_part_alone(planned, tmp_path):
    made = planned("gpt2", [{**ALL, "budget": 3.3}])
    first = artifact(made, tmp_path / "first")
    table = yaml.safe_load((first / "allocation.yaml").read_text())
    row = {**{key: value for key, value in made[2][0].items() if key != "budget"}, "budget": None}

    def rebuilt(name):
        (tmp_path / "edited.yaml").write_text(yaml.safe_dump(table))
        values = load("calibrated").resolve({}, {**row, "allocation": str(tmp_path / "edited.yaml")})
        return artifact(made, tmp_path / name, values)

    same = rebuilt("same")
    assert (same / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    part = "transformer.h.1.mlp.c_fc"
    assert table["parts"][part] != {"bits": 8}
    table["parts"][part] = {"bits": 8}
    before, after = ({name: (info.dtype, info.shape) for name, info in tensors_of(folder).items()}
                     for folder in (first, rebuilt("edited")))
    changed = {name for name, _ in before.items() ^ after.items()}  # its scales too, if their groups had another size
    assert {f"{part}.weight.codes"} <= changed <= {f"{part}.weight.codes", f"{part}.weight.scale_codes"}
    assert after[f"{part}.weight.codes"] == (torch.uint8, (256, 64))
    for change, message in (("transformer.h.9.x", r"allocation names transformer\.h\.9\.x, which this row does not quantize"),
                            (None, r"allocation lacks transformer\.h\.1\.mlp\.c_fc; expected every part")):
        if change:
            table["parts"][change] = {"bits": 4}
        else:
            del table["parts"]["transformer.h.9.x"], table["parts"][part]
        with pytest.raises(InputError, match=message):
            rebuilt("wrong")
