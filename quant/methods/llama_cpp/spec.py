"""The parameters of a row. Needs no torch, so that params.yaml is checked at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quant.config import NULL, either, is_whole, known_keys, properties_of, whole
from quant.errors import InputError


@dataclass(frozen=True)
class Spec:
    """type: a file type of llama.cpp such as F16, Q8_0, Q4_0 or q4_k_m; stored in upper case.
    imatrix: whether llama.cpp's quantizer gets an importance matrix, taken on the calibration text.
    calibrated: whether the codes are this project's calibrated ones, in the types that llama.cpp's quantizer gives each tensor.
    budget: bits a weight of the whole file instead of a type, each tensor with the type with which it loses least; calibrated.
    distill: steps in which row scales, biases and norms learn from the base (calibrated only).
    """

    type: str | None = None
    imatrix: bool = False
    calibrated: bool = False
    budget: float | None = None
    distill: int = 0

    def __post_init__(self) -> None:
        if self.budget is not None:
            is_number = isinstance(self.budget, int | float) and not isinstance(self.budget, bool)
            if not is_number or not 0 < self.budget < math.inf:
                raise InputError(f"budget is {self.budget!r}; expected bits a weight, such as 4.5")
            if self.type is not None or not self.calibrated:
                raise InputError("budget chooses a type for each tensor; expected calibrated: true and no type beside it")
        elif not isinstance(self.type, str):
            raise InputError(f"llama.cpp type is {self.type!r}; expected text, such as Q4_K_M")
        else:
            object.__setattr__(self, "type", self.type.upper())
        for key in ("imatrix", "calibrated"):
            if not isinstance(getattr(self, key), bool):
                raise InputError(f"{key} is {getattr(self, key)!r}; expected true or false")
        if not is_whole(self.distill, 0):
            raise InputError(f"distill is {self.distill!r}; expected a whole number from 0")
        if self.distill and not self.calibrated:
            raise InputError("distill trains what a calibrated file holds; expected calibrated: true beside it")

    @classmethod
    def from_dict(cls, values: Mapping) -> Spec:
        if "type" not in values and "budget" not in values:
            raise InputError(f"a llama_cpp row needs a type, such as Q4_K_M; found {dict(values)}")
        return cls(**known_keys(cls, dict(values), "llama_cpp"))


def properties() -> dict[str, dict]:
    """JSON schema of each parameter of a row."""
    return properties_of(Spec, budget=either({"type": "number", "exclusiveMinimum": 0}, NULL), distill=whole(0))
