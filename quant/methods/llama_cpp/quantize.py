"""Quantizes a GGUF file with llama.cpp's own quantizer.

K-quants (such as Q4_K) work on blocks of 256 weights of a row; where 256 does not divide the row, llama.cpp silently falls back
to another type.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from quant.config import known_keys
from quant.errors import InputError
from quant.files import atomic_folder, write_manifest
from quant.gguf.header import check_gguf, check_hash
from quant.gguf.library import bindings

PREFIX = "LLAMA_FTYPE_MOSTLY_"


@dataclass(frozen=True)
class Spec:
    """type: a file type of llama.cpp such as F16, Q8_0, Q4_0 or q4_k_m; stored in upper case."""

    type: str

    def __post_init__(self) -> None:
        if not isinstance(self.type, str):
            raise InputError(f"llama.cpp type is {self.type!r}; expected text, such as Q4_K_M")
        object.__setattr__(self, "type", self.type.upper())

    @classmethod
    def from_dict(cls, values: dict) -> Spec:
        if "type" not in values:
            raise InputError(f"a llama_cpp row needs a type, such as Q4_K_M; found {values}")
        return cls(**known_keys(cls, values, "llama_cpp"))


def type_number(name: str) -> int:
    """llama.cpp's number for a file type. Raises InputError, which lists the known types, for an unknown name."""
    low_level = bindings()
    number = getattr(low_level, PREFIX + name, None)
    if number is None:
        known = ", ".join(sorted(name.removeprefix(PREFIX) for name in dir(low_level) if name.startswith(PREFIX)))
        raise InputError(f"llama.cpp type is {name!r}; llama.cpp has {known}")
    return number


def quantize(source: Path, spec: Spec, out: Path) -> None:
    """Quantize the GGUF file `source` to out/model.gguf.

    Raises InputError for an unknown type, and where llama.cpp fails: some types need an importance matrix.
    """
    check_gguf(source)
    check_hash(source)
    low_level = bindings()
    options = low_level.llama_model_quantize_default_params()
    options.ftype = type_number(spec.type)
    options.nthread = os.cpu_count() or 1
    with atomic_folder(out) as folder:
        target = folder / "model.gguf"
        status = low_level.llama_model_quantize(str(source).encode(), str(target).encode(), options)
        if status or not target.is_file():
            raise InputError(f"llama.cpp could not quantize {source} to {spec.type} (status {status}); some types need "
                             "an importance matrix, which this pipeline does not make")
        write_manifest(folder, {"method": "llama_cpp", "runtime": "llama_cpp", "type": spec.type})
