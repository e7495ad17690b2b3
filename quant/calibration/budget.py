"""Budget: which part of a model gets how many bits, so that all weights together take no more than a given size.

The choice is a knapsack. A part's predicted divergence at a width is its cost, its stored bits are its size. The convex part of
the answer is found by a Lagrange multiplier, and what is left over buys, one at a time, the upgrade that saves most per bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quant.errors import Refused

STEPS = 200  # of the bisection for the multiplier


@dataclass(frozen=True)
class Choice:
    """One way to store a part. name: such as "int4"; bits: stored, scales included; cost: predicted divergence in mnat."""

    name: str
    bits: int
    cost: float


def allocate(parts: Mapping[str, list[Choice]], budget: float) -> dict[str, Choice]:
    """The choice for each part with which the sum of costs is smallest, or nearly so, and the sum of bits within the budget.

    Raises Refused where the smallest choices together exceed it.
    """
    least = sum(min(choice.bits for choice in choices) for choices in parts.values())
    if least > budget:
        raise Refused(f"the smallest candidates take {least / 8 / 2**20:.2f} MiB, the budget leaves {budget / 8 / 2**20:.2f} "
                      "MiB for them; raise the budget or add a smaller candidate")
    low, high = 0.0, 1.0
    while _bits(_cheapest(parts, high)) > budget:
        low, high = high, 4 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _bits(_cheapest(parts, middle)) > budget:
            low = middle
        else:
            high = middle
    return _filled(parts, _cheapest(parts, high), budget)


def _cheapest(parts: Mapping[str, list[Choice]], price: float) -> dict[str, Choice]:
    """For each part the choice of least cost, where every bit costs `price` too."""
    return {name: min(choices, key=lambda choice: (choice.cost + price * choice.bits, choice.bits))
            for name, choices in parts.items()}


def _filled(parts: Mapping[str, list[Choice]], chosen: dict[str, Choice], budget: float) -> dict[str, Choice]:
    """Spend what is left of the budget on the upgrades that save most per bit."""
    chosen = dict(chosen)
    while True:
        left, best = budget - _bits(chosen), None
        for name, choices in parts.items():
            now = chosen[name]
            for choice in choices:
                more = choice.bits - now.bits
                if choice.cost < now.cost and more <= left:
                    gain = (now.cost - choice.cost) / more if more > 0 else float("inf")
                    if best is None or gain > best[0]:
                        best = gain, name, choice
        if best is None:
            return chosen
        chosen[best[1]] = best[2]


def _bits(chosen: Mapping[str, Choice]) -> int:
    return sum(choice.bits for choice in chosen.values())
