"""Training: windows predict every token once, a stopped run resumes exactly, what was learnt is measured as the pipeline does."""

import json
import math
from collections import Counter

import pytest
import torch
from conftest import ROOT

from quant.model.checkpoint import Checkpoint
from quant.model.folder import is_companion
from quant.quality.protocol import ScoringProtocol
from quant.quality.score import ModelPredictions, score, summarize
from quant.quality.windows import Tokens, tokenize
from quant.text.read import read_corpus
from quant.text.source import TextSource
from quant.training.measure import learnt, mean_nats
from quant.training.model import CONTEXT
from quant.training.ngram import KneserNey
from quant.training.texts import LINE, novel_texts
from quant.training.train import Schedule, Training, mean_loss, token_stream, windows_of

TRAINED = {name: ROOT / "models" / name for name in ("embedded", "embedded-small")}


@pytest.fixture(scope="module")
def texts():
    return novel_texts()


@pytest.mark.parametrize("offset", [0, 5])
def test_windows_predict_every_token_once(offset):
    windows = windows_of(torch.arange(100), 8, offset)
    predicted = windows[:, 1:].flatten().tolist()
    assert predicted == list(range(offset + 1, offset + 1 + len(predicted))) and 100 - predicted[-1] <= 8 + 1


def test_the_rate_rises_and_falls():
    schedule = Schedule(epochs=1, warmup=10)
    rates = [schedule.rate(step, 100) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[10] == 1 and rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0.02 <= rates[-1] < 0.03


def tiny_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 17, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **shape))


def make(folder, **changes):
    schedule = Schedule(**{"epochs": 3, "batch_size": 4, "warmup": 5, "peak_rate": 1e-2, **changes})
    return Training(tiny_model(), schedule, folder, tell=lambda _: None)


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    stream = torch.arange(400) % 17
    held_out = windows_of(torch.arange(100) % 17, 8)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole = make(tmp_path / "one")
    before = mean_loss(whole.model, held_out)
    whole.run(stream, held_out, 8)
    assert mean_loss(whole.model, held_out) < 0.7 * before
    stopped = make(tmp_path / "two")

    class Stop(Exception):
        pass

    def stop(line):
        if line.startswith("epoch 2"):
            raise Stop

    stopped.tell = stop
    with pytest.raises(Stop):
        stopped.run(stream, held_out, 8)
    again = make(tmp_path / "two")
    again.run(stream, held_out, 8)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_a_finished_run_gives_its_best_weights_again(tmp_path):
    stream, held_out = torch.arange(400) % 17, windows_of(torch.arange(100) % 17, 8)
    first, again = make(tmp_path), make(tmp_path)
    first.run(stream, held_out, 8)
    told = []
    again.tell = told.append
    again.run(stream, held_out, 8)
    assert told == ["resumes after epoch 3"] and (again.epoch, again.best_epoch) == (first.epoch, first.best_epoch)
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_without_progress_it_stops_and_keeps_the_best(tmp_path):
    training = make(tmp_path, epochs=50, peak_rate=0.0, patience=2)
    training.run(torch.arange(200) % 17, windows_of(torch.arange(100) % 17, 8), 8)
    assert training.epoch <= 5 and (tmp_path / "best.safetensors").is_file()


class Runner:
    """A model as the pipeline's scorer takes it."""

    vocabulary, context, is_thread_safe = 17, 8, False

    def __init__(self, model):
        self.model = model

    def logits(self, tokens):
        with torch.no_grad():
            return self.model(tokens).logits


@pytest.mark.parametrize("count", [8 * 20 + 1, 8 * 20 + 6, 5])
def test_perplexity_is_that_of_the_pipeline(count):
    """With whole windows alone, with an incomplete last one, and with nothing else."""
    model = tiny_model().eval()
    stream = torch.randint(17, (count,), generator=torch.Generator().manual_seed(1))
    tokens = Tokens(stream, torch.ones_like(stream), torch.ones_like(stream))
    expected = summarize(score(ModelPredictions(Runner(model)), None, tokens, ScoringProtocol("joined/1", 8, 8)))
    assert math.exp(mean_nats(model, stream, 8)) == pytest.approx(expected["ppl"], rel=1e-6)


def test_the_test_tokens_are_those_of_the_pipeline(texts):
    from transformers import AutoTokenizer

    folder = TRAINED["embedded"]
    corpus, protocol = read_corpus(TextSource("austen")), ScoringProtocol("joined/1", CONTEXT, CONTEXT, LINE)
    assert [list(corpus.lines)] == texts.test
    found = token_stream(AutoTokenizer.from_pretrained(folder), texts.test, LINE)
    assert torch.equal(found, tokenize(corpus, folder, protocol).ids)


def test_what_was_learnt_is_of_the_model_and_of_baselines_on_the_same_tokens():
    """Of a text that repeats: every n-gram model knows it, and a model with random weights is near the uniform one."""
    stream = torch.arange(600) % 17
    found = learnt(tiny_model(), stream, stream[:90], stream[:50], 8)
    assert json.loads(json.dumps(found)) == found
    assert found["parameters"] == 17 * 16 + 8 * 16 + 12 * 16 * 16 + 13 * 16 + 2 * 16
    assert (found["training"]["tokens"], found["validation"]["tokens"], found["test"]["tokens"]) == (600, 90, 50)
    for measured in (found["validation"], found["test"]):
        assert measured["perplexity"] == pytest.approx(math.exp(measured["nats_per_token"]), rel=1e-3)
        assert 12 < measured["perplexity"] < 25
    baselines = found["kneser_ney"]["test_perplexity"]
    assert set(baselines) == {"2", "3", "4", "5"} and all(value < 1.3 for value in baselines.values())
    assert baselines[str(found["kneser_ney"]["best_order"])] == min(baselines.values())


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_says_what_it_has_learnt_and_beats_the_baselines(name):
    folder = TRAINED[name]
    found, checkpoint = json.loads((folder / "training.json").read_text()), Checkpoint(folder)
    assert found["parameters"] == checkpoint.inventory.parameters and checkpoint.config["vocab_size"] == 4096
    assert found["test"]["perplexity"] < min(found["kneser_ney"]["test_perplexity"].values())
    assert found["training"]["best_epoch"] <= found["training"]["epochs"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6 and not is_companion("training.json")


def test_the_small_model_has_about_a_quarter_of_the_weights():
    small, large = (Checkpoint(TRAINED[name]).inventory.parameters for name in ("embedded-small", "embedded"))
    assert 0.22 < small / large < 0.28


def random_tokens(count, vocabulary, seed=0):
    """Each token is followed by one of two."""
    generator, tokens = torch.Generator().manual_seed(seed), [0]
    for _ in range(count):
        tokens.append((3 * tokens[-1] + int(torch.randint(2, (), generator=generator))) % vocabulary)
    return tokens


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_baseline_is_a_distribution(order):
    """After nothing, after contexts of all lengths that were seen, and after some that were not; two tokens never occur."""
    tokens = random_tokens(500, 11)
    model = KneserNey(tokens, order, 13)
    for context in ([], [4], [12], [4, 1], [9, 9, 9], *(tokens[at : at + 4] for at in range(0, 400, 50))):
        assert sum(model.probability(context, token) for token in range(13)) == pytest.approx(1)
        assert all(model.probability(context, token) > 0 for token in range(13))


def smoothed(counts, shorter):
    """P(token | context) written out: the discounted count, and the discounts' share of `shorter`, which has less context."""
    ones, twos = (sum(count == n for count in counts.values()) for n in (1, 2))
    discount = ones / (ones + 2 * twos) if ones else 0.5

    def probability(context, token):
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if not after:
            return shorter(context[1:], token)
        rest = discount * len(after) * shorter(context[1:], token)
        return (max(0, after.get(token, 0) - discount) + rest) / sum(after.values())

    return probability


def test_the_baseline_is_kneser_and_ney_s_formula():
    """Of order 3: triples are counted; of pairs and single tokens, the distinct tokens before them."""
    tokens, vocabulary = random_tokens(300, 7, seed=3), 8
    triples = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    pairs = Counter(gram[1:] for gram in triples)
    single = Counter(gram[1:] for gram in pairs)
    expected = smoothed(triples, smoothed(pairs, smoothed(single, lambda *_: 1 / vocabulary)))
    model = KneserNey(tokens, 3, vocabulary)
    for context in [*(tuple(tokens[at : at + 2]) for at in range(0, 290, 29)), (6, 6), (7, 1), (1, 7)]:
        for token in range(vocabulary):
            assert model.probability(context, token) == pytest.approx(expected(context, token)), (context, token)


def test_the_baseline_learns_and_more_context_helps():
    tokens = random_tokens(4000, 11)
    assert KneserNey(tokens, 3, 11).perplexity(tokens) == pytest.approx(2, rel=0.05)
    found = [KneserNey(tokens[:3000], order, 11).perplexity(tokens[3000:]) for order in (1, 2)]
    assert found[0] > 10 and found[1] == pytest.approx(2, rel=0.05)


def test_texts_hold_out_chapters_and_leave_the_test_text_alone(texts):
    training, held_out, test = ({line for lines in chosen for line in lines if len(line.split()) > 7}
                                for chosen in (texts.training, texts.validation, texts.test))
    assert len(held_out) > 500 and len(training) > 10 * len(held_out) and len(test) > 2000
    assert not test & (training | held_out) and not training & held_out
    assert not [lines for lines in texts.validation if lines in texts.training]


def test_no_chapter_is_lost_between_training_and_validation(texts):
    from quant.text.novels import TRAIN, chapters

    both = texts.training + texts.validation
    assert sorted(both) == sorted(lines for novel in TRAIN for lines in chapters(novel)) and len(texts.validation) == 13
