"""Decoding made cheaper writes what transformers writes: same tokens, same logits but for rounding."""

import copy
from contextlib import contextmanager

import pytest
import torch
from conftest import ARCHITECTURES, config_of, save_model
from transformers import AutoModelForCausalLM, DynamicCache

import quant.transformers_format  # noqa: F401  registers the format
from quant.compiled import threads
from quant.kernels.attention import attend, can_attend
from quant.model.artifact import write_artifact
from quant.model.recipe import Recipe
from quant.nn import cache as growing
from quant.nn.blocks import DecodingBlock
from quant.nn.cache import GrowingLayer
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


# Architectures whose blocks programs can run; llama-tied, smollm and llama-odd are Llamas of other shapes.
# The Mistral of the other tests attends to the last 8 tokens only, and goes its own way; this one, like those of today, to all.
PLANNED = [*(name for name in ARCHITECTURES if name not in ("gemma2", "gemma3_text", "mistral")), "mistral-all"]

RECIPES = {
    "int8": {"include": ["*"]},
    "int4": {"include": ["*"], "bits": 4, "group_size": 32, "symmetric": False},
    "odd": {"include": ["*"], "bits": 3, "group_size": 8},
    "floats left": {},
    "roles apart": {"include": ["*"], "schemes": {"v": {"bits": 4, "group_size": 64}, "down": {"bits": 4, "codebook": "nf4"}}},
}


@pytest.fixture(scope="module")
def quantized(make_model, tmp_path_factory):
    """quantized(architecture, recipe) -> an artifact's model, loaded once. Not to be changed."""
    made = {}

    def load(architecture, recipe):
        key = (architecture, str(recipe))
        if key not in made:
            folder = tmp_path_factory.mktemp("artifact") / "out"
            if architecture == "mistral-all":
                config = config_of("mistral")
                config.sliding_window = None
                base = save_model(config, folder.parent / "base", torch.float32)
            else:
                base = make_model(architecture)
            write_artifact(base, Recipe.from_dict(recipe, Scheme()), folder)
            made[key] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return made[key]

    return load


@pytest.fixture(scope="module")
def pair(make_model):
    """pair(architecture) -> transformers' own model, and one with its decoding sped up, each loaded once."""
    made = {}

    def load(architecture):
        if architecture not in made:
            folder = make_model(architecture)
            made[architecture] = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2)]
            speed_up_decoding(made[architecture][1])
        return made[architecture]

    return load


@contextmanager
def without_programs(model):
    """Every block goes through its own forward."""
    stack = next(module._stack for module in model.modules() if isinstance(module, DecodingBlock))
    stack.is_used = False
    yield
    stack.is_used = True


def performed(monkeypatch):
    """A list that grows by one for each program that is run."""
    runs, perform = [], threads.perform
    monkeypatch.setattr(threads, "perform", lambda program: (runs.append(1), perform(program)))
    return runs


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
    monkeypatch.setattr(growing, "CAPACITY", 16)  # of 24 tokens: the cache grows once while decoding
    plain, fast = pair(architecture)
    expected, found = decoded(plain, ids)[0], decoded(fast, ids)[0]
    assert torch.allclose(expected, found, atol=1e-5)


@pytest.fixture
def torch_threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("architecture", PLANNED)
def test_a_program_computes_what_the_block_does(quantized, ids, architecture, recipe, torch_threads, monkeypatch):
    if architecture == "llama-odd":  # rows of 36 and 50
        recipe = {**recipe, "group_size": "row", "schemes": {}}
    model = quantized(architecture, recipe)
    runs = performed(monkeypatch)
    with without_programs(model):
        expected = decoded(model, ids[:1])[0]
    assert not runs
    for count in (1, 2, 3):
        torch_threads(count)
        assert torch.allclose(expected, decoded(model, ids[:1])[0], atol=2e-5), f"{count} threads"
        assert len(runs) == 12 * count, "one program for every token but the prompt, through all blocks"
    several = torch.cat([ids, ids.flip(1), ids.roll(1, 1)])
    found = decoded(model, several)[0]
    assert len(runs) == 12 * 4, "and for all sequences of a batch"
    with without_programs(model):
        assert torch.allclose(found, decoded(model, several)[0], atol=2e-5), "a batch"


@pytest.mark.parametrize("values", [{"include": ["attention"]}, {"include": ["q"]}, {"include": ["*"], "blocks": [1]}],
                         ids=["attention", "q", "a block"])
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "phi3", "llama"])
def test_weights_that_are_not_quantized_are_in_the_program_too(quantized, ids, architecture, values, monkeypatch):
    model = quantized(architecture, values)
    with without_programs(model):
        expected = decoded(model, ids[:1])[0]
    runs = performed(monkeypatch)
    assert torch.allclose(expected, decoded(model, ids[:1])[0], atol=2e-5)
    assert len(runs) == 12


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "mistral"])
def test_blocks_of_another_build_go_their_own_way(quantized, ids, architecture, monkeypatch):
    model, runs = quantized(architecture, RECIPES["int8"]), performed(monkeypatch)
    decoded(model, ids[:1])
    assert not runs


def test_a_program_is_for_tokens_that_see_all(quantized, ids, monkeypatch):
    model = quantized("gpt2", RECIPES["int8"])
    runs = performed(monkeypatch)
    mask = torch.ones(1, 13, dtype=torch.long)
    mask[0, 0] = 0

    def masked():
        with torch.inference_mode():
            cache = model(ids[:1, :12], use_cache=True).past_key_values
            return model(ids[:1, 12:13], past_key_values=cache, attention_mask=mask).logits

    with without_programs(model):
        batch, single = decoded(model, ids.repeat(5, 1))[0], masked()
    assert torch.allclose(batch, decoded(model, ids.repeat(5, 1))[0], atol=1e-5), "a large batch"
    assert torch.allclose(single, masked(), atol=1e-5), "a mask"
    half = AutoModelForCausalLM.from_pretrained(model.name_or_path, dtype=torch.bfloat16).eval()
    assert torch.allclose(decoded(half, ids[:1])[0].float(), batch[:1], atol=0.1), "bfloat16"
    assert not runs


def test_copies_new_weights_and_hooks_are_seen(quantized, ids, monkeypatch):
    original = quantized("llama", RECIPES["int8"])
    before = decoded(original, ids[:1])[0]
    model = copy.deepcopy(original)
    norm = model.model.layers[0].input_layernorm.weight
    for changed in (model, norm):  # all weights, and one whose dequantized numbers a program reads
        changed.load_state_dict({name: 255 - tensor if tensor.dtype == torch.uint8 else tensor
                                 for name, tensor in changed.state_dict().items()})
        found = decoded(model, ids[:1])[0]
        with without_programs(model):
            assert torch.allclose(found, decoded(model, ids[:1])[0], atol=1e-5)
        assert not torch.allclose(found, before, atol=1e-3)
        before = found
    runs, seen = performed(monkeypatch), []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    decoded(model, ids[:1])
    assert len(seen) == 13 and len(runs) == 12, "the block with a hook goes its own way"
    runs.clear()
    states = model(ids[:1, :3], output_hidden_states=True).hidden_states
    cache = model(ids[:1, :2]).past_key_values
    single = model(ids[:1, 2:3], past_key_values=cache, output_hidden_states=True).hidden_states
    for state, expected in zip(single, states, strict=True):
        assert torch.allclose(state, expected[:, -1:], atol=1e-4), "hidden states between blocks are seen"
    assert not torch.allclose(before, decoded(original, ids[:1])[0], atol=1e-3), "the original has kept its weights"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_generate_writes_the_same_tokens(quantized, pair, ids, architecture, way):
    def text(model):
        torch.manual_seed(0)
        return model.generate(ids[:1, :8], min_new_tokens=20, max_new_tokens=20, pad_token_id=0, **way)

    assert torch.equal(*map(text, pair(architecture)))
    model = quantized(architecture, RECIPES["int8"])
    with without_programs(model):
        expected = text(model)
    assert torch.equal(expected, text(model))


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
