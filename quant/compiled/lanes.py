"""How many floats the loops' vectors hold: 16 on processors with AVX-512, else 8 (AVX2, or what LLVM makes of it elsewhere).

The environment variable QUANT_LANES chooses among those that the processor has, so that one machine can test both.
"""

from __future__ import annotations

import os

from numba.core.registry import cpu_target

from quant.errors import InputError

VARIABLE = "QUANT_LANES"
NEEDS = {8: (), 16: ("avx512f", "avx512bw", "avx512vl")}  # floats in a vector -> the processor's features it needs


def features() -> set[str]:
    """LLVM's names of the features that numba compiles for: the host's, or those of NUMBA_CPU_FEATURES."""
    named = cpu_target.target_context.codegen().magic_tuple()[2]
    return {name[1:] for name in named.split(",") if name.startswith("+")}


def chosen(wanted: str | None, found: set[str]) -> int:
    """Floats in a vector: the most that a processor with the features `found` has, or the number `wanted`.

    Raises InputError for a number other than 8 and 16, and for one whose features are not found.
    """
    possible = [count for count, needs in NEEDS.items() if found.issuperset(needs)]
    if not wanted:
        return max(possible)
    if wanted not in map(str, NEEDS):
        raise InputError(f"{VARIABLE} is {wanted!r}; expected {' or '.join(map(str, NEEDS))}, or nothing for the widest")
    if int(wanted) not in possible:
        missing = [name for name in NEEDS[int(wanted)] if name not in found]
        raise InputError(f"{VARIABLE} is {wanted}, but this processor lacks {', '.join(missing)}; unset it or choose 8")
    return int(wanted)


LANES = chosen(os.environ.get(VARIABLE), features())


def description() -> str:
    """The loops' vectors, for the record of a measurement."""
    found = features()
    name = "AVX-512" if LANES == 16 else "AVX2" if "avx2" in found else "no byte shuffle"
    return f"{LANES} floats ({name})"
