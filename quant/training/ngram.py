"""An n-gram model of tokens, as a baseline that a trained model has to beat: interpolated Kneser-Ney smoothing.

Source: Kneser & Ney 1995, in the interpolated form of Chen & Goodman 1999 with one discount per order.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence


class KneserNey:
    """Probabilities of the next token after up to order - 1 tokens, from the counts of a training text."""

    def __init__(self, tokens: Sequence[int], order: int, vocabulary: int):
        self.order, self.vocabulary = order, vocabulary
        counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
        padded = tuple(tokens)
        for i in range(len(padded)):
            if i + 1 >= order:
                counts[-1][padded[i + 1 - order : i + 1]] += 1
        for shorter in range(order - 2, -1, -1):  # lower orders count the distinct tokens before an n-gram
            for gram in counts[shorter + 1]:
                counts[shorter][gram[1:]] += 1
        self._counts = counts
        self._discounts, self._totals, self._followers = [], [], []
        for table in counts:
            ones, twos = (sum(1 for count in table.values() if count == n) for n in (1, 2))
            self._discounts.append(ones / (ones + 2 * twos) if ones else 0.5)
            totals: defaultdict[tuple[int, ...], int] = defaultdict(int)
            followers: defaultdict[tuple[int, ...], int] = defaultdict(int)
            for gram, count in table.items():
                totals[gram[:-1]] += count
                followers[gram[:-1]] += 1
            self._totals.append(totals)
            self._followers.append(followers)

    def probability(self, context: Sequence[int], token: int) -> float:
        """Probability of `token` after the last order - 1 tokens of `context`."""
        value = 1 / self.vocabulary
        for length in range(self.order):
            before = tuple(context[len(context) - length :]) if length else ()
            total = self._totals[length].get(before, 0)
            if not total:
                break  # this context was never seen, so no longer one was either
            discount = self._discounts[length]
            seen = max(0.0, self._counts[length].get((*before, token), 0) - discount)
            value = (seen + discount * self._followers[length][before] * value) / total
        return value

    def perplexity(self, tokens: Sequence[int]) -> float:
        """Perplexity of all tokens but the first."""
        context = self.order - 1
        total = sum(math.log(self.probability(tokens[max(0, i - context) : i], tokens[i])) for i in range(1, len(tokens)))
        return math.exp(-total / (len(tokens) - 1))
