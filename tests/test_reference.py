"""What the base predicted, from its hidden states: the same scores as with the base beside, and no logits on disk."""

import numpy
import pytest
import torch

from quant.errors import InputError
from quant.quality.reference import Recorder, Reference
from quant.quality.score import Live, score
from quant.quality.windows import Protocol, Tokens
from quant.runners import open_runner


def text(count=300):
    ids = torch.randint(3, 96, (count,), generator=torch.Generator().manual_seed(5))
    return Tokens(ids, torch.ones(count, dtype=torch.int64), torch.ones(count, dtype=torch.int64), (0, 100, 101, 130))


def record(folder, model, tokens, protocol):
    recorder = Recorder(open_runner(model), model, tokens, protocol, folder)
    scores = score(recorder, None, tokens, protocol)
    recorder.finish()
    return scores


@pytest.mark.parametrize(("architecture", "name"), [
    ("gpt2", "joined/1"), ("gpt2", "sentence/1"), ("gpt2", "llama.cpp/1"), ("llama", "joined/1"), ("llama-tied", "sentence/1"),
    ("opt", "joined/1"), ("gpt_neox", "joined/1"), ("gemma", "joined/1"),
])  # fmt: skip
def test_it_predicts_what_the_base_does(make_model, tmp_path, architecture, name):
    model, tokens, protocol = make_model(architecture), text(), Protocol(name, context=48, stride=20)
    own = record(tmp_path, model, tokens, protocol)
    assert Reference.is_in(tmp_path)
    variant = Live(open_runner(model, "bfloat16"))
    beside = score(variant, Live(open_runner(model)), tokens, protocol)
    after = score(variant, Reference(tmp_path, model, tokens, protocol), tokens, protocol)
    assert numpy.allclose(own.nll, after.base_nll, rtol=1e-5) and numpy.array_equal(beside.nll, after.nll)
    assert numpy.allclose(beside.kld, after.kld, atol=1e-6) and numpy.array_equal(beside.top1, after.top1)


def test_it_is_as_long_as_the_model_is_wide(make_model, tmp_path):
    tokens = text()
    record(tmp_path, make_model("gpt2"), tokens, Protocol(context=48, stride=48))
    assert (tmp_path / "states.f32").stat().st_size == len(tokens.ids) * 64 * 4


def test_a_model_that_caps_its_logits_leaves_none(tmp_path):
    import transformers

    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 16,
             "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "final_logit_softcapping": 0.5}
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**small))
    model.model.embed_tokens.weight.data *= 20  # logits that the cap bends
    model.save_pretrained(tmp_path / "model")
    record(tmp_path, tmp_path / "model", text(), Protocol(context=48, stride=48))
    assert not Reference.is_in(tmp_path) and not (tmp_path / "states.f32").exists()


@pytest.mark.parametrize(("tokens", "protocol"), [
    (text(299), Protocol(context=48, stride=48)), (text(), Protocol(context=32, stride=32)),
    (text(), Protocol("sentence/1", context=48, stride=48)),
])  # fmt: skip
def test_it_is_not_taken_for_another_text_or_protocol(make_model, tmp_path, tokens, protocol):
    model = make_model("gpt2")
    record(tmp_path, model, text(), Protocol(context=48, stride=48))
    with pytest.raises(InputError, match="another text or by another protocol"):
        Reference(tmp_path, model, tokens, protocol)
