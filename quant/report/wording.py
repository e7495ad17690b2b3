"""Lists and numbers as a reader expects them in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def joined(parts: Sequence[str]) -> str:
    """a, b and c"""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def named(things: Iterable) -> str:
    """The names of results or variants, as code."""
    return joined([f"`{thing.name}`" for thing in things])


def span(values: Iterable[float], form: str) -> str:
    """The least and the largest, or the one number where both read alike: 0.401 to 0.416."""
    low, high = form.format(min(found := list(values))), form.format(max(found))
    return low if low == high else f"{low} to {high}"


def signed(value: float, digits: int = 3) -> str:
    """+0.012, -0.500, 0.000"""
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text
