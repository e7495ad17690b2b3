"""One contract for every runtime: the same text gives the same numbers, whatever runs it and however it is batched."""

import inspect
import json
import math
from importlib import import_module

import numpy
import pytest
import torch
from conftest import EMBEDDED_TOKENS

from quant.errors import InputError
from quant.quality import score as quality
from quant.quality.protocol import ScoringProtocol
from quant.quality.score import ModelPredictions, divergence, score, summarize
from quant.quality.windows import Tokens
from quant.runners import RUNTIMES, Runner, RunnerWithStates, StoredTensor, import_runtime, open_runner, opening_of
from quant.runners.compiled import CompiledDecoder

PROTOCOLS = pytest.mark.parametrize("protocol", ["joined/1", "sentence/1", "llama.cpp/1"])
KINDS = pytest.mark.parametrize("kind", ["base", "int4", "bnb-nf4", "bnb-int8", "gguf-f16", "gguf-q4_k_m"])


@pytest.fixture(scope="module")
def opened(runtimes):
    """opened(kind) -> the variant's runner, loaded once."""
    made = {}

    def open_once(kind):
        if kind not in made:
            made[kind] = open_runner(runtimes[kind])
        return made[kind]

    return open_once


@pytest.fixture(scope="module")
def text():
    ids = torch.randint(3, EMBEDDED_TOKENS, (420,), generator=torch.Generator().manual_seed(7))
    ones = torch.ones(420, dtype=torch.int64)
    return Tokens(ids, ones, ones, (0, 30, 90, 102, 250, 262, 274, 404))


def evaluate(runner, text, protocol):
    return score(ModelPredictions(runner), None, text, ScoringProtocol(protocol, context=48, stride=32))


def members(protocol):
    """Methods of a protocol, and the attributes that it declares."""
    found = {name: value for name, value in vars(protocol).items() if inspect.isfunction(value) and not name.startswith("_")}
    return found, inspect.get_annotations(protocol)


def test_every_runtime_keeps_the_protocol_of_runners(opened):
    kinds = {"transformers": ("base", RunnerWithStates), "llama_cpp": ("gguf-f16", Runner)}
    assert set(kinds) == set(RUNTIMES)
    for runtime, (kind, protocol) in kinds.items():
        module, runner = import_module(f"quant.runners.runtimes.{runtime}"), opened(kind)
        assert type(runner) is module.Runner and callable(module.import_libraries)
        for part in {Runner, protocol}:
            methods, attributes = members(part)
            for name, declared in methods.items():
                given, wanted = (inspect.signature(method).parameters for method in (getattr(module.Runner, name), declared))
                assert list(given) == list(wanted), f"{runtime}.Runner.{name}"
            assert all(hasattr(runner, name) for name in attributes), runtime
        assert (runner.vocabulary, runner.context) == (EMBEDDED_TOKENS, 64)
        assert all(isinstance(tensor, StoredTensor) and tensor.bytes > 0 for tensor in runner.tensors())
        assert all(count > 0 for count in runner.module_counts().values())


def test_states_are_those_that_the_head_multiplies(opened, text):
    runner = opened("base")
    tokens = text.ids[:40].view(2, 20)
    logits, states = runner.logits_and_states(tokens)
    assert torch.equal(logits, runner.logits(tokens)) and (states.shape, states.dtype) == ((2, 20, 256), torch.float32)
    assert torch.allclose(states @ runner.model.lm_head.weight.detach().T, logits, atol=1e-4)


@pytest.mark.parametrize(("manifest", "message"), [
    ({"runtime": "onnx"}, r"runtime 'onnx'; expected one of llama_cpp, transformers; .*dvc repro"),
    ({"weights": "../base"}, r"points to '\.\./base'; expected the name of a folder beside it; .*dvc repro"),
])  # fmt: skip
def test_a_manifest_that_can_not_be_is_refused(tmp_path, manifest, message):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for use in (opening_of, open_runner, import_runtime):
        with pytest.raises(InputError, match=message):
            use(tmp_path)


def test_a_folder_that_is_not_there_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"models.int4 does not exist; make it with dvc repro"):
        open_runner(tmp_path / "models" / "int4")
    (tmp_path / "manifest.json").write_text('{"runtime": "llama_cpp"}')
    with pytest.raises(InputError, match=r"has no model\.gguf; make it with dvc repro"):
        open_runner(tmp_path)


def test_a_manifest_can_name_other_weights_and_a_dtype(runtimes, opened, text):
    opening, tokens = opening_of(runtimes["bf16"]), text.ids[:20].view(1, 20)
    assert (opening.weights, opening.dtype) == (runtimes["base"], "bfloat16")
    bf16 = opened("bf16")
    assert {tensor.dtype for tensor in bf16.tensors()} == {"bfloat16"}
    assert torch.equal(bf16.logits(tokens), open_runner(runtimes["base"], "bfloat16").logits(tokens))
    assert {tensor.dtype for tensor in open_runner(runtimes["bf16"], "float32").tensors()} == {"float32"}


@PROTOCOLS
@pytest.mark.parametrize("kind", ["base", "gguf-f16"])
def test_the_score_is_the_sum_over_the_windows_one_by_one(opened, text, kind, protocol):
    """Against a plain loop of its own, token by token of each window, in float64."""
    runner, total, count = opened(kind), 0.0, 0
    stops = (*text.starts[1:], len(text.ids))
    ranges = []  # (first input, last target, first scored target)
    if protocol == "llama.cpp/1":
        ranges = [(start, start + 47, start + 25) for start in range(0, 420 - 47, 48)]
    for begin, end in [(0, 420)] if protocol == "joined/1" else zip(text.starts, stops, strict=True) if not ranges else []:
        reached = begin
        for start in range(begin, end, 32):
            last = min(start + 48, end - 1)
            ranges.append((start, last, reached + 1))
            reached = last
            if last == end - 1:
                break
    tokens = Tokens(text.ids, text.bytes, text.words, (0,) if protocol == "joined/1" else text.starts)
    for start, last, first in ranges:
        log_p = torch.log_softmax(runner.logits(text.ids[start:last].view(1, -1))[0].double(), -1)
        for target in range(first, last + 1):
            total -= float(log_p[target - start - 1, text.ids[target]])
            count += 1
    found = evaluate(runner, tokens, protocol)
    assert len(found) == count
    assert summarize(found)["ppl"] == pytest.approx(math.exp(total / count), rel=1e-6)


@pytest.mark.parametrize("kind", ["int4", "bnb-nf4", "gguf-q4_k_m"])
def test_divergence_is_that_of_whole_distributions_side_by_side(opened, text, kind):
    """Every number by its definition, in float64, from logits kept for the whole text: what the scorer never does."""
    base, variant = opened("base"), opened(kind)
    joined = Tokens(text.ids, text.bytes, text.words)
    scores = score(ModelPredictions(variant), ModelPredictions(base), joined, ScoringProtocol(context=48, stride=48))
    p, q = [], []
    for start in range(0, len(text.ids) - 1, 48):
        inputs = text.ids[start : min(start + 48, len(text.ids) - 1)].view(1, -1)
        for rows, runner in ((p, base), (q, variant)):
            rows.append(torch.softmax(runner.logits(inputs)[0].double(), -1))
    p, q, wanted = torch.cat(p).numpy(), torch.cat(q).numpy(), text.ids[1:].numpy()
    kld = 1000 * (p * numpy.log(p / q)).sum(-1)
    ordered, at = numpy.sort(kld), numpy.arange(len(wanted))
    summary, found = summarize(scores), divergence(scores)
    assert summary["kld_mnats"] == pytest.approx(kld.mean(), rel=1e-3) and kld.mean() > 0.05
    for key, level in (("median", 0.5), ("p99", 0.99), ("p999", 0.999)):
        place = level * (len(kld) - 1)  # between two of the sorted values, by their distance
        below, share = int(place), place % 1
        expected = (1 - share) * ordered[below] + share * ordered[min(below + 1, len(kld) - 1)]
        assert found["kld_mnats"][key] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    best, mine = (numpy.argsort(-values, axis=-1)[:, :5] for values in (p, q))
    assert found["top1_agree_pct"] == pytest.approx(100 * (best[:, 0] == mine[:, 0]).mean(), abs=0.3)
    shared = [len(set(a) & set(b)) for a, b in zip(best.tolist(), mine.tolist(), strict=True)]
    assert found["top5_agree_pct"] == pytest.approx(100 * numpy.mean(shared) / 5, abs=0.3)
    change = 100 * (q[at, wanted] - p[at, wanted])
    moved = found["true_token_change_pct"]
    assert (moved["mean"], moved["rms"]) == pytest.approx((change.mean(), (change**2).mean() ** 0.5), rel=1e-2, abs=1e-6)


@pytest.mark.parametrize(("kind", "protocol"), [
    *((kind, "joined/1") for kind in ("base", "bf16", "int4", "bnb-nf4", "bnb-int8", "gguf-f16", "gguf-q4_k_m")),
    *((kind, protocol) for kind in ("base", "gguf-f16") for protocol in ("sentence/1", "llama.cpp/1")),
])  # fmt: skip
def test_batches_change_nothing(opened, text, kind, protocol, monkeypatch):
    runner, ppl = opened(kind), []
    for size in (1, 3 * 48 * EMBEDDED_TOKENS, 2**24):
        monkeypatch.setattr(quality, "BATCH_LOGITS", size)
        ppl.append(summarize(evaluate(runner, text, protocol))["ppl"])
    assert ppl == pytest.approx([ppl[0]] * 3, rel=1e-6)


@PROTOCOLS
def test_the_two_runtimes_agree_on_one_model(opened, text, protocol):
    ours, theirs = (evaluate(opened(kind), text, protocol) for kind in ("base", "gguf-f16"))
    assert summarize(ours)["ppl"] == pytest.approx(summarize(theirs)["ppl"], rel=1e-3)
    assert numpy.abs(ours.nll - theirs.nll).max() < 0.02


@KINDS
def test_logits_are_those_of_a_row_alone_and_of_what_came_before(opened, text, kind):
    """The batch's last row is the first one with another end. Each is as long as the context allows."""
    runner = opened(kind)
    tokens = torch.stack([text.ids[:64], text.ids[64:128], text.ids[:64]])
    tokens[2, 50:] = 5
    together = runner.logits(tokens)
    assert together.shape == (3, 64, EMBEDDED_TOKENS) and together.dtype == torch.float32 and torch.isfinite(together).all()
    for i in range(3):
        assert torch.allclose(runner.logits(tokens[i : i + 1])[0], together[i], atol=1e-4)
    assert torch.allclose(together[0, :50], together[2, :50], atol=1e-4)


@KINDS
def test_decoding_follows_scoring(runtimes, text, kind):
    runner = open_runner(runtimes[kind], threads=2)
    best = runner.logits(text.ids[:24].view(1, -1))[0].argmax(-1)
    for _ in range(2):  # a second prompt starts from an empty cache
        assert runner.prefill(text.ids[:16]) == best[15]
        assert [runner.decode(int(token)) for token in text.ids[16:24]] == best[16:].tolist()


@pytest.mark.parametrize(("kind", "is_compiled"), [("base", True), ("int4", True), ("bnb-nf4", False)])
def test_a_compiled_decoder_writes_what_the_runner_does(runtimes, text, kind, is_compiled):
    """As on a GPU, but for the backend. bitsandbytes' quantizer says that its models can't be compiled."""
    runner = open_runner(runtimes[kind], threads=2)
    assert not runner.is_compiled, "on a CPU transformers compiles nothing"
    texts = [text.ids[:16], text.ids[30:40]]
    expected = [[runner.prefill(ids), *map(runner.decode, range(40, 46))] for ids in texts]
    torch._dynamo.utils.counters.clear()
    runner._decoder = CompiledDecoder(runner.model, 30, "eager")
    assert [[runner.prefill(ids), *map(runner.decode, range(40, 46))] for ids in texts] == expected
    assert runner.is_compiled == is_compiled
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == is_compiled


def test_a_model_that_is_not_one_graph_is_decoded_step_by_step(runtimes, text):
    torch._dynamo.reset()  # a graph of before would do, as hooks are not looked at again
    runner = open_runner(runtimes["base"], threads=2)
    expected = [runner.prefill(text.ids[:16]), runner.decode(5)]
    runner._decoder = CompiledDecoder(runner.model, 30, "eager")
    runner.model.transformer.h[0].register_forward_hook(lambda *_: torch._dynamo.graph_break())
    assert [runner.prefill(text.ids[:16]), runner.decode(5)] == expected
    assert not runner.is_compiled


def test_max_tokens_bound_the_memory_that_llama_cpp_reserves(runtimes):
    runner = open_runner(runtimes["gguf-f16"], max_tokens=20)
    assert runner.context == 20 and open_runner(runtimes["gguf-f16"], max_tokens=1000).context == 64
    assert torch.isfinite(runner.logits(torch.zeros(1, 20, dtype=torch.int64))).all()


@pytest.mark.parametrize(("kind", "counts"), [
    ("base", {"Conv1D": 4, "Embedding": 2, "LayerNorm": 3, "Linear": 1}),
    ("int4", {"QEmbedding": 2, "QLinear": 4, "QNorm": 3, "QTiedHead": 1}),
    ("bnb-nf4", {"Embedding": 2, "LayerNorm": 3, "Linear": 1, "Linear4bit": 4}),
    ("bnb-int8", {"Embedding": 2, "LayerNorm": 3, "Linear": 1, "Linear8bitLt": 4}),
    ("gguf-q8_0", {"GGUF f32": 11, "GGUF q8_0": 5}),
])  # fmt: skip
def test_modules_are_counted_by_type(opened, kind, counts):
    assert opened(kind).module_counts() == counts
