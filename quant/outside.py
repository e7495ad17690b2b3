"""Reads what others wrote: JSON and YAML within limits, plain files alone, and values for messages.

A file may hold anything. Numbers of many digits, NaN, half a character pair, deep nesting, a key given twice or a value that
unfolds to millions are refused here, so that no code behind this boundary meets them.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from datetime import date
from pathlib import Path

import yaml

from quant.errors import InputError, first_line, printable

MIB = 2**20
DEEPEST = 50
MOST_VALUES = 500_000  # of a JSON document: about 64 MiB of objects
MOST_IN_YAML = 20_000
LARGEST_JSON, LARGEST_YAML = 64 * MIB, MIB // 8
CACHED_BY_DVC = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
MOST_DIGITS = 40  # of a whole number: tokenizers commonly give the longest text as int(1e30)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def shown(value, most: int = 120) -> str:
    """A value as text for a message: short, printable, on one line."""
    try:
        return printable(_short.repr(value), most)
    except ValueError:  # Python prints no number of thousands of digits
        return f"a {type(value).__name__} that is too long to print"


def parse_json(text: bytes, what: str):
    """The value of a JSON document, checked. Raises InputError, which begins with `what`."""
    marks = text.count(b",") + text.count(b"[") + text.count(b"{")
    if marks > MOST_VALUES:
        raise InputError(f"{what} holds {marks:,} values; expected at most {MOST_VALUES:,}")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant, parse_int=_whole)
        _check(value, MOST_VALUES)
    except RecursionError:
        raise InputError(f"{what} is nested deeper than {DEEPEST} levels; fetch or make it again") from None
    except ValueError as error:  # of JSON and of UTF-8 as well
        raise InputError(f"{what} is not JSON ({first_line(error)}); fetch or make it again") from None
    return value


def read_json(path: Path, largest: int = LARGEST_JSON):
    """The value in a JSON file. Raises InputError unless the file is a plain one, of at most `largest` bytes, and strict JSON."""
    return parse_json(read_bytes(path, largest), str(path))


def parse_yaml(text: str, what: str):
    """The value of a YAML document of plain types, checked. Raises InputError, which begins with `what`."""
    if len(text) > LARGEST_YAML:
        raise InputError(f"{what} has {len(text):,} characters; expected at most {LARGEST_YAML:,}")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506  it is a SafeLoader
        _check(value, MOST_IN_YAML)
    except RecursionError:
        raise InputError(f"{what} is nested deeper than {DEEPEST} levels") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that there is not
        raise InputError(f"{what} is not YAML: {printable(str(error), 400)}") from None
    return value


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a plain file. Raises InputError for anything else, and for a file of more than `largest` bytes."""
    with open(plain_file(path, largest), "rb") as file:
        data = bytearray()
        while piece := file.read(MIB):  # a file may grow, and those of /proc have no size
            data += piece
            if len(data) > largest:
                raise InputError(f"{path} has more than {largest:,} bytes; expected a smaller file of this kind")
    return bytes(data)


def plain_file(path: Path, largest: int | None = None) -> Path:
    """The path, if it leads to a plain file: no folder, pipe, device or broken link. Raises InputError otherwise."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} is a link to nothing; remove it or mend it" if path.is_symlink() else
                         f"{path} does not exist")
    if not path.is_file():
        raise InputError(f"{path} is no plain file; expected one, not a folder, a pipe or a device")
    size = path.stat().st_size
    if largest is not None and size > largest:
        raise InputError(f"{path} has {size:,} bytes; expected at most {largest:,} in a file of this kind")
    return path


def file_within(path: Path, folder: Path, largest: int | None = None) -> Path:
    """The path, if it leads to a plain file in `folder`. Raises InputError for a link that leaves the folder.

    A snapshot in the Hub client's cache links to the blobs beside it, and DVC may link to its cache; those links are kept.
    """
    target, home = plain_file(path, largest).resolve(), Path(folder).resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if not target.is_relative_to(home) and target.parent != blobs and not CACHED_BY_DVC.search(target.as_posix()):
        raise InputError(f"{path} is a link that leaves its folder, to {target}; such a file would be copied, and shared, with "
                         "the model: put a copy of the file there if it belongs to the model")
    return path


def is_count(value, least: int = 0) -> bool:
    """Whether a value is an int, not a bool, of at least `least` and below 2**63."""
    return type(value) is int and least <= value < 2**63


class _Loader(yaml.SafeLoader):
    """Plain types, without keys given twice and the exponential growth of merged ones."""

    def flatten_mapping(self, node):
        super().flatten_mapping(node)
        if len(node.value) > MOST_IN_YAML:
            raise yaml.YAMLError(f"merged keys (<<) unfold to more than {MOST_IN_YAML:,} values")

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"the key {shown(key.value)} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return node


def _object(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found


def _constant(name: str):
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; expected at most {MOST_DIGITS}")
    return int(digits)


def _check(value, most: int) -> None:
    """Raise ValueError for a value that is too deep, too large, not finite or not plain; a shared part counts each time."""
    todo, count = [(value, 0)], 0
    while todo:
        one, depth = todo.pop()
        count += 1
        if depth > DEEPEST:
            raise RecursionError
        if count > most:
            raise ValueError(f"more than {most:,} values")
        if isinstance(one, dict):
            todo += ((inner, depth + 1) for pair in one.items() for inner in pair)
        elif isinstance(one, list):
            todo += ((inner, depth + 1) for inner in one)
        elif isinstance(one, str):
            one.encode("utf-8")  # raises for half a character pair
        elif isinstance(one, float):
            if not math.isfinite(one):
                raise ValueError(f"{one} is not a finite number")
        elif isinstance(one, int):
            if abs(one) >= 10**MOST_DIGITS:
                raise ValueError(f"a number of more than {MOST_DIGITS} digits")
        elif one is not None and not isinstance(one, date):
            raise ValueError(f"a value of type {type(one).__name__}")
