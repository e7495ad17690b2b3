"""The parameters of a row: a recipe (quant.model.recipe) and how its weights are rounded, or the budget that they must fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from quant.config import NULL, check_choice, either, is_whole, known_keys, list_of, one_of, section, whole
from quant.errors import InputError
from quant.model import recipe
from quant.model.recipe import Recipe
from quant.tensor import scheme
from quant.tensor.codebooks import LINEAR
from quant.tensor.scheme import Scheme

CANDIDATES = ({"bits": 2, "fit": "range"}, {"bits": 2, "fit": "range", "group_size": 128}, 3, {"bits": 3, "group_size": 128},
              {"bits": 4, "codebook": "nf4"}, 5, 6, 8)
ROUNDINGS, TARGETS = ("feedback", "nearest"), ("corrected", "original")
SMALLEST = 0.5  # bits a weight: a budget below is a mistake


@dataclass(frozen=True)
class Spec:
    """recipe: the weights to quantize, and the scheme that all start from.
    rounding: "feedback" or "nearest". importance: whether the fit weights errors by the inputs.
    targets: "corrected" or "original". refits, sweeps: see quant.calibration.solver.
    equalize: scale the inputs of layers after norms (AWQ).
    distill: steps for which scales of rows, biases and norms learn from the original (quant.calibration.distill); 0 for none.
    budget: bits a weight over all weights of the model; size_mib: the same as a size; both None for one scheme a role.
    candidates: what a part may be stored as under a budget, as changes of the recipe's scheme. classes: into how many classes of
    rows the embedding and the head are divided. allocation: changes of the scheme by part, instead of a search.
    """

    recipe: Recipe
    rounding: str = "feedback"
    importance: bool = True
    targets: str = "corrected"
    refits: int = 2
    sweeps: int = 4
    equalize: bool = False
    distill: int = 0
    budget: float | None = None
    size_mib: float | None = None
    candidates: tuple[Mapping, ...] = ()
    classes: int = 8
    allocation: Mapping[str, Mapping] | None = None

    def __post_init__(self) -> None:
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_choice("targets", self.targets, TARGETS)
        for key in ("importance", "equalize"):
            if not isinstance(getattr(self, key), bool):
                raise InputError(f"{key} is {getattr(self, key)!r}; expected true or false")
        for key, least in (("refits", 0), ("sweeps", 0), ("distill", 0), ("classes", 1)):
            if not is_whole(getattr(self, key), least):
                raise InputError(f"{key} is {getattr(self, key)!r}; expected a whole number from {least}")
        given = [key for key in ("budget", "size_mib", "allocation") if getattr(self, key) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are given; expected one of them")
        for key in ("budget", "size_mib"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf):
                raise InputError(f"{key} is {value!r}; expected a number above 0")
        if self.budget is not None and not SMALLEST <= self.budget <= 32:
            raise InputError(f"budget is {self.budget!r}; expected bits a weight, from {SMALLEST} to 32")
        if self.is_mixed:
            _ = self.schemes  # raises InputError for a wrong candidate
            for values in (self.allocation or {}).values():
                changed(self.recipe.scheme, values)  # likewise
            if self.recipe.schemes:
                raise InputError("schemes is given beside a budget, which chooses the schemes; leave one of them out")

    @property
    def is_mixed(self) -> bool:
        """Whether parts have schemes of their own, found for a budget or read from an allocation."""
        return self.budget is not None or self.size_mib is not None or self.allocation is not None

    @property
    def schemes(self) -> list[Scheme]:
        """The candidates."""
        return [changed(self.recipe.scheme, values) for values in self.candidates]

    @classmethod
    def from_dict(cls, values: Mapping) -> Spec:
        """Read a row with its method's defaults. Raises InputError for an unknown key or a wrong value."""
        own = {field.name for field in fields(cls)} - {"recipe"}
        mine = {key: value for key, value in values.items() if key in own}
        recipe = {key: value for key, value in values.items() if key not in own}
        mine["candidates"] = tuple(_candidate(value) for value in _listed(mine.get("candidates", CANDIDATES)))
        if mine.get("allocation") is not None:
            mine["allocation"] = _allocation(mine["allocation"])
        return cls(Recipe.from_dict(recipe, Scheme()), **known_keys(cls, mine, "calibrated"))

    def to_dict(self) -> dict:
        """The inverse of `from_dict`, for JSON."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "recipe"}
        return self.recipe.to_dict() | own | {"candidates": [dict(values) for values in self.candidates]}

    def bits_allowed(self, parameters: int) -> float:
        """The budget in bits, for a model with this many parameters."""
        return self.budget * parameters if self.budget is not None else self.size_mib * 2**20 * 8


def wants(values: Mapping) -> dict:
    """What a row needs prepared: which weights it quantizes, and the schemes between which it chooses."""
    spec = Spec.from_dict(values)
    chosen = {key: list(value) if isinstance(value, tuple) else value
              for key, value in spec.recipe.to_dict().items() if key in ("include", "exclude", "blocks")}
    if spec.budget is None and spec.size_mib is None:
        return chosen | {"candidates": [], "classes": spec.classes if spec.is_mixed else 1}
    return chosen | {"candidates": [scheme.to_dict() for scheme in spec.schemes], "classes": spec.classes}


def changed(scheme: Scheme, values: Mapping) -> Scheme:
    """The scheme with some fields replaced. A table has no levels of its own, and no zeros: it drops the scheme's."""
    values = dict(values)
    if values.get("codebook", scheme.codebook) != LINEAR:
        values = {"levels": "narrow", "symmetric": True, "zeros": "real", **values}
    return replace(scheme, **known_keys(Scheme, values, "candidate"))


def _listed(value) -> list:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"candidates is {value!r}; expected a list of widths, or of changes such as {{bits: 4, codebook: nf4}}")
    return list(value)


def _candidate(value) -> dict:
    if isinstance(value, Mapping):
        return known_keys(Scheme, dict(value), "candidate")
    if not is_whole(value, 2) or value > 8:
        raise InputError(f"candidates holds {value!r}; expected a width from 2 to 8, or changes such as "
                         "{bits: 4, codebook: nf4}")
    return {"bits": value}


def _allocation(value) -> dict:
    """Changes of the scheme by part: given as they are, or as a YAML file such as a variant's allocation.yaml."""
    if isinstance(value, str):
        path = Path(value)
        if not path.is_file():
            raise InputError(f"allocation is {value!r}, which is no file; expected a variant's allocation.yaml, or a copy of it")
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"allocation {path} is not YAML: {' '.join(str(error).split())}") from None
        value = value.get("parts") if isinstance(value, dict) else value
    if not isinstance(value, Mapping) or not all(isinstance(part, Mapping) for part in value.values()):
        raise InputError(f"allocation is {value!r}; expected parts such as transformer.h.0.mlp.c_fc: {{bits: 3}}")
    return {str(name): dict(part) for name, part in value.items()}


def properties() -> dict[str, dict]:
    """JSON schema of each parameter of a row."""
    candidate = section(scheme.properties())
    parts = {"type": "object", "additionalProperties": candidate}
    return recipe.properties() | {
        "rounding": one_of(ROUNDINGS), "importance": {"type": "boolean"}, "targets": one_of(TARGETS), "refits": whole(0),
        "sweeps": whole(0), "equalize": {"type": "boolean"}, "distill": whole(0), "classes": whole(1),
        "budget": either({"type": "number", "minimum": SMALLEST, "maximum": 32}, NULL),
        "size_mib": either({"type": "number", "exclusiveMinimum": 0}, NULL),
        "candidates": list_of(either(whole(2, 8), candidate), minItems=1),
        "allocation": either({"type": "string"}, parts, NULL),
    }  # fmt: skip
