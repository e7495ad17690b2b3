"""Checks for the frozen dataclasses that hold sections and rows of params.yaml, and the same as a JSON schema for editors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from quant.errors import InputError

TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
NULL = {"type": "null"}


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


def one_of(choices: Sequence) -> dict:
    """JSON schema of a value that is one of `choices`."""
    return {"enum": list(choices)}


def whole(least: int = 1, most: int | None = None) -> dict:
    """JSON schema of a whole number from `least` to `most`."""
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def list_of(item: dict, **limits) -> dict:
    """JSON schema of a list. limits: such as minItems."""
    return {"type": "array", "items": item, **limits}


def either(*schemas: dict) -> dict:
    """JSON schema of a value that fits any of several."""
    return {"anyOf": list(schemas)}


def properties_of(cls, **limits: dict) -> dict[str, dict]:
    """JSON schema of each field of a dataclass: the one in `limits`, else that of its type, which is a plain one or several."""
    return {field.name: limits.get(field.name) or {"type": _types(field.type)} for field in fields(cls)}


def section(properties: dict[str, dict], required: Sequence[str] = ()) -> dict:
    """JSON schema of a section with these keys and no others."""
    return {"type": "object", "properties": properties, "additionalProperties": False} | (
        {"required": list(required)} if required else {})


def _types(annotation: str) -> str | list[str]:
    names = {kind.__name__: name for kind, name in TYPES.items()} | {"None": "null"}
    found = [names[word] for word in annotation.split(" | ")]
    return found[0] if len(found) == 1 else found
