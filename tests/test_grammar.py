"""The grammar's probabilities are exact, which makes the floor of the embedded default one."""

import math
from itertools import islice

import pytest

from quant.text.grammar import Grammar, treebank_like


@pytest.fixture(scope="module")
def grammar():
    return treebank_like()


def test_every_line_has_one_derivation(grammar):
    for line in grammar.lines(150, "test"):
        assert grammar.probability(line.words) == pytest.approx(math.exp(-line.nats), rel=1e-9)


def test_entropy_of_a_coin_and_a_recursion():
    # heads or tails, then on with probability a half: H = (ln 2 + ln 2) per round, two rounds on average
    coin = Grammar({"S": [(0.5, ("F",)), (0.5, ("F", "S"))], "F": [(0.5, ("heads",)), (0.5, ("tails",))]})
    assert coin.entropy() == pytest.approx(4 * math.log(2))
    assert coin.mean_length() == pytest.approx(2)


def test_entropy_is_what_samples_approach(grammar):
    lines = list(grammar.lines(4000, "test"))
    mean = sum(line.nats for line in lines) / len(lines)
    deviation = math.sqrt(sum((line.nats - mean) ** 2 for line in lines) / len(lines))
    assert abs(mean - grammar.entropy()) < 4 * deviation / math.sqrt(len(lines))


def test_same_lines_every_time_and_splits_share_none(grammar):
    test = [line.words for line in grammar.lines(3000, "test")]
    assert test == [line.words for line in treebank_like().lines(3000, "test")]
    assert not set(test) & {line.words for line in islice(grammar.lines(20_000, "train"), 20_000)}


def test_probabilities_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match=r"expansions of S have probability 0\.9"):
        Grammar({"S": [(0.9, ("word",))]})
