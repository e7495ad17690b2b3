"""The section `calibration` of params.yaml: the text that calibrated methods look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quant.config import is_whole, known_keys
from quant.errors import InputError


@dataclass(frozen=True)
class CalibrationPlan:
    """text: a source as in the section `data`, of which the training part is taken; None: that of the evaluated text, or austen
    where it has none. windows, length: number of windows and their tokens. seed: of their choice."""

    text: str | None = None
    windows: int = 128
    length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.text is not None and not isinstance(self.text, str):
            raise InputError(f"calibration.text is {self.text!r}; expected the name of a text, a path, or null")
        for key, least in (("windows", 1), ("length", 8), ("seed", 0)):
            if not is_whole(getattr(self, key), least):
                raise InputError(f"calibration.{key} is {getattr(self, key)!r}; expected a whole number from {least}")

    @classmethod
    def from_dict(cls, values: Mapping) -> CalibrationPlan:
        return cls(**known_keys(cls, dict(values), "calibration"))
