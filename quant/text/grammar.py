"""A probabilistic grammar whose lines resemble the Penn Treebank's: it generates the text of the embedded default.

The lines are lower case, contain `<unk>` for rare words and `N` for numbers, and are drawn independently. No two derivations
yield the same line, so the probability of a line is the probability of its derivation, and the entropy of the lines is the
entropy of the derivations, the solution of a linear system (Grenander 1967; Booth & Thompson 1973). So, unlike for any natural
corpus, the lowest perplexity that a model can be expected to reach is known exactly.

    grammar = treebank_like()
    line = grammar.sample(random.Random(7))      # line.words, line.nats
    grammar.entropy(), grammar.mean_length()
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, islice, repeat

import numpy

from quant.text import lexicon

START = "S"
SEEDS = {"train": 1, "test": 2}
TEST_SHARE = 10  # about one distinct line in ten belongs to the split test


@dataclass(frozen=True)
class Line:
    """A line and its probability, as negative natural logarithm."""

    words: tuple[str, ...]
    nats: float  # -ln of the line's probability, the end of the line included


class Grammar:
    """A context-free grammar with probabilities.

    rules: symbol -> its expansions, each (probability, tuple of symbols and words); anything that is not a key is a word. The
    probabilities of a symbol's expansions sum to 1.
    """

    def __init__(self, rules: dict[str, list[tuple[float, tuple[str, ...]]]]):
        for symbol, expansions in rules.items():
            total = sum(probability for probability, _ in expansions)
            if not math.isclose(total, 1.0, rel_tol=1e-9):
                raise ValueError(f"the expansions of {symbol} have probability {total}, expected 1")
        self.rules = rules
        self._cumulative = {
            symbol: list(accumulate(probability for probability, _ in expansions))
            for symbol, expansions in rules.items()
        }

    def sample(self, rng: random.Random) -> Line:
        """One line and its exact negative log-probability in nats."""
        words, nats, stack = [], 0.0, [START]
        while stack:
            symbol = stack.pop()
            if symbol not in self.rules:
                words.append(symbol)
                continue
            cumulative = self._cumulative[symbol]
            point = rng.random()
            choice = next((i for i, c in enumerate(cumulative) if point < c), len(cumulative) - 1)
            probability, expansion = self.rules[symbol][choice]
            nats -= math.log(probability)
            stack.extend(reversed(expansion))
        return Line(tuple(words), nats)

    def lines(self, count: int, split: str) -> Iterator[Line]:
        """`count` lines of the split "train" or "test", the same on every machine.

        A hash of its text assigns a line to a split, so the two share no line. A model can't learn the hash, so `nats` remains
        the best score that a model can expect.
        """
        rng = random.Random(SEEDS[split])
        drawn = (self.sample(rng) for _ in repeat(None))
        return islice((line for line in drawn if _split(line) == split), count)

    def entropy(self) -> float:
        """Exact entropy of a line in nats."""
        return self._expectation(
            lambda probability, _: -probability * math.log(probability) if probability else 0.0
        )

    def mean_length(self) -> float:
        """Exact expected number of words of a line."""
        return self._expectation(
            lambda probability, expansion: probability * sum(s not in self.rules for s in expansion)
        )

    def _expectation(self, own) -> float:
        """Solve e = own + M e, M[a, b] the expected number of b in one expansion of a; return e[START]."""
        index = {symbol: i for i, symbol in enumerate(self.rules)}
        matrix = numpy.eye(len(index))
        constant = numpy.zeros(len(index))
        for symbol, expansions in self.rules.items():
            for probability, expansion in expansions:
                constant[index[symbol]] += own(probability, expansion)
                for part in expansion:
                    if part in index:
                        matrix[index[symbol], index[part]] -= probability
        return float(numpy.linalg.solve(matrix, constant)[index[START]])

    def probability(self, words: tuple[str, ...]) -> float:
        """Sum over all derivations of `words` (the inside algorithm), independent of `sample`."""
        memo: dict[tuple[str, int], dict[int, float]] = {}

        def spans(symbol: str, start: int) -> dict[int, float]:
            """End positions that `symbol` can reach from `start`, with their probabilities."""
            if symbol not in self.rules:
                matches = start < len(words) and words[start] == symbol
                return {start + 1: 1.0} if matches else {}
            if (symbol, start) not in memo:
                total: dict[int, float] = {}
                for probability, expansion in self.rules[symbol]:
                    ends = {start: probability}
                    for part in expansion:
                        following: dict[int, float] = {}
                        for end, weight in ends.items():
                            for reach, inner in spans(part, end).items():
                                following[reach] = following.get(reach, 0.0) + weight * inner
                        ends = following
                        if not ends:
                            break
                    for end, weight in ends.items():
                        total[end] = total.get(end, 0.0) + weight
                memo[symbol, start] = total
            return memo[symbol, start]

        return spans(START, 0).get(len(words), 0.0)


def _split(line: Line) -> str:
    digest = sha256(" ".join(line.words).encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def treebank_like() -> Grammar:
    """The embedded grammar: eight topics, agreement in number, verbs that choose their objects.

    It is unambiguous: the nouns of the topics are disjoint, every clause contains one of them, and an adjunct can attach in one
    place only.
    """
    rules: dict[str, list[tuple[float, tuple[str, ...]]]] = {}

    def rule(symbol: str, *expansions: tuple[float, str]) -> None:
        total = sum(weight for weight, _ in expansions)
        rules[symbol] = [(weight / total, tuple(text.split())) for weight, text in expansions]

    def choice(symbol: str, words: list[str]) -> None:
        """Words with falling frequency, by Zipf's law."""
        rule(symbol, *((1 / (rank + 1.5), word) for rank, word in enumerate(words)))

    rule(START, *((1 / (rank + 4), f"Line.{topic}") for rank, topic in enumerate(lexicon.TOPICS)))
    choice("Opener", lexicon.OPENERS)
    choice("Conjunction", lexicon.CONJUNCTIONS)
    choice("First", lexicon.FIRST_NAMES)
    choice("Last", lexicon.LAST_NAMES)
    choice("Month", lexicon.MONTHS)
    choice("Weekday", lexicon.WEEKDAYS)
    choice("Period", lexicon.PERIODS)
    choice("Adverb", lexicon.ADVERBS)
    choice("Scale", lexicon.SCALES)
    rule("Name", (5, "First Last"), (3, "mr. Last"), (2, "ms. Last"), (1, "First <unk>"), (1, "mr. <unk>"))
    rule("Amount", (4, "N %"), (3, "$ N Scale"), (2, "N Scale"), (1, "$ N"))
    rule("Change.up", (3, "rose"), (2, "climbed"), (2, "increased"), (1, "jumped"), (1, "gained"))
    rule("Change.down", (3, "fell"), (2, "declined"), (2, "dropped"), (1, "slipped"), (1, "lost"))
    rule("Change", (5, "Change.up Amount"), (5, "Change.down Amount"), (2, "Change.up Amount to Amount"),
         (2, "Change.down Amount from Amount"))
    rule("Be.one", (3, "is"), (2, "was"), (1, "will be"))
    rule("Be.many", (3, "are"), (2, "were"), (1, "will be"))
    rule("Have.one", (1, "has"))
    rule("Have.many", (1, "have"))
    rule("Prospect", (4, "expected to"), (2, "likely to"), (2, "ready to"), (1, "unable to"), (1, "scheduled to"))
    for topic, words in lexicon.TOPICS.items():
        _topic(topic, words, rule, choice)
    return Grammar(rules)


def _topic(topic: str, words: lexicon.Topic, rule, choice) -> None:
    """The rules of one topic; `.one` and `.many` carry agreement in number through the clause."""
    t = topic
    rule(f"Line.{t}", (44, f"Clause.{t}"), (18, f"Opener Clause.{t}"), (18, f"Speaker.{t} said Clause.{t}"),
         (15, f"Clause.{t} Conjunction Clause.{t}"), (5, f"Speaker.{t} said Clause.{t} Conjunction Clause.{t}"))
    rule(f"Speaker.{t}", (6, "Name"), (2, f"Noun.{t}.agent.one.the"), (2, f"the Noun.{t}.agent.many"))
    rule(f"Clause.{t}", (6, f"Subject.{t}.one Predicate.{t}.one"), (5, f"Subject.{t}.many Predicate.{t}.many"),
         (2, f"Name Act.{t}"), (3, f"Noun.{t}.matter.one.the Change"), (4, f"the Noun.{t}.matter.many Change"))
    for number in ("one", "many"):
        rule(f"Subject.{t}.{number}", (5, f"Phrase.{t}.agent.{number}"),
             (1, f"Phrase.{t}.agent.{number} which Act.{t}"),
             (1, f"Phrase.{t}.agent.{number} that Have.{number} Done.{t}"))
        rule(f"Predicate.{t}.{number}", (7, f"Act.{t}"), (4, f"Act.{t} and Act.{t}"),
             (3, f"Be.{number} Prospect Do.{t}"), (3, f"Have.{number} Done.{t}"))
    for form in ("Act", "Do", "Done"):
        rule(f"{form}.{t}", *((weight, f"{form}.{t}.{kind}{tail}") for kind in ("agent", "matter")
                              for weight, tail in ((6, ""), (1, " Adverb"), (4, f" When.{t}"))))
    for kind in ("agent", "matter"):
        verbs = words.verbs_for[kind]
        choice(f"Past.{t}.{kind}", [lexicon.past(verb) for verb in verbs])
        choice(f"Base.{t}.{kind}", verbs)
        rule(f"Object.{t}.{kind}", (4, f"Phrase.{t}.{kind}.one"), (5, f"Phrase.{t}.{kind}.many"))
        rule(f"Act.{t}.{kind}", (1, f"Past.{t}.{kind} Object.{t}.{kind}"))
        rule(f"Done.{t}.{kind}", (1, f"Past.{t}.{kind} Object.{t}.{kind}"))
        rule(f"Do.{t}.{kind}", (1, f"Base.{t}.{kind} Object.{t}.{kind}"))
        _phrases(t, kind, words, rule, choice)
    choice(f"Place.{t}", words.places)
    rule(f"When.{t}", (3, "in Month"), (3, "last Period"), (2, "on Weekday"), (3, f"in Place.{t}"),
         (1, "for N years"), (2, f"because of the Noun.{t}.matter.many"))


def _phrases(topic: str, kind: str, words: lexicon.Topic, rule, choice) -> None:
    """Noun phrases; the article `a` or `an` agrees with the word that follows it."""
    nouns, adjectives, name = words.nouns[kind], words.adjectives[kind], f"{topic}.{kind}"
    choice(f"Noun.{name}.many", [lexicon.plural(noun) for noun in nouns])
    choice(f"Noun.{name}.one", nouns)
    choice(f"Adjective.{name}", adjectives)
    rule(f"Noun.{name}.one.the", (1, f"the Noun.{name}.one"))
    indefinite = []
    for initial, article in (("vowel", "an"), ("consonant", "a")):
        for part, group in (("Noun", nouns), ("Adjective", adjectives)):
            chosen = [word for word in group if (word[0] in "aeiou") == (initial == "vowel")]
            if chosen:
                symbol = f"{part}.{name}.{initial}"
                choice(symbol, chosen)
                rest = "" if part == "Noun" else f" Noun.{name}.one"
                indefinite.append((len(chosen) / len(group), f"{article} {symbol}{rest}"))
    rule(f"Indefinite.{name}", *indefinite)
    rule(f"Phrase.{name}.one", (5, f"the Noun.{name}.one"), (3, f"the Adjective.{name} Noun.{name}.one"),
         (5, f"Indefinite.{name}"), (1, f"this Noun.{name}.one"), (1, "the <unk> " + f"Noun.{name}.one"))
    rule(f"Phrase.{name}.many", (4, f"the Noun.{name}.many"), (3, f"Adjective.{name} Noun.{name}.many"),
         (3, f"Noun.{name}.many"), (1, f"some Noun.{name}.many"), (1, f"several Noun.{name}.many"),
         (1, f"N Noun.{name}.many"), (1, f"<unk> Noun.{name}.many"))
