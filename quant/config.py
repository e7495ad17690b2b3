"""Checks for the frozen dataclasses that hold sections and rows of params.yaml: keys, whole numbers, choices."""

from __future__ import annotations

from dataclasses import fields

from quant.errors import InputError


def known_keys(cls, values: dict, what: str) -> dict:
    """Return `values` if every key is a field of the dataclass `cls`, else raise InputError. what: their name in messages."""
    names = [field.name for field in fields(cls)]
    if not isinstance(values, dict):
        raise InputError(f"{what} is {values!r}; expected keys and values, of {', '.join(names)}")
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InputError(f"unknown {what} key {', '.join(map(repr, unknown))}; known: {', '.join(names)}")
    return values


def is_whole(value, least: int = 1) -> bool:
    """Whether a value is an int of at least `least`; True and False do not count."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_choice(name: str, value, choices: tuple[str, ...], others: str = "") -> None:
    """Raise InputError unless `value` is one of `choices`. others: further choices, as text for the end of the message."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(choices)}{others}")
