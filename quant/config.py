"""Sections and rows of params.yaml as frozen dataclasses: a key that is not a field is an error."""

from __future__ import annotations

from dataclasses import fields

from quant.errors import InputError


def known_keys(cls, values: dict, what: str) -> dict:
    """`values`, or an InputError that names the keys the dataclass `cls` does not have."""
    names = [field.name for field in fields(cls)]
    if not isinstance(values, dict):
        raise InputError(f"{what} is {values!r}; expected keys and values, of {', '.join(names)}")
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InputError(f"unknown {what} key {', '.join(map(repr, unknown))}; known: {', '.join(names)}")
    return values


def is_whole(value, least: int = 1) -> bool:
    """Whether a value is a whole number of at least `least`; YAML's true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_choice(name: str, value, choices: tuple[str, ...], others: str = "") -> None:
    """Raise InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(choices)}{others}")
