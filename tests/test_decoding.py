"""Decoding made cheaper writes what transformers writes: same tokens, same logits but for rounding."""

import pytest
import torch
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM, DynamicCache

import quant.transformers_format  # noqa: F401  registers the format
from quant.kernels import threads as team
from quant.kernels.attention import attend, can_attend
from quant.model.artifact import write_artifact
from quant.model.recipe import Recipe
from quant.nn.blocks import DecodingBlock
from quant.nn.cache import GrowingLayer
from quant.nn.decoding import cache as growing
from quant.nn.decoding import speed_up_decoding
from quant.tensor.scheme import Scheme

WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams sampled": {"num_beams": 2, "do_sample": True},
    "several": {"num_return_sequences": 2, "do_sample": True},
    "prompt look-up": {"prompt_lookup_num_tokens": 3},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
}


RECIPES = {
    "int8": {"include": ["*"]},
    "int4": {"include": ["*"], "bits": 4, "group_size": 32, "symmetric": False},
    "odd": {"include": ["*"], "bits": 3, "group_size": 8},
    "floats left": {},
    "roles apart": {"include": ["*"], "schemes": {"v": {"bits": 4, "group_size": 64}, "down": {"bits": 4, "codebook": "nf4"}}},
}


@pytest.fixture
def quantized(make_model, tmp_path):
    """quantized(architecture, recipe) -> an artifact's model without programs for its blocks, and with them."""

    def load(architecture, recipe):
        write_artifact(make_model(architecture), Recipe.from_dict(recipe, Scheme()), tmp_path / "out")
        plain, fast = (AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval() for _ in range(2))
        for block in plain.modules():
            if isinstance(block, DecodingBlock):
                block._program = False
        return plain, fast

    return load


def performed(monkeypatch):
    """A list that grows by one for each program that is run."""
    runs, perform = [], team.perform
    monkeypatch.setattr(team, "perform", lambda program: (runs.append(1), perform(program)))
    return runs


@pytest.fixture
def pair(make_model):
    """pair(architecture) -> the model as transformers has it, and with decoding sped up."""

    def load(architecture):
        folder = make_model(architecture)
        plain, fast = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
        speed_up_decoding(fast)
        return plain, fast

    return load


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decoded(model, ids):
    """Logits of every token of ids [batch, length]: the first half as a prompt, then one by one."""
    half, cache, logits = ids.shape[1] // 2, None, []
    with torch.inference_mode():
        for piece in (ids[:, :half], *ids[:, half:].split(1, dim=1)):
            out = model(piece, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, [*logits, out.logits]
    return torch.cat(logits, dim=1), cache


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_of_every_architecture(pair, ids, architecture, monkeypatch):
    monkeypatch.setattr(growing, "ROOM", 16)  # of 24 tokens: the cache grows once while decoding
    plain, fast = pair(architecture)
    expected, found = decoded(plain, ids)[0], decoded(fast, ids)[0]
    assert torch.allclose(expected, found, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "llama-tied", "smollm", "llama-odd"])
def test_a_program_computes_what_the_block_does(quantized, ids, architecture, recipe, threads, monkeypatch):
    if architecture == "llama-odd":  # rows of 36 and 50
        recipe = {**recipe, "group_size": "row", "schemes": {}}
    plain, fast = quantized(architecture, recipe)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = decoded(plain, ids[:1])[0]
        runs = performed(monkeypatch)
        found = decoded(fast, ids[:1])[0]
    finally:
        torch.set_num_threads(before)
    assert len(runs) == 12 * 2, "every token but the prompt, through every block"
    assert torch.allclose(expected, found, atol=2e-5)


@pytest.mark.parametrize("values", [{"include": ["attention"]}, {"include": ["q"]}], ids=["attention", "q"])
def test_blocks_with_other_weights_go_their_own_way(quantized, ids, values, monkeypatch):
    runs = performed(monkeypatch)
    plain, fast = quantized("gpt2", values)
    assert torch.allclose(decoded(plain, ids[:1])[0], decoded(fast, ids[:1])[0], atol=1e-6)
    assert not runs


def test_a_program_is_for_a_token_alone_that_sees_all(quantized, ids, monkeypatch, tmp_path):
    plain, fast = quantized("gpt2", {"include": ["*"]})
    runs = performed(monkeypatch)
    assert torch.allclose(decoded(plain, ids)[0], decoded(fast, ids)[0], atol=1e-5), "a batch"
    mask = torch.ones(1, 13, dtype=torch.long)
    mask[0, 0] = 0
    logits = []
    for model in (plain, fast):
        with torch.inference_mode():
            cache = model(ids[:1, :12], use_cache=True).past_key_values
            logits.append(model(ids[:1, 12:13], past_key_values=cache, attention_mask=mask).logits)
    assert torch.allclose(*logits, atol=1e-5), "a mask"
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).eval()
    assert torch.allclose(decoded(half, ids[:1])[0].float(), decoded(plain, ids[:1])[0], atol=0.1), "bfloat16"
    assert not runs


def test_new_weights_and_hooks_are_seen(quantized, ids, monkeypatch):
    plain, fast = quantized("llama", {"include": ["*"]})
    assert torch.allclose(decoded(plain, ids[:1])[0], decoded(fast, ids[:1])[0], atol=1e-5)
    state = {name: (255 - tensor if tensor.dtype == torch.uint8 else tensor) for name, tensor in fast.state_dict().items()}
    for model in (plain, fast):
        model.load_state_dict(state)
    assert torch.allclose(decoded(plain, ids[:1])[0], decoded(fast, ids[:1])[0], atol=1e-5)
    runs, seen = performed(monkeypatch), []
    fast.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    decoded(fast, ids[:1])
    assert len(seen) == 13 and len(runs) == 12, "the block with a hook goes its own way"


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_quantized_models_generate_the_same_tokens(quantized, ids, architecture, way):
    texts = []
    for model in quantized(architecture, {"include": ["*"]}):
        torch.manual_seed(0)
        texts.append(model.generate(ids[:1, :8], min_new_tokens=12, max_new_tokens=12, pad_token_id=0, **way))
    assert torch.equal(*texts)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_generate_writes_the_same_tokens(pair, ids, architecture, way):
    texts = []
    for model in pair(architecture):
        torch.manual_seed(0)
        texts.append(model.generate(ids[:1, :8], min_new_tokens=20, max_new_tokens=20, pad_token_id=0, **way))
    assert torch.equal(*texts)


def test_padded_batches(pair, ids):
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    options = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    texts = [model.generate(ids, **options) for model in pair("gpt2")]
    assert torch.equal(*texts)


@pytest.mark.parametrize("change", [
    lambda cache: cache.crop(-3),
    lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
    lambda cache: cache.batch_select_indices(torch.tensor([1])),
    lambda cache: cache.batch_repeat_interleave(2),
    lambda cache: cache.reset(),
], ids=["crop", "reorder", "select", "repeat", "reset"])  # fmt: skip
def test_a_changed_cache_goes_on_as_transformers_own(pair, ids, change):
    after = []
    for model in pair("llama"):
        _, cache = decoded(model, ids)
        change(cache)
        rows = cache.layers[0].keys.shape[0] if cache.get_seq_length() else 2
        with torch.inference_mode():
            logits = [model(token.expand(rows, 1), past_key_values=cache, use_cache=True).logits for token in ids[0, :3]]
        after.append(torch.cat(logits))
    assert torch.allclose(*after, atol=1e-5)


def test_a_cache_outlives_the_mode_it_was_made_in(pair, ids):
    plain, fast = pair("gpt2")
    logits = []
    for model in (plain, fast):
        _, cache = decoded(model, ids)
        with torch.no_grad():
            model(ids[:, :1], past_key_values=cache)
        logits.append(model(ids[:, :2], past_key_values=cache).logits)
    assert torch.allclose(*logits, atol=1e-5) and logits[1].requires_grad


def test_the_cache_is_not_copied_for_every_token():
    layer = GrowingLayer()
    for length in range(1, 200):
        keys, _ = layer.update(normal(2, 4, 1, 16, seed=length), normal(2, 4, 1, 16))
        assert layer.get_seq_length() == length
        if length == 1:
            first = keys.data_ptr()
    assert keys.data_ptr() == first
    assert all(torch.equal(keys[:, :, at], normal(2, 4, 16, seed=at + 1)) for at in range(199))


def test_a_users_own_attention_and_cache_are_left_alone(make_model, ids):
    model = AutoModelForCausalLM.from_pretrained(make_model("gpt2"), attn_implementation="eager")
    speed_up_decoding(model)
    assert model.config._attn_implementation == "eager"
    cache = DynamicCache()
    for number in range(2):
        cache.update(normal(2, 4, 3, 16), normal(2, 4, 3, 16), number)
    layer = cache.layers[0]
    with torch.inference_mode():
        model(ids, past_key_values=cache)
    assert cache.layers[0] is layer


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 300])
@pytest.mark.parametrize(("heads", "shared"), [(1, 1), (12, 1), (2, 4)])
def test_attention_is_torchs(length, heads, shared):
    query = normal(2, heads * shared, 1, 48)
    keys, values = normal(2, heads, 512, 48, seed=1)[:, :, :length], normal(2, heads, 400, 48, seed=2)[:, :, :length]
    exact = torch.nn.functional.scaled_dot_product_attention(
        query.double(), keys.double(), values.double(), scale=0.3, enable_gqa=True
    )
    assert can_attend(query, keys, values)
    assert torch.allclose(attend(query, keys, values, 0.3).double(), exact.transpose(1, 2), atol=1e-6)


def test_large_scores_do_not_overflow():
    query, keys, values = 1e3 * normal(1, 2, 1, 16), 1e3 * normal(1, 2, 9, 16), normal(1, 2, 9, 16)
    exact = torch.nn.functional.scaled_dot_product_attention(query, keys, values, scale=1.0)
    assert torch.allclose(attend(query, keys, values, 1.0), exact.transpose(1, 2), atol=1e-5)


def test_what_attention_does_not_take():
    query, keys = normal(1, 2, 1, 16), normal(1, 2, 9, 16)
    assert not can_attend(query.expand(1, 2, 3, 16), keys, keys)
    assert not can_attend(query.half(), keys.half(), keys.half())
    assert not can_attend(query, keys, keys[..., :8])
    assert not can_attend(query, keys.transpose(2, 3).contiguous().transpose(2, 3), keys)
