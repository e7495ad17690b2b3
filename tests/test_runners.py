"""One contract for every runtime: the same text gives the same numbers, whatever runs it and however it is batched."""

import math

import numpy
import pytest
import torch

from quant.measure import quality
from quant.measure.quality import Live, score, summarize
from quant.measure.windows import Protocol, Tokens
from quant.runners import open_runner

PROTOCOLS = pytest.mark.parametrize("protocol", ["joined/1", "sentence/1", "llama.cpp/1"])
KINDS = pytest.mark.parametrize("kind", ["base", "int4", "bnb-nf4", "bnb-int8", "gguf-f16", "gguf-q4_k_m"])


@pytest.fixture(scope="module")
def text():
    ids = torch.randint(3, 2048, (420,), generator=torch.Generator().manual_seed(7))
    ones = torch.ones(420, dtype=torch.int64)
    return Tokens(ids, ones, ones, (0, 30, 90, 102, 250, 262, 274, 404))


def evaluate(runner, text, protocol):
    return score(Live(runner), None, text, Protocol(protocol, context=48, stride=32))


@PROTOCOLS
@pytest.mark.parametrize("kind", ["base", "gguf-f16"])
def test_the_score_is_the_sum_over_the_windows_one_by_one(runtimes, text, kind, protocol):
    """Against a plain loop of its own, token by token of each window, in float64."""
    runner, total, count = open_runner(runtimes[kind]), 0.0, 0
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


@PROTOCOLS
@KINDS
def test_batches_change_nothing(runtimes, text, kind, protocol, monkeypatch):
    runner, ppl = open_runner(runtimes[kind]), []
    for size in (1, 3 * 48 * 2048, 2**24):
        monkeypatch.setattr(quality, "BATCH_LOGITS", size)
        ppl.append(summarize(evaluate(runner, text, protocol))["ppl"])
    assert ppl == pytest.approx([ppl[0]] * 3, rel=1e-6)


def test_batches_change_nothing_in_bfloat16(runtimes, text, monkeypatch):
    runner, ppl = open_runner(runtimes["base"], "bfloat16"), []
    for size in (1, 2**24):
        monkeypatch.setattr(quality, "BATCH_LOGITS", size)
        ppl.append(summarize(evaluate(runner, text, "joined/1"))["ppl"])
    assert ppl[0] == pytest.approx(ppl[1], rel=1e-6)


@PROTOCOLS
def test_the_two_runtimes_agree_on_one_model(runtimes, text, protocol):
    ours, theirs = (evaluate(open_runner(runtimes[kind]), text, protocol) for kind in ("base", "gguf-f16"))
    assert summarize(ours)["ppl"] == pytest.approx(summarize(theirs)["ppl"], rel=1e-3)
    assert numpy.abs(ours.nll - theirs.nll).max() < 0.02


@KINDS
def test_what_comes_later_changes_nothing_before(runtimes, text, kind):
    runner = open_runner(runtimes[kind])
    one, other = text.ids[:40].view(1, -1), text.ids[:40].clone().view(1, -1)
    other[0, 30:] = 5
    assert torch.allclose(runner.logits(one)[0, :30], runner.logits(other)[0, :30], atol=1e-4)


@KINDS
def test_decoding_follows_scoring(runtimes, text, kind):
    runner = open_runner(runtimes[kind], threads=2)
    best = runner.logits(text.ids[:24].view(1, -1))[0].argmax(-1)
    assert runner.prefill(text.ids[:16]) == best[15]
    assert [runner.decode(int(token)) for token in text.ids[16:24]] == best[16:].tolist()


def test_room_bounds_what_llama_cpp_sets_aside(runtimes):
    runner = open_runner(runtimes["gguf-f16"], room=20)
    assert runner.context == 20 and open_runner(runtimes["gguf-f16"], room=1000).context == 64
    assert torch.isfinite(runner.logits(torch.zeros(1, 20, dtype=torch.int64))).all()


@pytest.mark.parametrize(("kind", "census"), [
    ("base", {"Conv1D": 4, "Embedding": 2, "LayerNorm": 3, "Linear": 1}),
    ("int4", {"QEmbedding": 2, "QLinear": 4, "QNorm": 3, "QTiedHead": 1}),
    ("bnb-nf4", {"Embedding": 2, "LayerNorm": 3, "Linear": 1, "Linear4bit": 4}),
    ("bnb-int8", {"Embedding": 2, "LayerNorm": 3, "Linear": 1, "Linear8bitLt": 4}),
    ("gguf-q8_0", {"GGUF f32": 11, "GGUF q8_0": 5}),
])  # fmt: skip
def test_the_census_names_what_is_there(runtimes, kind, census):
    assert open_runner(runtimes[kind]).census() == census
