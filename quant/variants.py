"""The variants: every way the model is stored, in the order of the table, from the sections of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.errors import InputError

BASE = Path("models/base")
RESERVED = {"base", "bf16", "converted", "embedded"}  # folders of models/ and variants that are always there


@dataclass(frozen=True)
class Variant:
    """name: as in the table; family: float, scratch, bnb or gguf; folder: its files; dtype: of activations."""

    name: str
    family: str
    folder: Path
    dtype: str = "float32"


def variants(params: Mapping) -> list[Variant]:
    """All variants of the sections recipes, bnb and gguf of `params`, after base and bf16."""
    models = Path("models")
    found = [Variant("base", "float", BASE), Variant("bf16", "float", BASE, "bfloat16")]
    found += [Variant(name, "scratch", models / name) for name in params["recipes"] or {}]
    for family in ("bnb", "gguf"):
        found += [Variant(f"{family}-{name}", family, models / f"{family}-{name}") for name in params[family] or {}]
    names = [variant.name for variant in found]
    taken = {name for name in names if names.count(name) > 1} | set(params["recipes"] or {}) & RESERVED
    if taken:
        raise InputError(f"a recipe can't be called {', '.join(sorted(taken))}: the name is taken")
    return found


def variant_named(name: str) -> Variant:
    """The variant of a name alone, for a stage that handles one."""
    if name in ("base", "bf16"):
        return Variant(name, "float", BASE, "float32" if name == "base" else "bfloat16")
    family = name.partition("-")[0]
    return Variant(name, family if family in ("bnb", "gguf") else "scratch", Path("models") / name)
