"""Chooses ways and block sizes on the GPU at hand, for the table in quant.kernels.cuda.blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from quant.kernels.cuda.blocks import DENSE, FEW, TILES, Blocks, Entry

# Most rows of activations that an entry serves -> the number that is timed. None: any number. What matters most comes first.
TIMED = {1: 1, None: 512, 8: 8, 64: 64, 16: 16, 4: 4, 2: 2}
WIDTHS = (8, 4, 3, 2)


def candidates(most: int | None, bits: int) -> Iterator[Blocks]:
    """What is tried for up to so many rows, likeliest first."""
    if most is not None and most <= 16:
        shortest = 1024 if bits == 2 else 512
        for n, columns, warps in ((8, 1024, 4), (4, 2048, 4), (4, 1024, 4), (8, shortest, 2), (2, 2048, 4), (16, 1024, 8)):
            codes = n * columns // (32 * warps)  # of a thread
            if n * most <= 64 and codes * most <= 512:  # compiled for sm_90, more do not fit the registers
                yield Blocks(FEW, n=n, columns=columns, warps=warps)
    if most is not None and most >= 8:
        m = max(16, most)
        for n, columns, warps, stages in ((64, 128, 4, 2), (64, 64, 4, 3), (128, 64, 8, 3), (32, 128, 4, 2)):
            yield Blocks(TILES, n=n, columns=columns, warps=warps, stages=stages, m=m, programs=512)
    if most is None or most > 8:
        for n, scratch in ((4, 2**25), (4, 2**24), (4, 2**27), (8, 2**26)):
            yield Blocks(DENSE, n=n, columns=1024, scratch=scratch)


def tune(time_us: Callable[[Blocks, int, int], float | None], seconds: float, tell: Callable[[str], None],
         clock: Callable[[], float] = time.perf_counter) -> tuple[Entry, list[dict]]:
    """Time the candidates, and choose the fastest of each number of rows and width; what the time does not suffice for keeps its
    first candidate, untimed, and the entry's source says so.

    time_us: (blocks, rows, bits) -> microseconds, or None for what this GPU can't run. Returns the entry, and all times for JSON.
    """
    end, untimed, blocks, tried = clock() + seconds, 0, {}, []
    for most, rows in TIMED.items():
        blocks[most] = {}
        for bits in WIDTHS:
            best: tuple[float, Blocks] | None = None
            for found in candidates(most, bits):
                if clock() > end:
                    untimed += 1
                    continue
                us = time_us(found, rows, bits)
                tried.append({"rows": rows, "bits": bits, "blocks": vars(found), "us": us})
                if us is not None and (best is None or us < best[0]):
                    best = us, found
            blocks[most][bits] = best[1] if best else next(candidates(most, bits))
            tell(f"up to {most or 'any'} rows, {bits} bits: {best and f'{best[0]:.1f} us'} {line_of(blocks[most][bits])}")
    source = "measured by quant.benches.cuda" + (f", but {untimed} candidates, for which time did not suffice" if untimed else "")
    ordered = sorted(blocks, key=lambda most: most or float("inf"))
    return Entry(source, {most: dict(sorted(blocks[most].items())) for most in ordered}), tried


def line_of(blocks: Blocks) -> str:
    """A `Blocks` as Python writes it, without defaults."""
    names = {FEW: "FEW", TILES: "TILES", DENSE: "DENSE"}
    usual = Blocks(blocks.way)
    values = {name: value for name, value in vars(blocks).items() if value != getattr(usual, name)}
    return f"Blocks({', '.join([names[blocks.way], *(f'{name}={value}' for name, value in values.items())])})"


def lines_of(generation: str, entry: Entry) -> list[str]:
    """The entry as lines for TABLE in quant/kernels/cuda/blocks.py."""
    lines = [f'    "{generation}": Entry(', f'        "{entry.source}",', "        {"]
    for most, by_bits in entry.blocks.items():
        lines += [f"            {most}: {{", *(f"                {bits}: {line_of(found)}," for bits, found in by_bits.items()),
                  "            },"]
    return [*lines, "        },", "    ),"]
