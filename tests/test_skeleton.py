"""The skeleton of a model computes what the model computes, with the weights of one block at a time."""

import pytest
import torch
from conftest import ARCHITECTURES
from test_classes import opened

from quant.calibration.skeleton import Skeleton, run_block
from quant.model.checkpoint import Checkpoint
from quant.tensor.products import FastProducts


def logits_of(skeleton, ids, outside=None):
    hidden = skeleton.embed(ids, outside)
    for number, arguments in enumerate(skeleton.arguments(ids)):
        hidden = run_block(skeleton.block(number), hidden, arguments)
    return skeleton.logits(hidden, outside)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_one_by_one_give_the_logits_of_the_whole_model(make_model, ids, architecture):
    folder = make_model(architecture)
    with torch.inference_mode(), FastProducts():
        expected = opened(folder)(ids).logits
    skeleton = Skeleton(Checkpoint(folder))
    with torch.no_grad():
        assert torch.equal(logits_of(skeleton, ids), expected)
    blocks = skeleton.inventory.architecture.blocks
    for name, parameter in skeleton.model.named_parameters():
        assert parameter.is_meta == name.startswith(f"{blocks}."), name
    assert skeleton.count == 2 and not any(p.is_meta for p in skeleton.block(1).parameters())


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "llama-tied", "gemma2"])
def test_other_weights_outside_the_blocks_are_used_where_asked_and_then_forgotten(make_model, ids, architecture):
    folder = make_model(architecture)
    model, skeleton = opened(folder), Skeleton(Checkpoint(folder))
    before = skeleton.embed(ids)
    generator = torch.Generator().manual_seed(0)
    outside = {}
    for weight in skeleton.inventory.weights:
        if weight.block is None and not weight.is_bias:
            outside[weight.name] = torch.randn(weight.shape, generator=generator)
            model.get_parameter(weight.name).data.copy_(outside[weight.name])
    assert len(outside) >= 2
    with torch.no_grad():
        assert torch.allclose(logits_of(skeleton, ids, outside), model(ids).logits, atol=1e-5)
    assert torch.equal(skeleton.embed(ids), before)


def test_weights_in_half_precision_are_computed_with_in_float32(make_model, ids):
    folder = make_model("gpt2", torch.float16)
    with torch.no_grad(), FastProducts():
        assert torch.equal(logits_of(Skeleton(Checkpoint(folder)), ids), opened(folder)(ids).logits)
