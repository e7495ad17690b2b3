"""End to end: text drawn from the embedded grammar is tokenized, cut and scored, with the grammar itself as the model.

Its exact next-word probabilities make the perplexity of a text the exponential of the text's own information, which the
grammar knows without any scorer.
"""

import json
import math

import pytest
import torch

from quant.quality.protocol import ScoringProtocol
from quant.quality.score import ModelPredictions, score, summarize
from quant.quality.windows import tokenize
from quant.text.corpus import Corpus
from quant.text.grammar import START, treebank_like

END, BEGIN = "</s>", "<s>"


class NextWord:
    """The grammar's distribution of the word that follows a prefix, END included, by an inside pass of its own."""

    def __init__(self, grammar):
        self.rules = grammar.rules
        self.first: dict[str, dict[str, float]] = {}

    def __call__(self, prefix: tuple[str, ...]) -> dict[str, float]:
        """word -> probability of the prefix and then that word."""
        self._prefix, self._spans, self._next = prefix, {}, {}
        following = dict(self._following(START, 0))
        whole = self._span(START, 0).get(len(prefix), 0.0)
        return following | ({END: whole} if whole else {})

    def _span(self, symbol, start) -> dict[int, float]:
        """Where `symbol` can end if it begins at `start`, inside the prefix."""
        if symbol not in self.rules:
            return {start + 1: 1.0} if start < len(self._prefix) and self._prefix[start] == symbol else {}
        if (symbol, start) not in self._spans:
            ends: dict[int, float] = {}
            for probability, parts in self.rules[symbol]:
                for end, weight in self._through(parts, start, probability):
                    ends[end] = ends.get(end, 0.0) + weight
            self._spans[symbol, start] = ends
        return self._spans[symbol, start]

    def _through(self, parts, start, probability):
        reached = {start: probability}
        for part in parts:
            following: dict[int, float] = {}
            for end, weight in reached.items():
                for stop, inner in self._span(part, end).items():
                    following[stop] = following.get(stop, 0.0) + weight * inner
            reached = following
        return reached.items()

    def _following(self, symbol, start) -> dict[str, float]:
        """Words that come right after the prefix inside `symbol`, which begins at `start`."""
        if symbol not in self.rules:
            return {symbol: 1.0} if start == len(self._prefix) else {}
        if start == len(self._prefix) and symbol in self.first:
            return self.first[symbol]
        if (symbol, start) not in self._next:
            found: dict[str, float] = {}
            for probability, parts in self.rules[symbol]:
                reached = {start: probability}
                for part in parts:
                    following: dict[int, float] = {}
                    for end, weight in reached.items():
                        for word, inner in self._following(part, end).items():
                            found[word] = found.get(word, 0.0) + weight * inner
                        for stop, inner in self._span(part, end).items():
                            following[stop] = following.get(stop, 0.0) + weight * inner
                    reached = following
                    if not reached:
                        break
            self._next[symbol, start] = found
            if start == len(self._prefix):
                self.first[symbol] = found
        return self._next[symbol, start]


class GrammarRunner:
    """A runner that predicts what the grammar does."""

    context = 64

    def __init__(self, grammar, words: list[str]):
        self.is_thread_safe = False
        self.words, self.vocabulary, self._next_word = words, len(words), NextWord(grammar)
        self._ids = {word: i for i, word in enumerate(words)}

    def logits(self, tokens):
        return torch.stack([torch.stack([self._row(row[1 : i + 1]) for i in range(len(row))]) for row in tokens.tolist()])

    def _row(self, prefix: list[int]) -> torch.Tensor:
        following = self._next_word(tuple(self.words[i] for i in prefix))
        row = torch.full((self.vocabulary,), -torch.inf, dtype=torch.float64)
        for word, probability in following.items():
            row[self._ids[word]] = math.log(probability)
        return row.float()


@pytest.fixture(scope="module")
def grammar():
    return treebank_like()


@pytest.fixture(scope="module")
def words(grammar):
    symbols = {part for expansions in grammar.rules.values() for _, parts in expansions for part in parts}
    return [BEGIN, END, *sorted(symbols - set(grammar.rules))]


@pytest.fixture(scope="module")
def tokenizer(words, tmp_path_factory):
    """A word a token; the end of a line is one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("words")
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": BEGIN}))
    return folder


def test_perplexity_is_the_exponential_of_the_texts_own_entropy(grammar, words, tokenizer):
    lines = list(grammar.lines(40, "test"))
    corpus = Corpus("grammar", tuple(" ".join(line.words) for line in lines), sum(line.nats for line in lines))
    protocol = ScoringProtocol("sentence/1", context=64, stride=64, line="{} " + END)
    tokens = tokenize(corpus, tokenizer, protocol)
    scores = score(ModelPredictions(GrammarRunner(grammar, words)), None, tokens, protocol)
    metrics = summarize(scores)
    assert len(scores) == scores.words == corpus.words
    assert metrics["ppl"] == pytest.approx(math.exp(corpus.floor_nats / corpus.words), rel=1e-6)
    assert metrics["ppl_word"] == pytest.approx(math.exp(corpus.floor_nats / corpus.words), rel=1e-6)


def test_the_next_word_has_probability_one_in_all(grammar):
    next_word, line = NextWord(grammar), next(iter(grammar.lines(1, "test"))).words
    before = 1.0
    for i in range(len(line) + 1):
        following = next_word(line[:i])
        assert sum(following.values()) == pytest.approx(before, rel=1e-9)
        before = following[line[i] if i < len(line) else END]
