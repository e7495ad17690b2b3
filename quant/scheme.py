"""Scheme: how the numbers of one weight are stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from quant.errors import InputError

CODEBOOKS = ("linear", "nf4", "fp4")
SCALE_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Scheme:
    """bits: width of a code, 2 to 8.
    group_size: which weights share a scale: "tensor", "row" (one output channel) or a number of weights of a row.
    symmetric: codes around zero; otherwise every group also stores the value of its code 0.
    codebook: "linear" steps, or the 16 values of "nf4" (QLoRA) or "fp4" (E2M1 as bitsandbytes has it).
    scale_dtype: "float32", "float16" or "bfloat16".
    """

    bits: int = 8
    group_size: int | str = "row"
    symmetric: bool = True
    codebook: str = "linear"
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise InputError(f"bits is {self.bits!r}; expected a whole number from 2 to 8")
        is_count = isinstance(self.group_size, int) and not isinstance(self.group_size, bool) and self.group_size > 0
        if not is_count and self.group_size not in ("row", "tensor"):
            raise InputError(f"group_size is {self.group_size!r}; expected row, tensor or a number of weights such as 64")
        if not isinstance(self.symmetric, bool):
            raise InputError(f"symmetric is {self.symmetric!r}; expected true or false")
        if self.codebook not in CODEBOOKS:
            raise InputError(f"codebook is {self.codebook!r}; expected one of {', '.join(CODEBOOKS)}")
        if self.scale_dtype not in SCALE_DTYPES:
            raise InputError(f"scale_dtype is {self.scale_dtype!r}; expected one of {', '.join(SCALE_DTYPES)}")
        if self.codebook != "linear" and self.bits != 4:
            raise InputError(f"codebook {self.codebook} has 16 values: bits must be 4, found {self.bits}")
        if self.codebook != "linear" and not self.symmetric:
            raise InputError(f"codebook {self.codebook} has its own zero: symmetric must be true")

    @classmethod
    def from_dict(cls, values: dict) -> Scheme:
        return cls(**known_keys(cls, values, "scheme"))

    def override(self, values: dict) -> Scheme:
        """This scheme with some fields replaced; a key that is no field is an error."""
        return replace(self, **known_keys(type(self), values, "scheme"))

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def label(self) -> str:
        """Short and complete: "int8 row", "nf4 g64", "int4 g32 asym fp16"."""
        kind = f"int{self.bits}" if self.codebook == "linear" else self.codebook
        span = self.group_size if isinstance(self.group_size, str) else f"g{self.group_size}"
        scale = {"float32": "", "float16": " fp16", "bfloat16": " bf16"}[self.scale_dtype]
        return f"{kind} {span}{'' if self.symmetric else ' asym'}{scale}"


def known_keys(cls, values: dict, what: str) -> dict:
    """`values`, or an InputError that names the keys `cls` does not have."""
    names = [field.name for field in fields(cls)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InputError(f"unknown {what} key {', '.join(map(repr, unknown))}; known: {', '.join(names)}")
    return values
