"""Training: windows predict every token once, a stopped run resumes exactly, the baseline is a distribution."""

import pytest
import torch

from quant.training.ngram import KneserNey
from quant.training.train import Schedule, Training, mean_loss, windows_of


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


def make(folder, **changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 17, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **shape))
    return Training(model, Schedule(**{"epochs": 3, "batch_size": 4, "warmup": 5, "peak_rate": 1e-2, **changes}), folder,
                    tell=lambda _: None)


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


def test_without_progress_it_stops_and_keeps_the_best(tmp_path):
    training = make(tmp_path, epochs=50, peak_rate=0.0, patience=2)
    training.run(torch.arange(200) % 17, windows_of(torch.arange(100) % 17, 8), 8)
    assert training.epoch <= 5 and (tmp_path / "best.safetensors").is_file()


def test_the_baseline_is_a_distribution_and_learns():
    generator = torch.Generator().manual_seed(0)
    tokens = [0]
    for _ in range(4000):  # each token is followed by one of two
        tokens.append((3 * tokens[-1] + int(torch.randint(2, (), generator=generator))) % 11)
    model = KneserNey(tokens, 3, 11)
    for context in ([], [4], [4, 1], [9, 9, 9]):
        assert sum(model.probability(context, token) for token in range(11)) == pytest.approx(1)
    assert model.perplexity(tokens) == pytest.approx(2, rel=0.05)


def test_texts_hold_out_lines_and_leave_the_test_text_alone():
    from quant.text.novels import TEST, chapters
    from quant.training.texts import novel_texts

    found = novel_texts()
    training, held_out = ({line for text in texts for line in text if len(line.split()) > 7}
                          for texts in (found.training, found.validation))
    test = {line for lines in chapters(TEST) for line in lines if len(line.split()) > 7}
    assert len(held_out) > 500 and len(training) > 20 * len(held_out) // 2
    assert not test & (training | held_out) and not training & held_out
