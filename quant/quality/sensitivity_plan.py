"""The section `sensitivity` of params.yaml: the scheme that parts of the model are quantized with, and how much is scored."""

from __future__ import annotations

from dataclasses import dataclass

from quant.config import is_whole, known_keys
from quant.errors import InputError
from quant.tensor.scheme import Scheme


@dataclass(frozen=True)
class SensitivityPlan:
    """bits, group_size: as in Scheme. windows: number of windows of the scoring protocol, from the first, that are scored."""

    bits: int = 4
    group_size: int | str = 64
    windows: int = 32

    def __post_init__(self) -> None:
        try:
            _ = self.scheme
        except InputError as error:
            raise InputError(f"sensitivity.{error}") from None
        if not is_whole(self.windows):
            raise InputError(f"sensitivity.windows is {self.windows!r}; expected a number of windows from 1")

    @classmethod
    def from_section(cls, values: dict | None) -> SensitivityPlan | None:
        """Read the section; None, for a section that is null, means that nothing is measured."""
        return None if values is None else cls(**known_keys(cls, values, "sensitivity"))

    @property
    def scheme(self) -> Scheme:
        return Scheme(self.bits, self.group_size)
