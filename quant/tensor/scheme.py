"""Scheme: how one weight is stored in codes and scales, and how these are chosen. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from quant.config import check_choice, either, is_whole, known_keys, list_of, one_of, properties_of, whole
from quant.errors import InputError
from quant.outside import shown
from quant.tensor.codebooks import CODEBOOKS, LINEAR, NAMES

LARGEST = 1e30  # of a table of values: float32 has room for its products
SCALE_DTYPES = ("float32", "float16", "bfloat16", "int8", "nested")
LEVELS = ("narrow", "full")
ZEROS = ("real", "whole")
FITS = ("range", "mse", "hqq", "ggml")  # quant.tensor.scales has a Fit for each
GGML_TYPES = {"Q4_0": (4, True), "Q4_1": (4, False), "Q5_0": (5, True), "Q5_1": (5, False), "Q8_0": (8, True)}
K_TYPES = {"Q2_K": (2, 16, False), "Q3_K": (3, 16, True), "Q4_K": (4, 32, False), "Q5_K": (5, 32, False), "Q6_K": (6, 16, True)}
SUPERBLOCK = 256  # weights of a row that share the float16 numbers of a K-quant


@dataclass(frozen=True)
class Scheme:
    """bits: width of a code, 2 to 8.
    group_size: which weights share a scale: "tensor", "row" (one output channel) or a number of weights of a row; the last
    group of a row is shorter where the number does not divide it.
    symmetric: codes around zero; otherwise every group also stores a zero.
    codebook: "linear" steps, the 16 values of "nf4" (QLoRA) or "fp4" (bitsandbytes' E2M1), or any table of numbers.
    scale_dtype: "float32", "float16", "bfloat16", or "int8": whole numbers from -127 to 127 times a float16 number per row,
    or "nested": those of llama.cpp's K-quants, whole numbers of 4 to 8 bits times a float16 number per 256 weights of a row.
    double_quant: the scales themselves are stored in 8 bits, 256 to a block (QLoRA).
    fit: how a group's range is chosen: "range" clips no weight, "mse" searches clipped ranges for the least squared error,
    "hqq" is HQQ's half-quadratic solver, "ggml" the rule of llama.cpp's Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.
    levels: of a symmetric grid of equal steps: "narrow" has as many below zero as above, 2^bits - 1 in all; "full" has one more
    below, all 2^bits, and a scale with a sign, so that the additional one can serve either end.
    zeros: of an asymmetric grid: "real" stores the value of code 0, "whole" the code whose value is 0, in as many bits as a code.
    """

    bits: int = 8
    group_size: int | str = "row"
    symmetric: bool = True
    codebook: str | tuple[float, ...] = "linear"
    scale_dtype: str = "float32"
    double_quant: bool = False
    fit: str = "range"
    levels: str = "narrow"
    zeros: str = "real"

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
        check_choice("levels", self.levels, LEVELS)
        check_choice("zeros", self.zeros, ZEROS)
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
        if self.scale_dtype == "int8" and self.group_size == "tensor":
            raise InputError("scale_dtype int8 is relative to a number per row: group_size must be row or a number, found tensor")
        if self.levels == "full" and not (self.is_linear and self.symmetric):
            found = self._kind if self.symmetric else f"asymmetric {self._kind}"
            raise InputError(f"levels full is for symmetric steps, and {found} has none; expected levels narrow, or codebook "
                             "linear and symmetric true")
        if self.zeros == "whole" and self.symmetric:
            raise InputError(f"zeros whole is for asymmetric steps, and {self._kind} is symmetric; expected zeros real, or "
                             "symmetric false")
        if self.fit == "hqq" and self.zeros == "whole":
            raise InputError("fit hqq solves for a zero that is a real number; expected zeros real, or fit range or mse")
        if self.fit == "hqq" and (not self.is_linear or self.symmetric):
            raise InputError("fit hqq solves for the zero of linear steps: it needs codebook linear and symmetric false")
        if self.scale_dtype == "nested":
            known = (self.bits, self.group_size, self.symmetric) in K_TYPES.values()
            expected = (LINEAR, False, "full" if self.symmetric else "narrow", "real")
            found = (self.codebook, self.double_quant, self.levels, self.zeros)
            if not known or found != expected or self.fit not in ("range", "mse"):
                raise InputError(
                    f"scale_dtype nested is that of {', '.join(K_TYPES)}, and {self.label} is none of them; expected bits 2, 4 "
                    "or 5, symmetric false and group_size 32 (16 for 2 bits), or bits 3 or 6, levels full and group_size 16; "
                    "codebook linear, zeros real, fit range or mse"
                )
        if self.fit == "ggml":
            known = (self.bits, self.symmetric) in GGML_TYPES.values()
            expected = (32, LINEAR, "float16", False, "narrow", "real")
            if not known or expected != (self.group_size, self.codebook, self.scale_dtype, self.double_quant, self.levels,
                                         self.zeros):
                raise InputError(
                    f"fit ggml is the rule of {', '.join(GGML_TYPES)}, and {self.label} is none of them; expected bits 4 or 5 "
                    "(8 if symmetric), group_size 32, codebook linear, scale_dtype float16, double_quant false, levels narrow, "
                    "zeros real"
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

        The last group of a row is shorter where the group size does not divide the row.
        """
        return (1 if self.group_size == "tensor" else rows), -(-columns // self.columns_per_group(columns))

    def columns_per_group(self, columns: int) -> int:
        """Columns of a group in a matrix of `columns`: all of them per tensor and per row."""
        return columns if isinstance(self.group_size, str) else min(self.group_size, columns)

    def group_index(self, columns: int) -> list[int]:
        """The group of each column of a matrix: where its scale stands in a row of scales."""
        size = self.columns_per_group(columns)
        return [column // size for column in range(columns)]

    @property
    def label(self) -> str:
        """A short name with all fields that are not defaults: "int8 row", "nf4 g64 dq", "int4 g32 asym whole fp16 mse",
        "int4 g64 full i8"."""
        span = self.group_size if isinstance(self.group_size, str) else f"g{self.group_size}"
        words = [
            self._kind, span, "" if self.symmetric else "asym", "" if self.levels == "narrow" else self.levels,
            "" if self.zeros == "real" else self.zeros,
            {"float32": "", "float16": "fp16", "bfloat16": "bf16", "int8": "i8", "nested": "nested"}[self.scale_dtype],
            "dq" if self.double_quant else "", "" if self.fit == "range" else self.fit,
        ]  # fmt: skip
        return " ".join(filter(None, words))

    @property
    def _kind(self) -> str:
        if isinstance(self.codebook, tuple):
            return f"table{len(self.codebook)}"
        return f"int{self.bits}" if self.is_linear else self.codebook


def properties() -> dict[str, dict]:
    """JSON schema of each parameter of a scheme."""
    codebook = either(one_of(NAMES), list_of({"type": "number"}, minItems=3, maxItems=256))
    return properties_of(Scheme, bits=whole(2, 8), group_size=either(one_of(["row", "tensor"]), whole()), codebook=codebook,
                         scale_dtype=one_of(SCALE_DTYPES), fit=one_of(FITS), levels=one_of(LEVELS), zeros=one_of(ZEROS))


def _check_table(table: tuple, bits: int) -> None:
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and -LARGEST <= v <= LARGEST for v in table):
        raise InputError(f"codebook is {shown(list(table))}; expected finite numbers")
    if len(set(table)) != len(table) or not any(table):
        raise InputError(f"codebook is {list(table)}; expected different numbers, and not 0 alone")
    if not 2 ** (bits - 1) < len(table) <= 2**bits:
        raise InputError(f"codebook has {len(table)} values; with bits {bits} expected {2 ** (bits - 1) + 1} to {2**bits}")
