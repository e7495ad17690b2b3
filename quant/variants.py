"""Variants: the rows of params.yaml, each with its method and all of its parameters.

Two keys of a row are not its method's: `method`, and `benchmark` (default true), where false measures quality and size only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.errors import InputError
from quant.methods import UNQUANTIZED, Method, Values, load
from quant.outside import read_json, shown

BASE = "base"
RESERVED = {BASE, "embedded", "embedded-small", "prepared", "relatives"}  # other folders of models/
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Variant:
    """values: the parameters of the row, its method's defaults included. is_timed: whether its speed is measured."""

    name: str
    method: Method
    values: Values
    is_timed: bool = True

    @property
    def nominal_bits(self) -> int | None:
        """The width of most of its codes; None where nothing is quantized."""
        return self.method.nominal_bits(self.values)

    def to_dict(self) -> dict:
        """The variant as values that JSON can hold; the inverse of `from_dict`."""
        return {"name": self.name, "method": self.method.name, "values": dict(self.values), "benchmark": self.is_timed}

    @classmethod
    def from_dict(cls, values: Mapping) -> Variant:
        return cls(values["name"], load(values["method"]), values["values"], values["benchmark"])


def variants(params: Mapping) -> list[Variant]:
    """The base, then every row of `variants`, in order. Raises InputError, which names the invalid row."""
    return [base(), *(variant(name, params) for name in rows(params))]


def base() -> Variant:
    """The model as it was found, which every variant is compared with."""
    method = load(UNQUANTIZED)
    return Variant(BASE, method, method.resolve({}, {}))


def rows(params: Mapping) -> Mapping:
    """The section `variants`, unchecked except for being rows. Raises InputError if it holds anything else."""
    found = params.get("variants") or {}
    if not isinstance(found, Mapping):
        raise InputError(f"variants is {found!r}; expected rows such as int4: {{method: quant, bits: 4}}")
    return found


def variant(name: str, params: Mapping) -> Variant:
    """The variant of the row called `name`. Raises InputError for an unknown name or an invalid row."""
    known = rows(params)
    if name not in known:
        raise InputError(f"variant {name!r} is not in params.yaml; it has {', '.join(map(str, known)) or 'none'}")
    row = known[name]
    if not isinstance(name, str):
        raise InputError(f"a variant is called {name!r}, which is no text; put its name in quotes")
    if not NAME.fullmatch(name) or name in RESERVED:
        raise InputError(f"a variant can't be called {name!r}; expected letters, digits, dots, hyphens and underscores, and none "
                         f"of {', '.join(sorted(RESERVED))}")
    if not isinstance(row, Mapping) or "method" not in row:
        raise InputError(f"variants.{name} is {row!r}; expected a row with a method, such as {{method: quant, bits: 4}}")
    is_timed = row.get("benchmark", True)
    if not isinstance(is_timed, bool):
        raise InputError(f"variants.{name}.benchmark is {is_timed!r}; expected true or false")
    try:
        method = load(row["method"])
        own = {key: value for key, value in row.items() if key not in ("method", "benchmark")}
        defaults = params.get(row["method"]) or {}
        if not isinstance(defaults, Mapping):
            raise InputError(f"the section {row['method']} is {shown(defaults)}; expected keys and values")
        values = method.resolve(defaults, own)
    except InputError as error:
        raise InputError(f"variants.{name}: {error}") from None
    return Variant(name, method, values, is_timed)


def planned(name: str, plan: Path) -> Variant:
    """The variant that the stage `plan` wrote to the folder `plan`. Raises InputError if it is not there."""
    path = plan / "variants" / f"{name}.json"
    if not path.is_file():
        known = sorted(other.stem for other in (plan / "variants").glob("*.json"))
        raise InputError(f"variant {name!r} is not planned; " + (f"expected one of {', '.join(known)}" if known else
                         "run dvc repro plan first"))
    return Variant.from_dict(read_json(path))
