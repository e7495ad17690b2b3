"""The parameters of a bitsandbytes variant."""

from __future__ import annotations

from dataclasses import dataclass

from quant.config import check_choice, known_keys
from quant.errors import InputError

BLOCK_SIZE = 64  # weights that share a scale, in the 4-bit types


@dataclass(frozen=True)
class Spec:
    """type: "int8", "fp4" or "nf4". double_quant: whether the scales are quantized too; for the 4-bit types only."""

    type: str
    double_quant: bool = False

    def __post_init__(self) -> None:
        check_choice("bitsandbytes type", self.type, ("int8", "fp4", "nf4"))
        if not isinstance(self.double_quant, bool):
            raise InputError(f"double_quant is {self.double_quant!r}; expected true or false")
        if self.double_quant and self.type == "int8":
            raise InputError("double_quant is for fp4 and nf4; int8 has one scale per row")

    @classmethod
    def from_dict(cls, values: dict) -> Spec:
        if "type" not in values:
            raise InputError(f"a bitsandbytes row needs a type (int8, fp4 or nf4); found {values}")
        return cls(**known_keys(cls, values, "bitsandbytes"))
