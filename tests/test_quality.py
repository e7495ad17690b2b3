"""Every token is scored once, whatever the windows and batches, and the numbers are what they are called."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.measure.quality import score, summarize
from quant.measure.windows import Protocol, Tokens, windows


class Bigram:
    """A runner whose next-token distribution depends on the last token only, so any window gives the same score."""

    def __init__(self, vocabulary=7, context=16, seed=0):
        self.vocabulary, self.context = vocabulary, context
        self.table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))

    def logits(self, tokens):
        return self.table[tokens]

    def nll(self, ids):
        return -torch.log_softmax(self.table, -1)[ids[:-1], ids[1:]].double()


def tokens(count, seed=0, given_ids=1):
    ids = torch.randint(0, 7, (count,), generator=torch.Generator().manual_seed(seed))
    return Tokens(ids, given_ids, bytes=3 * count, words=count // 2)


@given(count=st.integers(2, 90), context=st.integers(1, 20), data=st.data())
def test_windows_score_every_token_once(count, context, data):
    stride = data.draw(st.integers(1, context))
    ids = torch.arange(count)
    scored = [t for w in windows(Tokens(ids, 1, 1, 1), Protocol(context=context, stride=stride), 16)
              for t in w.targets[len(w.targets) - w.scored :].tolist()]
    assert scored == list(range(1, count))


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (3, 1)])
def test_scores_are_those_of_the_text(context, stride):
    text, model, base = tokens(83), Bigram(seed=1), Bigram(seed=2)
    scores = score(model, base, text, Protocol(context=context, stride=stride))
    assert torch.allclose(scores.nll, model.nll(text.ids)) and torch.allclose(scores.base_nll, base.nll(text.ids))
    p, q = torch.softmax(base.table, -1).double(), torch.softmax(model.table, -1).double()
    assert torch.allclose(scores.kld, (p * (p / q).log()).sum(-1)[text.ids[:-1]], atol=1e-6)
    assert torch.equal(scores.agree.bool(), (p.argmax(-1) == q.argmax(-1))[text.ids[:-1]])


def test_metrics_have_their_definitions():
    text, model, base = tokens(83), Bigram(seed=1), Bigram(seed=2)
    metrics = summarize(score(model, base, text, Protocol(context=16, stride=16)), text)
    total, base_total = model.nll(text.ids).sum().item(), base.nll(text.ids).sum().item()
    assert metrics["ppl"] == pytest.approx(math.exp(total / 82))
    assert metrics["ppl_word"] == pytest.approx(math.exp(total / 41))
    assert metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / 249)
    assert metrics["ppl_change_pct"] == pytest.approx(100 * (math.exp((total - base_total) / 82) - 1))


def test_the_base_does_not_differ_from_itself():
    metrics = summarize(score(Bigram(), None, tokens(50), Protocol()), tokens(50))
    assert (metrics["ppl_change_pct"], metrics["kld_mnats"], metrics["top1_agree_pct"]) == (0, 0, 100)


def test_batches_change_nothing(make_model, monkeypatch):
    from quant.runners import open_runner

    model = open_runner(make_model("gpt2"))
    text = Tokens(torch.randint(3, 96, (700,), generator=torch.Generator().manual_seed(3)), 1, 700, 700)
    one_by_one, together = [], []
    for size, result in ((1, one_by_one), (2**24, together)):
        monkeypatch.setattr("quant.measure.quality.BATCH_LOGITS", size)
        result.append(summarize(score(model, None, text, Protocol(context=64, stride=32)), text)["ppl"])
    assert together[0] == pytest.approx(one_by_one[0], rel=1e-6)
