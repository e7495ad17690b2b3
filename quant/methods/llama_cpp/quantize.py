"""The parameters of a row, and a GGUF file quantized with llama.cpp's own quantizer.

K-quants (such as Q4_K) work on blocks of 256 weights of a row; where 256 does not divide the row, llama.cpp silently falls back
to another type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.config import is_whole, known_keys
from quant.errors import InputError
from quant.files import atomic_folder, write_manifest
from quant.gguf.header import check_hash
from quant.gguf.quantizer import run_quantizer

IMATRIX = "imatrix.gguf"  # in the folder that `prepare` writes
LOOKED = "looked"  # a folder there, which holds why no row can look at a text, where that is so
BUDGET_TYPE = "Q3_K_S"  # what a file under a budget is called; each tensor has a type of its own


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


def quantize(source: Path, spec: Spec, out: Path) -> None:
    """Quantize the GGUF file `source` to out/model.gguf. An importance matrix stands beside the source.

    Raises Refused for an unknown type, and where llama.cpp fails: some types need an importance matrix.
    """
    from quant.gguf.imatrix import read_imatrix

    check_hash(source)
    importance = read_imatrix(source.parent / IMATRIX) if spec.imatrix else None
    with atomic_folder(out) as folder:
        run_quantizer(source, folder / "model.gguf", spec.type, importance)
        about = {"imatrix": True} if spec.imatrix else {}
        write_manifest(folder, {"method": "llama_cpp", "runtime": "llama_cpp", "type": spec.type, **about})
