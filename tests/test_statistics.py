"""Intervals cover the truth as often as they should, and only significant differences are ranked."""

import math
import random
from dataclasses import replace

import numpy
import pytest

from quant.errors import InputError
from quant.files import significant
from quant.quality.bootstrap import Blocks, bits_per_byte, difference, difference_in_bits_per_byte, mean_kld, tiers
from quant.quality.windows import Places
from quant.speed.samples import ratios_of_pairs, spread


def places(sizes, text="a text", is_whole=True):
    """A text of which every token is scored. sizes: bytes of each token."""
    sizes = numpy.asarray(sizes)
    return Places(numpy.cumsum(sizes) - sizes, sizes, int(sizes.sum()), text, is_whole)


def made_up(count=6400, change=0.0, noise=0.0, seed=0, kld=0.01):
    """Tokens of 4 bytes whose values cluster, as those of text do: every run of 20 shares part of its noise. The text is the
    same for every seed."""
    text = numpy.random.default_rng(99).gamma(2.0, 1.0, count)
    rng = numpy.random.default_rng(seed)
    shared = numpy.repeat(rng.normal(0, 1, -(-count // 20)), 20)[:count]
    moved = change + noise * (shared + rng.normal(0, 1, count))
    return Blocks.cut(places([4] * count), text + moved, numpy.full(count, kld) + abs(moved), numpy.ones(count))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    base, truth = made_up(), 100 * numpy.expm1(0.002)
    inside = [found.low <= truth <= found.high
              for found in (difference(made_up(change=0.002, noise=0.05, seed=seed), base) for seed in range(1, 301))]
    assert 0.91 < numpy.mean(inside) < 0.985


def test_tokens_drawn_alone_would_promise_too_much():
    """The reason for blocks: an interval from single tokens is too narrow for text that clusters."""
    base, wide = made_up(), made_up(change=0.002, noise=0.05, seed=5)
    nll = numpy.random.default_rng(1).permutation(6400)
    values = numpy.repeat(wide.nll - base.nll, 128)[nll] / 128  # the blocks' values, torn apart
    torn = Blocks.cut(places([4] * 6400), values, values, values)
    flat = Blocks.cut(places([4] * 6400), 0 * values, 0 * values, 0 * values)
    in_blocks, alone = difference(wide, base), difference(torn, flat)
    assert in_blocks.value == pytest.approx(alone.value, rel=1e-6)
    assert in_blocks.high - in_blocks.low > 3 * (alone.high - alone.low)


def test_pairing_sees_what_two_intervals_apart_would_not():
    """A change of 0.1 % of ppl, against text whose perplexity itself is uncertain by per cents."""
    base, changed = made_up(), made_up(change=0.001, noise=0.004, seed=1)
    assert difference(changed, base).is_significant
    shuffled = replace(base, nll=numpy.roll(base.nll, 7))
    unpaired = difference(changed, shuffled)
    assert not unpaired.is_significant and unpaired.value == pytest.approx(difference(changed, base).value)


def test_the_difference_has_its_units_and_its_sign():
    base, worse = made_up(), made_up(change=0.01, kld=0.03)
    found = difference(worse, base)
    assert (found.value, found.low, found.high) == pytest.approx([100 * numpy.expm1(0.01)] * 3)
    assert difference(base, worse).value == pytest.approx(100 * numpy.expm1(-0.01))
    assert difference(worse, base, "kld").value == pytest.approx(1000 * (0.03 + 0.01 - 0.01))
    assert mean_kld(worse).value == pytest.approx(40)


@pytest.mark.parametrize("count", [6400, 6499])
def test_the_interval_is_that_of_drawing_blocks_one_by_one(count):
    """A plain loop with its own dice, over blocks of which the last may be shorter: ratio of perplexities, difference of KLDs."""
    a, b = made_up(count, change=0.002, noise=0.05, seed=1), made_up(count, noise=0.03, seed=2, kld=0.02)
    dice, changes, gaps = random.Random(7), [], []
    for _ in range(4000):
        drawn = [dice.randrange(len(a.tokens)) for _ in a.tokens]
        tokens = sum(a.tokens[i] for i in drawn)
        mine, theirs = (math.exp(sum(blocks.nll[i] for i in drawn) / tokens) for blocks in (a, b))
        changes.append(100 * (mine / theirs - 1))
        gaps.append(1000 * sum(a.kld[i] - b.kld[i] for i in drawn) / tokens)
    for measure, draws in (("ppl", changes), ("kld", gaps)):
        found, low, high = difference(a, b, measure), *numpy.percentile(draws, [2.5, 97.5])
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low)), measure
        assert low < found.value < high


def test_nothing_differs_from_itself_and_intervals_are_the_same_every_time():
    a, b = made_up(noise=0.1, seed=1), made_up(noise=0.1, seed=2)
    assert difference(a, b) == difference(a, b)
    found = difference(made_up(seed=3, noise=0.1), made_up(seed=3, noise=0.1))
    assert (found.value, found.low, found.high, found.is_significant) == (0, 0, 0, False)


def test_blocks_survive_json():
    import json

    blocks = made_up(noise=0.1, seed=4)
    again = Blocks.from_dict(json.loads(json.dumps(blocks.to_dict())))
    other = made_up()
    assert difference(again, other).value == pytest.approx(difference(blocks, other).value, rel=1e-4)
    assert difference_in_bits_per_byte(again, other).value == pytest.approx(difference_in_bits_per_byte(blocks, other).value)
    assert again.tokens.sum() == 6400 and again.bytes_per_block == blocks.bytes_per_block


@pytest.mark.parametrize(("count", "size", "blocks"), [(6400, 512, 50), (41664, 512, 326), (500, 40, 50), (7, 1, 28)])
def test_a_text_is_cut_into_enough_blocks(count, size, blocks):
    cut = Blocks.cut(places([4] * count), *[numpy.ones(count)] * 3)
    assert (cut.bytes_per_block, len(cut.tokens), cut.tokens.sum(), cut.nll.sum()) == (size, blocks, count, count)
    assert cut.bytes.sum() == 4 * count


def test_a_token_belongs_to_the_block_in_which_it_begins():
    cut = Blocks.cut(replace(places([1, 2, 3, 1, 200]), text_bytes=207), numpy.arange(5), numpy.ones(5), numpy.ones(5))
    assert cut.bytes_per_block == 4 and len(cut.tokens) == 52
    assert cut.tokens[:3].tolist() == [3, 2, 0] and cut.nll[:2].tolist() == [3, 7] and cut.bytes[:2].tolist() == [6, 201]


def tokenized(seed, longest, nats_per_byte=0.7):
    """Blocks of the same text in other tokens: every byte costs what it costs, and a token the sum over its bytes."""
    total = 40_000
    cost = numpy.random.default_rng(42).gamma(2.0, nats_per_byte / 2, total)
    sizes = numpy.random.default_rng(seed).integers(1, longest + 1, total)
    sizes = sizes[: numpy.searchsorted(numpy.cumsum(sizes), total)]
    sizes = numpy.append(sizes, total - sizes.sum())
    found = places(sizes)
    nll = numpy.add.reduceat(cost, found.begins)
    return Blocks.cut(found, nll, 0 * nll, 0 * nll)


def test_two_tokenizers_have_the_same_blocks():
    """The cost of a text does not depend on how it is cut; what tokens carry over the edges of blocks is far below a model's
    own spread."""
    short, long = tokenized(1, 3), tokenized(2, 12)
    assert len(short.tokens) == len(long.tokens) and short.tokens.sum() > 2 * long.tokens.sum()
    found = difference_in_bits_per_byte(short, long)
    assert found.value == pytest.approx(0, abs=1e-12) and found.low < 0 < found.high
    alone = bits_per_byte(short)
    assert alone.value == pytest.approx(short.nll.sum() / math.log(2) / 40_000) and alone.low < alone.value < alone.high
    assert found.high - found.low < (alone.high - alone.low) / 3, "the difficulty of a block cancels"
    worse = difference_in_bits_per_byte(tokenized(1, 3, 0.72), long)
    assert worse.is_significant and worse.value == pytest.approx(0.02 / math.log(2), rel=0.05)
    with pytest.raises(InputError, match="measured on different texts"):
        difference(short, long)


@pytest.mark.parametrize("other", [{"text": "another"}, {"is_whole": False, "text": "parts of it"}])
def test_bits_of_other_texts_are_not_compared(other):
    values = numpy.ones(1000)
    a, b = (Blocks.cut(places([4] * 1000, **kind), values, values, values) for kind in ({}, other))
    with pytest.raises(InputError, match=r"not scored on the same text: 4000 and 4000 bytes .* llama\.cpp/1 leaves out"):
        difference_in_bits_per_byte(a, b)


def test_blocks_that_a_protocol_leaves_out_are_not_drawn():
    half = Places(numpy.arange(0, 50_000, 4), numpy.full(12_500, 4), 100_000, "half", is_whole=False)
    cut = Blocks.cut(half, *[numpy.ones(12_500)] * 3)
    assert len(cut.tokens) == 98 and cut.tokens.all()


def test_a_text_in_very_few_tokens_still_has_an_interval():
    """Most blocks are empty, and some resamples draw only these."""
    found = bits_per_byte(Blocks.cut(places([30, 1, 30]), *[numpy.array([10.0, 1.0, 30.0])] * 3))
    assert 0 < found.low < found.value < found.high < 2


def test_other_texts_are_not_compared():
    with pytest.raises(InputError, match="measured on different texts: 50 and 51 blocks"):
        difference(made_up(6400), made_up(6500))


def test_a_result_without_all_blocks_is_refused():
    with pytest.raises(InputError, match="blocks lack kld, text_sha256, top1"):
        Blocks.from_dict({"bytes_per_block": 1, "tokens": [1], "bytes": [1], "nll": [1.0]})


def test_only_significant_differences_are_ranked():
    measured = {
        "worst": made_up(change=0.05, noise=0.01, seed=1),
        "one": made_up(change=0.002, noise=0.05, seed=2),
        "best": made_up(),
        "two": made_up(change=0.003, noise=0.05, seed=3),
    }
    assert not difference(measured["one"], measured["two"]).is_significant
    found = tiers(measured)
    assert found[-1] == ["worst"] and sorted(found[-2][-2:]) == ["one", "two"]
    assert tiers({}) == [] and tiers({"only": made_up()}) == [["only"]]


def test_tiers_never_separate_two_that_tie():
    """Whatever the data: across tiers every pair differs significantly, although being tied is not transitive."""
    rng = numpy.random.default_rng(0)
    for trial in range(10):
        measured = {f"v{i}": made_up(1000, rng.uniform(0, 0.02), rng.uniform(0, 0.1), seed=100 * trial + i) for i in range(7)}
        found = tiers(measured, "ppl")
        assert sorted(name for tier in found for name in tier) == sorted(measured)
        for i in range(len(found) - 1):
            for better in (name for tier in found[: i + 1] for name in tier):
                for worse in (name for tier in found[i + 1 :] for name in tier):
                    gap = difference(measured[worse], measured[better])
                    assert gap.is_significant and gap.value > 0


def test_spread_and_ratios():
    found = spread([5.0, 1.0, 2.0, 100.0, 3.0])
    assert (found["median"], found["mad"], found["p90"], found["raw"]) == (3.0, 2.0, 100.0, [5.0, 1.0, 2.0, 100.0, 3.0])
    assert [spread([float(i) for i in range(1, count + 1)])["p90"] for count in (1, 9, 10, 11, 20, 100)] == [1, 9, 9, 10, 18, 90]
    assert ratios_of_pairs([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]


def test_numbers_are_rounded_wherever_they_stand():
    assert significant({"a": [1.23456789, {"b": 2}], "c": None, "d": True}, 3) == {"a": [1.23, {"b": 2}], "c": None, "d": True}
