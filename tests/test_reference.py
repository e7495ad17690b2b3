"""The base's stored predictions: the same scores as with the base beside the variant, and no logits on disk."""

import numpy
import pytest
import torch

from quant.errors import InputError
from quant.quality.protocol import ScoringProtocol
from quant.quality.reference import Recorder, Reference, join_recorded
from quant.quality.score import ModelPredictions, join_parts, score, score_part
from quant.quality.windows import Tokens
from quant.runners import open_runner


def text(count=300):
    ids = torch.randint(3, 96, (count,), generator=torch.Generator().manual_seed(5))
    return Tokens(ids, torch.ones(count, dtype=torch.int64), torch.ones(count, dtype=torch.int64), (0, 100, 101, 130))


def record(folder, model, tokens, protocol):
    folder.mkdir(exist_ok=True)
    recorder = Recorder(open_runner(model), model, tokens, protocol, folder)
    part = score_part(recorder, None, tokens, protocol)
    join_recorded(folder, [(part.places, recorder.finish())])
    return join_parts([part], tokens)


@pytest.mark.parametrize(("architecture", "name"), [
    ("gpt2", "joined/1"), ("gpt2", "sentence/1"), ("gpt2", "llama.cpp/1"), ("llama", "joined/1"), ("llama-tied", "sentence/1"),
    ("opt", "joined/1"), ("gpt_neox", "joined/1"), ("gemma3_text", "joined/1"),
])  # fmt: skip
def test_scores_are_those_with_the_base_beside(make_model, tmp_path, architecture, name):
    model, tokens, protocol = make_model(architecture), text(), ScoringProtocol(name, context=48, stride=20)
    own = record(tmp_path, model, tokens, protocol)
    assert Reference.exists_in(tmp_path)
    variant = ModelPredictions(open_runner(model, "bfloat16"))
    beside = score(variant, ModelPredictions(open_runner(model)), tokens, protocol)
    after = score(variant, Reference(tmp_path, model, tokens, protocol), tokens, protocol)
    assert numpy.allclose(own.nll, after.base_nll, rtol=1e-5) and numpy.array_equal(beside.nll, after.nll)
    assert numpy.allclose(beside.kld, after.kld, atol=1e-6) and numpy.array_equal(beside.top1, after.top1)


def test_stored_states_are_the_same_for_any_number_of_threads(make_model, tmp_path):
    """Windows of 5 tokens too: products of few rows differ where two threads share them."""
    tokens, before = text(), torch.get_num_threads()
    tokens = Tokens(tokens.ids, tokens.bytes, tokens.words, (0, 5, 100, 107, 200))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            record(tmp_path / str(threads), make_model("gpt2"), tokens, ScoringProtocol("sentence/1", context=48, stride=20))
        finally:
            torch.set_num_threads(before)
    one, two, three = ((tmp_path / str(threads) / "states.f32").read_bytes() for threads in (1, 2, 3))
    assert one == two == three


def test_a_stored_state_is_as_long_as_the_model_is_wide(make_model, tmp_path):
    tokens = text()
    record(tmp_path, make_model("gpt2"), tokens, ScoringProtocol(context=48, stride=48))
    assert (tmp_path / "states.f32").stat().st_size == len(tokens.ids) * 64 * 4


def test_a_model_that_caps_its_logits_stores_no_states(tmp_path):
    import transformers

    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 16,
             "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "final_logit_softcapping": 0.5}
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**small))
    model.model.embed_tokens.weight.data *= 20  # logits that the cap bends
    model.save_pretrained(tmp_path / "model")
    record(tmp_path, tmp_path / "model", text(), ScoringProtocol(context=48, stride=48))
    assert not Reference.exists_in(tmp_path) and not (tmp_path / "states.f32").exists()


@pytest.mark.parametrize(("tokens", "protocol"), [
    (text(299), ScoringProtocol(context=48, stride=48)), (text(), ScoringProtocol(context=32, stride=32)),
    (text(), ScoringProtocol("sentence/1", context=48, stride=48)),
])  # fmt: skip
def test_predictions_of_another_text_or_protocol_are_refused(make_model, tmp_path, tokens, protocol):
    model = make_model("gpt2")
    record(tmp_path, model, text(), ScoringProtocol(context=48, stride=48))
    with pytest.raises(InputError, match=r"predictions for another text or protocol; .*dvc repro"):
        Reference(tmp_path, model, tokens, protocol)


@pytest.mark.parametrize("count", [2, 3, 7, 50])
@pytest.mark.parametrize("architecture", ["gpt2", "llama-tied"])
def test_parts_leave_the_bytes_of_one_pass(make_model, tmp_path, architecture, count):
    """Also where there are more parts than batches, some of which have nothing to do."""
    model, tokens, protocol = make_model(architecture), text(), ScoringProtocol("sentence/1", context=48, stride=20)
    whole, divided = tmp_path / "whole", tmp_path / "divided"
    whole.mkdir()
    divided.mkdir()
    scores = record(whole, model, tokens, protocol)
    (divided / ".0.dead.partial").write_text("of an attempt that died")
    found = []
    for number in range(count):
        recorder = Recorder(open_runner(model), model, tokens, protocol, divided, (number, count))
        part = score_part(recorder, None, tokens, protocol, (number, count))
        found.append((part, recorder.finish()))
    join_recorded(divided, [(part.places, recorded) for part, recorded in found])
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in divided.iterdir()}
    assert numpy.array_equal(join_parts([part for part, _ in found], tokens).nll, scores.nll)
