"""The parameters of a bitsandbytes variant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.config import check_choice, known_keys
from quant.errors import InputError

if TYPE_CHECKING:
    from quant.model.inventory import Inventory

REPACKED_ROWS = 32  # rows that bitsandbytes packs together on a processor with AVX-512 and bfloat16
TYPES = ("int8", "fp4", "nf4")
BLOCK_SIZE = 64  # weights that share a scale, in the 4-bit types


def repacks_here() -> bool:
    """Whether bitsandbytes repacks 4-bit weights when it runs them here: on a processor with bfloat16, without a GPU."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512_bf16" in cpuinfo.read_text() and not torch.cuda.is_available()


def obstacle(spec: Spec, inventory: Inventory) -> str | None:
    """Why this processor can't run a variant; None where it can."""
    if spec.type == "int8" or not repacks_here():
        return None
    for weight in inventory.weights:
        if weight.is_block_matrix and (weight.shape[0] % REPACKED_ROWS or weight.shape[1] % 2):
            return (f"{weight.module} is a matrix {list(weight.shape)}, and on this processor (AVX-512 with bfloat16) "
                    f"bitsandbytes runs {spec.type} only where {REPACKED_ROWS} divides the rows and 2 the columns; remove the "
                    "row, or take int8")
    return None


@dataclass(frozen=True)
class Spec:
    """type: "int8", "fp4" or "nf4". double_quant: whether the scales are quantized too; for the 4-bit types only."""

    type: str
    double_quant: bool = False

    def __post_init__(self) -> None:
        check_choice("bitsandbytes type", self.type, TYPES)
        if not isinstance(self.double_quant, bool):
            raise InputError(f"double_quant is {self.double_quant!r}; expected true or false")
        if self.double_quant and self.type == "int8":
            raise InputError("double_quant is for fp4 and nf4; int8 has one scale per row")

    @classmethod
    def from_dict(cls, values: dict) -> Spec:
        if "type" not in values:
            raise InputError(f"a bitsandbytes row needs a type (int8, fp4 or nf4); found {values}")
        return cls(**known_keys(cls, values, "bitsandbytes"))
