"""Intervals cover the truth as often as they should, and only significant differences are ranked."""

import math
import random

import numpy
import pytest

from quant.errors import InputError
from quant.files import significant
from quant.quality.bootstrap import Blocks, difference, mean_kld, tiers
from quant.speed.samples import ratios_of_pairs, spread


def made_up(count=6400, change=0.0, noise=0.0, seed=0, kld=0.01):
    """Values of tokens that cluster, as those of text do: every run of 20 shares part of its noise; the text is the same."""
    text = numpy.random.default_rng(99).gamma(2.0, 1.0, count)
    rng = numpy.random.default_rng(seed)
    shared = numpy.repeat(rng.normal(0, 1, -(-count // 20)), 20)[:count]
    moved = change + noise * (shared + rng.normal(0, 1, count))
    return Blocks.cut(text + moved, numpy.full(count, kld) + abs(moved), numpy.ones(count))


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
    torn = Blocks.cut(values, values, values)
    flat = Blocks.cut(0 * values, 0 * values, 0 * values)
    in_blocks, alone = difference(wide, base), difference(torn, flat)
    assert in_blocks.value == pytest.approx(alone.value, rel=1e-6)
    assert in_blocks.high - in_blocks.low > 3 * (alone.high - alone.low)


def test_pairing_sees_what_two_intervals_apart_would_not():
    """A change of 0.1 % of ppl, against text whose perplexity itself is uncertain by per cents."""
    base, changed = made_up(), made_up(change=0.001, noise=0.004, seed=1)
    assert difference(changed, base).is_significant
    shuffled = Blocks(base.tokens_per_block, base.tokens, numpy.roll(base.nll, 7), base.kld, base.top1)
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
    assert again.tokens.sum() == 6400 and again.tokens_per_block == blocks.tokens_per_block


@pytest.mark.parametrize(("count", "size", "blocks"), [(6400, 128, 50), (41664, 128, 326), (500, 10, 50), (7, 1, 7)])
def test_a_text_is_cut_into_enough_blocks(count, size, blocks):
    cut = Blocks.cut(*[numpy.ones(count)] * 3)
    assert (cut.tokens_per_block, len(cut.tokens), cut.tokens.sum(), cut.nll.sum()) == (size, blocks, count, count)


def test_other_texts_are_not_compared():
    with pytest.raises(InputError, match="measured on different texts: 50 and 51 blocks"):
        difference(made_up(6400), made_up(6500))


def test_a_result_without_all_blocks_is_refused():
    with pytest.raises(InputError, match="blocks lack kld, top1"):
        Blocks.from_dict({"tokens_per_block": 1, "tokens": [1], "nll": [1.0]})


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
