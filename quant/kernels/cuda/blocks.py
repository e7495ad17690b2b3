"""The table of ways and block sizes: by GPU generation, number of rows of activations, and bits; with where each came from.

`python -m quant.benches.cuda` measures it on the GPU at hand and prints the entry of its generation, ready for TABLE.
"""

from __future__ import annotations

from dataclasses import dataclass

FEW, TILES, DENSE = "few rows", "tiles", "dense"


@dataclass(frozen=True)
class Blocks:
    """way: FEW, TILES or DENSE (dequantize, then torch's product). A program computes n outputs, `columns` columns at a time,
    with so many warps and stages; of rows of activations, FEW takes all and TILES m. programs: the least number wanted; where a
    weight makes fewer, FEW takes fewer outputs, and columns are divided. scratch: most bytes that DENSE writes at a time."""

    way: str
    n: int = 4
    columns: int = 64
    warps: int = 4
    stages: int = 1
    m: int = 16
    programs: int = 256
    scratch: int = 2**25


@dataclass(frozen=True)
class Entry:
    """source: where the numbers came from. blocks: most rows of activations (None: any number) -> bits -> blocks; a width that is
    not there has those of the next larger one that is."""

    source: str
    blocks: dict[int | None, dict[int, Blocks]]


_FEW_ROWS = {
    2: Blocks(FEW, n=4, columns=2048),
    4: Blocks(FEW, n=8, columns=1024),  # 3 bits too
    7: Blocks(FEW, n=8, columns=512),
    8: Blocks(FEW, n=8, columns=1024),
}
DEFAULT = Entry(
    "derived from the code that Triton compiles for sm_80 and sm_90, and from times of earlier kernels on an H100; not measured",
    {
        1: _FEW_ROWS,
        # Compiled for sm_90: 16 instructions per code for 8 rows, and 8 to 11 of tiles, which wait for each other.
        8: _FEW_ROWS,
        # Earlier tiles took 88 us at 64 rows of 14336 x 4096 in 4 bits and 178 of 4096 x 14336, and torch's product of bfloat16
        # 45 and 48: from some tens of rows on, to write the weight first should cost less than the difference.
        16: {8: Blocks(TILES, n=64, columns=128, stages=2, programs=512)},
        32: {8: Blocks(TILES, n=64, columns=128, stages=2, m=32, programs=512)},
        # 32 MiB: what is written stays in the L2 cache (50 MB of an H100, 40 of an A100) until it is multiplied.
        None: {8: Blocks(DENSE, n=4, columns=1024)},
    },
)
TABLE: dict[str, Entry] = {}  # generation, such as sm_90 -> what was measured there


def blocks_for(generation: str, count: int, bits: int, is_float32: bool = False) -> Blocks:
    """The blocks for `count` rows of activations, and a weight of so many bits. Float32, which tensor cores do not take without
    rounding it, goes by DENSE where others go by TILES."""
    by_rows = TABLE.get(generation, DEFAULT).blocks
    return next(blocks for most, by_bits in by_rows.items() if most is None or count <= most
                for blocks in [next(found for width, found in sorted(by_bits.items()) if bits <= width)]
                if not (is_float32 and blocks.way == TILES))
