"""Scheme: how one weight is stored in codes and scales, and how these are chosen. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from quant.config import check_choice, is_whole, known_keys
from quant.errors import InputError
from quant.tensor.codebooks import CODEBOOKS, LINEAR, NAMES

SCALE_DTYPES = ("float32", "float16", "bfloat16")
FITS = ("range", "mse", "hqq", "ggml")  # quant.tensor.scales has a Fit for each
GGML_TYPES = {"Q4_0": (4, True), "Q4_1": (4, False), "Q5_0": (5, True), "Q5_1": (5, False), "Q8_0": (8, True)}


@dataclass(frozen=True)
class Scheme:
    """bits: width of a code, 2 to 8.
    group_size: which weights share a scale: "tensor", "row" (one output channel) or a number of weights of a row.
    symmetric: codes around zero; otherwise every group also stores the value of its code 0.
    codebook: "linear" steps, the 16 values of "nf4" (QLoRA) or "fp4" (bitsandbytes' E2M1), or any table of numbers.
    scale_dtype: "float32", "float16" or "bfloat16".
    double_quant: the scales themselves are stored in 8 bits, 256 to a block (QLoRA).
    fit: how a group's range is chosen: "range" clips no weight, "mse" searches clipped ranges for the least squared error,
    "hqq" is HQQ's half-quadratic solver, "ggml" the rule of llama.cpp's Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.
    """

    bits: int = 8
    group_size: int | str = "row"
    symmetric: bool = True
    codebook: str | tuple[float, ...] = "linear"
    scale_dtype: str = "float32"
    double_quant: bool = False
    fit: str = "range"

    def __post_init__(self) -> None:
        if isinstance(self.codebook, list):  # as YAML and JSON give a table
            object.__setattr__(self, "codebook", tuple(self.codebook))
        if not is_whole(self.bits, 2) or self.bits > 8:
            raise InputError(f"bits is {self.bits!r}; expected a whole number from 2 to 8")
        if not is_whole(self.group_size) and self.group_size not in ("row", "tensor"):
            raise InputError(f"group_size is {self.group_size!r}; expected row, tensor or a number of weights such as 64")
        for name in ("symmetric", "double_quant"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; expected true or false")
        check_choice("scale_dtype", self.scale_dtype, SCALE_DTYPES)
        check_choice("fit", self.fit, FITS)
        if isinstance(self.codebook, tuple):
            _check_table(self.codebook, self.bits)
        else:
            check_choice("codebook", self.codebook, NAMES, " or a table of numbers such as [-1, -0.4, 0, 0.4, 1]")
        self._check_combination()

    def _check_combination(self) -> None:
        if self.codebook in CODEBOOKS and self.bits != CODEBOOKS[self.codebook].bits:
            book = CODEBOOKS[self.codebook]
            raise InputError(f"codebook {self.codebook} has {len(book.values)} values: bits must be {book.bits}, found "
                             f"{self.bits}")
        if not self.is_linear and not self.symmetric:
            raise InputError(f"codebook {self._kind} has its own zero: symmetric must be true")
        if self.double_quant and self.scale_dtype != "float32":
            raise InputError(f"double_quant stores scales in 8 bits: scale_dtype must be float32, found {self.scale_dtype}")
        if self.fit == "hqq" and (not self.is_linear or self.symmetric):
            raise InputError("fit hqq solves for the zero of linear steps: it needs codebook linear and symmetric false")
        if self.fit == "ggml":
            known = (self.bits, self.symmetric) in GGML_TYPES.values()
            if not known or (self.group_size, self.codebook, self.scale_dtype) != (32, LINEAR, "float16") or self.double_quant:
                raise InputError(
                    f"fit ggml is the rule of {', '.join(GGML_TYPES)}, and {self.label} is none of them; expected bits 4 or 5 "
                    "(8 if symmetric), group_size 32, codebook linear, scale_dtype float16, double_quant false"
                )

    @classmethod
    def from_dict(cls, values: dict) -> Scheme:
        return cls(**known_keys(cls, values, "scheme"))

    def override(self, values: dict) -> Scheme:
        """A copy with some fields replaced. Raises InputError for an unknown key."""
        return replace(self, **known_keys(type(self), values, "scheme"))

    def to_dict(self) -> dict:
        """The fields as values that JSON can hold; the inverse of `from_dict`."""
        values = asdict(self)
        return values | ({"codebook": list(self.codebook)} if isinstance(self.codebook, tuple) else {})

    @property
    def is_linear(self) -> bool:
        """Whether codes stand for equal steps, rather than for a table's values."""
        return self.codebook == LINEAR

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Shape of the scales of a matrix: (1, 1) per tensor, (rows, 1) per row, else (rows, groups of a row).

        Every grouping is a view of the matrix as blocks [*scale_shape, weights of a group].
        Raises InputError if the group size does not divide the row.
        """
        if self.group_size == "tensor":
            return 1, 1
        if self.group_size == "row":
            return rows, 1
        if columns % self.group_size:
            raise InputError(f"group_size {self.group_size} does not divide the {columns} columns of shape {[rows, columns]}; "
                             "choose a divisor, or row")
        return rows, columns // self.group_size

    @property
    def label(self) -> str:
        """A short name with all fields that are not defaults: "int8 row", "nf4 g64 dq", "int4 g32 asym fp16 mse"."""
        span = self.group_size if isinstance(self.group_size, str) else f"g{self.group_size}"
        words = [
            self._kind, span, "" if self.symmetric else "asym",
            {"float32": "", "float16": "fp16", "bfloat16": "bf16"}[self.scale_dtype],
            "dq" if self.double_quant else "", "" if self.fit == "range" else self.fit,
        ]  # fmt: skip
        return " ".join(filter(None, words))

    @property
    def _kind(self) -> str:
        if isinstance(self.codebook, tuple):
            return f"table{len(self.codebook)}"
        return f"int{self.bits}" if self.is_linear else self.codebook


def _check_table(table: tuple, bits: int) -> None:
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in table):
        raise InputError(f"codebook is {list(table)}; expected finite numbers")
    if len(set(table)) != len(table) or not any(table):
        raise InputError(f"codebook is {list(table)}; expected different numbers, and not 0 alone")
    if not 2 ** (bits - 1) < len(table) <= 2**bits:
        raise InputError(f"codebook has {len(table)} values; with bits {bits} expected {2 ** (bits - 1) + 1} to {2**bits}")
