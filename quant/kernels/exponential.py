"""The exponential function of float32 in operations that a compiler turns into vectors; libm's is called number by number."""

from __future__ import annotations

from llvmlite import ir
from numba import float32, int32, njit, types
from numba.extending import intrinsic

_TO_WHOLE = float32(1.5 * 2**23)  # added to a number below 2**22, it leaves the nearest whole number in the lowest bits
_TO_WHOLE_BITS = int32(0x4B400000)
_LOWEST, _HIGHEST = float32(-87.0), float32(88.0)  # 2**n must be a normal number
_LOG2_E = float32(1.4426950408889634)
_LN_2_HIGH, _LN_2_LOW = float32(0.693359375), float32(-2.12194440e-4)  # their sum is ln 2; n times the first is exact


@intrinsic
def _bits(typing, number):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _from_bits(typing, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(nogil=True, fastmath={"contract"})  # in another order, the parts of ln 2 would be added first
def exp(x):  # float32 -> float32
    """e**x with a relative error below 2e-7, for x from -87 to 88; beyond, that of the nearer end.

    x = n ln 2 + r, and e**r is a polynomial of degree 7 in r (Cephes, expf, Moshier 1989).
    """
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x  # what is no number stays so
    moved = x * _LOG2_E + _TO_WHOLE
    n = moved - _TO_WHOLE
    r = (x - n * _LN_2_HIGH) - n * _LN_2_LOW
    y = float32(1.9875691500e-4)
    y = y * r + float32(1.3981999507e-3)
    y = y * r + float32(8.3334519073e-3)
    y = y * r + float32(4.1665795894e-2)
    y = y * r + float32(1.6666665459e-1)
    y = y * r + float32(5.0000001201e-1)
    y = y * (r * r) + r + float32(1)
    return y * _from_bits(int32((_bits(moved) - _TO_WHOLE_BITS + int32(127)) << int32(23)))
