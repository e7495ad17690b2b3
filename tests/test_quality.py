"""Scores are those of the text, whatever the windows and batches; every metric has its definition."""

import math

import numpy
import pytest
import torch

from quant.errors import InputError
from quant.quality import score as quality
from quant.quality.protocol import ScoringProtocol
from quant.quality.score import ModelPredictions, divergence, join_parts, score, score_part, summarize
from quant.quality.windows import Tokens
from quant.runners import open_runner


class Bigram:
    """A runner whose next-token distribution depends on the last token only, so any window gives the same score."""

    def __init__(self, vocabulary=7, context=16, seed=0):
        self.vocabulary, self.context, self.is_thread_safe = vocabulary, context, True
        self.table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))

    def logits(self, tokens):
        return self.table[tokens]

    def nll(self, ids):
        return -torch.log_softmax(self.table, -1)[ids[:-1], ids[1:]].double().numpy()


def tokens(count, seed=0):
    ids = torch.randint(0, 7, (count,), generator=torch.Generator().manual_seed(seed))
    return Tokens(ids, torch.full((count,), 3), torch.arange(count) % 2)


def measure(model, base, text, **protocol):
    return score(ModelPredictions(model), base and ModelPredictions(base), text, ScoringProtocol(**protocol))


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (3, 1)])
@pytest.mark.parametrize("batch_logits", [1, 200, 2**22])
def test_scores_are_those_of_the_text(context, stride, batch_logits, monkeypatch):
    monkeypatch.setattr(quality, "BATCH_LOGITS", batch_logits)
    monkeypatch.setattr(quality, "CHUNK_LOGITS", batch_logits // 3)
    text, model, base = tokens(83), Bigram(seed=1), Bigram(seed=2)
    scores = measure(model, base, text, context=context, stride=stride)
    assert numpy.allclose(scores.nll, model.nll(text.ids)) and numpy.allclose(scores.base_nll, base.nll(text.ids))
    p, q = torch.softmax(base.table, -1).double(), torch.softmax(model.table, -1).double()
    assert numpy.allclose(scores.kld, (p * (p / q).log()).sum(-1)[text.ids[:-1]], atol=1e-6)
    assert numpy.array_equal(scores.top1, (p.argmax(-1) == q.argmax(-1))[text.ids[:-1]].float())
    shared = [len(set(p[i].topk(5).indices.tolist()) & set(q[i].topk(5).indices.tolist())) for i in text.ids[:-1].tolist()]
    assert scores.top5.tolist() == shared


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_scores_are_the_same_for_any_number_of_parts(count, monkeypatch):
    """Also for more parts than batches, and whichever comes first."""
    monkeypatch.setattr(quality, "BATCH_LOGITS", 500)
    text, model, base, protocol = tokens(400), Bigram(seed=1), Bigram(seed=2), ScoringProtocol(context=16, stride=5)
    whole = measure(model, base, text, context=16, stride=5)
    parts = [score_part(ModelPredictions(model), ModelPredictions(base), text, protocol, (number, count))
             for number in reversed(range(count))]
    found = join_parts(parts, text)
    for name in ("nll", "base_nll", "kld", "top1", "top5"):
        assert numpy.array_equal(getattr(found, name), getattr(whole, name)), name
    assert (found.words, found.bytes) == (whole.words, whole.bytes)


def test_metrics_have_their_definitions():
    text, model, base = tokens(83), Bigram(seed=1), Bigram(seed=2)
    metrics = summarize(measure(model, base, text, context=16, stride=16))
    total, base_total = model.nll(text.ids).sum(), base.nll(text.ids).sum()
    assert metrics["ppl"] == pytest.approx(math.exp(total / 82))
    assert metrics["ppl_word"] == pytest.approx(math.exp(total / 41))
    assert metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / (3 * 82))
    assert metrics["ppl_change_pct"] == pytest.approx(100 * (math.exp((total - base_total) / 82) - 1))


def test_divergence_has_its_definitions():
    text, model, base = tokens(403), Bigram(seed=1), Bigram(seed=2)
    found = divergence(measure(model, base, text))
    p, q = torch.softmax(base.table, -1).double(), torch.softmax(model.table, -1).double()
    kld = 1000 * (p * (p / q).log()).sum(-1)[text.ids[:-1]].numpy()
    change = 100 * (q - p)[text.ids[:-1], text.ids[1:]].numpy()
    for key, level in (("median", 50), ("p99", 99), ("p999", 99.9)):
        assert found["kld_mnats"][key] == pytest.approx(numpy.percentile(kld, level), rel=1e-4)
    assert found["kld_mnats"]["mean"] == pytest.approx(kld.mean(), rel=1e-5)
    moved = found["true_token_change_pct"]
    assert (moved["mean"], moved["rms"]) == pytest.approx((change.mean(), math.sqrt((change**2).mean())), rel=1e-4)
    at = dict(zip(moved["quantiles"]["levels_pct"], moved["quantiles"]["values"], strict=True))
    assert (at[0], at[50], at[100]) == pytest.approx((change.min(), numpy.median(change), change.max()), rel=1e-4)


def test_the_base_does_not_differ_from_itself():
    for base in (None, Bigram()):
        scores = measure(Bigram(), base, tokens(50))
        metrics, far = summarize(scores), divergence(scores)
        assert (metrics["ppl_change_pct"], metrics["kld_mnats"], metrics["top1_agree_pct"]) == (0, 0, 100)
        assert far["top5_agree_pct"] == 100 and far["true_token_change_pct"]["rms"] == 0 == far["kld_mnats"]["max"]


def test_models_of_different_vocabulary_are_not_compared():
    with pytest.raises(InputError, match="the variant has 8 logits, the base 7; quantize the variant again"):
        measure(Bigram(vocabulary=8), Bigram(), tokens(20))


def test_models_that_need_other_windows_are_not_compared():
    with pytest.raises(InputError, match=r"takes 16 tokens at once, the base 12; .* evaluate\.context 12 or less"):
        measure(Bigram(), Bigram(context=12), tokens(40), context=16, stride=16)
    assert len(measure(Bigram(), Bigram(context=12), tokens(40), context=12, stride=12)) == 39


def test_few_logits_are_held_at_a_time(monkeypatch):
    """A batch is as many windows as the bound allows, filled but for the last; one window at least."""
    monkeypatch.setattr(quality, "BATCH_LOGITS", 16 * 7 * 3)
    seen = []

    class Watched(Bigram):
        def logits(self, tokens):
            seen.append(tokens.numel())
            return super().logits(tokens)

    measure(Watched(), None, tokens(16 * 10 + 5), context=16, stride=16)
    assert sorted(seen) == [4, 16, 48, 48, 48] and seen[0] == 48


def test_scores_are_the_same_for_any_number_of_threads(make_model, monkeypatch):
    """To the last bit: each batch is computed by one thread, several batches at once."""
    monkeypatch.setattr("quant.quality.score.BATCH_LOGITS", 2 * 96 * 16)
    runner, ids = open_runner(make_model("gpt2")), torch.randint(3, 96, (400,), generator=torch.Generator().manual_seed(2))
    text, before, found = Tokens(ids, torch.full((400,), 3), torch.arange(400) % 2), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(measure(runner, None, text, context=16, stride=16).nll.tobytes())
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert runner.is_thread_safe and found[0] == found[1] == found[2]
