"""One contract for every runtime: the same text gives the same numbers, whatever runs it and however it is batched."""

import math

import numpy
import pytest
import torch

from quant.quality import score as quality
from quant.quality.score import Live, divergence, score, summarize
from quant.quality.windows import Protocol, Tokens
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


@pytest.mark.parametrize("kind", ["int4", "bnb-nf4", "gguf-q4_k_m"])
def test_divergence_is_that_of_whole_distributions_side_by_side(runtimes, text, kind):
    """Every number by its definition, in float64, from logits kept for the whole text: what the scorer never does."""
    base, variant = open_runner(runtimes["base"]), open_runner(runtimes[kind])
    joined = Tokens(text.ids, text.bytes, text.words)
    scores = score(Live(variant), Live(base), joined, Protocol(context=48, stride=48))
    p, q = [], []
    for start in range(0, len(text.ids) - 1, 48):
        inputs = text.ids[start : min(start + 48, len(text.ids) - 1)].view(1, -1)
        for rows, runner in ((p, base), (q, variant)):
            rows.append(torch.softmax(runner.logits(inputs)[0].double(), -1))
    p, q, wanted = torch.cat(p).numpy(), torch.cat(q).numpy(), text.ids[1:].numpy()
    kld = 1000 * (p * numpy.log(p / q)).sum(-1)
    ordered, at = numpy.sort(kld), numpy.arange(len(wanted))
    summary, found = summarize(scores), divergence(scores)
    assert summary["kld_mnats"] == pytest.approx(kld.mean(), rel=1e-3) and kld.mean() > 0.1
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
