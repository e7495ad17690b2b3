"""Lists and numbers as a sentence or a table shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from quant.errors import printable

MOST_NAMES = 4  # of a list within a sentence


def joined(parts: Sequence[str]) -> str:
    """Join parts as in "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def code(names: Iterable[str]) -> str:
    """Join names as in "`a`, `b` and `c`"."""
    return joined([f"`{name}`" for name in names])


def named(things: Iterable) -> str:
    """The names of results or variants, as code."""
    return code(thing.name for thing in things)


def some(things: Sequence) -> str:
    """The names of results or variants, as code; of a list longer than MOST_NAMES, the first."""
    if len(things) <= MOST_NAMES:
        return named(things)
    return joined([*(f"`{thing.name}`" for thing in things[:MOST_NAMES]), f"{len(things) - MOST_NAMES} more"])


def number(value: float, form: str) -> str:
    """Format a number by a form such as "{:.2f}"; one that rounds to zero has no sign."""
    text = form.format(value)
    return text.lstrip("+-") if float(text) == 0 else text


def signed(value: float) -> str:
    """Format a number with its sign, as in "+0.012", "-0.500" and "0.000"."""
    return number(value, "{:+.3f}")


def span(values: Iterable[float], form: str) -> str:
    """The smallest and the largest value, as in "0.401 to 0.416"; one number where both read alike."""
    low, high = number(min(found := list(values)), form), number(max(found), form)
    return low if low == high else f"{low} to {high}"


def scale(size: int | str) -> str:
    """A group size in words."""
    return "one scale per row" if size == "row" else f"one scale per {size} weights"


def plain(text: str) -> str:
    """Text that Markdown shows unchanged, on one line, so that the output of a model is never markup."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def literal(text) -> str:
    """A name or an address from outside as code, or, where code could not hold it, as plain text; shortened, on one line."""
    shown = printable(str(text), 200)
    return f"`{shown}`" if re.fullmatch(r"[\w ./:@+,=~-]+", shown) else plain(shown)


def unmarked(text: str) -> str:
    """A text from outside as it is where it holds no markup, else so that Markdown shows it unchanged."""
    return text if re.fullmatch(r"[\w .,:;/()'-]*", text) else plain(text)


def ending(text: str, most: int = 300) -> str:
    """The last words of a text, `most` characters at most."""
    return text if len(text) <= most else "… " + text[-most:].partition(" ")[2]
