"""Codebooks by name: the value of each code of a nonlinear grid, before the scale. Needs no torch.

A new table here is a new grid everywhere: in schemes, artifacts, kernels, figures and tables.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Codebook:
    """label: for tables and legends; values: by code, in any order, at most 2 ** bits of them."""

    label: str
    values: tuple[float, ...]

    @property
    def bits(self) -> int:
        """The width of a code: the smallest with a code for every value."""
        return max(1, (len(self.values) - 1).bit_length())


# QLoRA (Dettmers et al. 2023), appendix E: quantiles of a standard normal, scaled to [-1, 1], with an exact zero.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

# Sign, two bits of exponent, one of mantissa, over 12; in the order of bitsandbytes' codes, its subnormal included.
_FP4_POSITIVE = (0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)

CODEBOOKS = {
    "nf4": Codebook("NF4", _NF4),
    "fp4": Codebook("FP4", _FP4_POSITIVE + tuple(-value for value in _FP4_POSITIVE)),
}
LINEAR = "linear"  # equal steps: no table, any width
NAMES = (LINEAR, *CODEBOOKS)


def label_of(name: str, bits: int) -> str:
    """A grid's name for a reader: "INT4" for equal steps of 4 bits, "NF4"."""
    return f"INT{bits}" if name == LINEAR else CODEBOOKS[name].label
