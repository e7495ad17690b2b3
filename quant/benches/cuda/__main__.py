"""Checks, tunes and times the products on a CUDA GPU: python -m quant.benches.cuda [--parts check,tune,...] [--out FILE]

check     every way and width against float64; tests/test_cuda_kernels.py checks more, and more slowly
tune      times the candidates for the table of quant/kernels/cuda/blocks.py; prints the entry of this GPU, ready for it, and goes
          on with it
products  this project's products, bfloat16, bitsandbytes and torch's own int4 product, with the matrices of a Llama of 8 B
          parameters. A time is that of a replay of a CUDA graph over so many copies of the weight that no cache holds them; "from
          Python" is the time to start them one by one
model     a Llama of 1.2 B parameters through the runner, every weight quantized: prefill, decoding compiled and step by step, and
          the GPU's peak memory

Prints the tables and which goals are reached, and writes everything as one JSON after every part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from quant.command import Parser, run
from quant.errors import InputError

OUT = Path("reports/cuda.json")
PARTS = ("check", "tune", "products", "model")


def parts(word: str) -> tuple[str, ...]:
    """argparse type: some of PARTS, in their order."""
    wanted = word.split(",")
    if not set(wanted) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{word!r} is not some of {','.join(PARTS)}")
    return tuple(part for part in PARTS if part in wanted)


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.benches.cuda", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--parts", type=parts, default=PARTS, metavar=",".join(PARTS), help="what to do (everything)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="the JSON (%(default)s)")
    given = parser.parse_args(arguments)
    import torch  # here, because it takes a second, and what follows needs triton, which is there only beside a GPU

    if not torch.cuda.is_available():
        raise InputError("torch finds no CUDA GPU here; run this on a machine with one")
    from quant.benches.cuda.whole import run_parts

    run_parts(given.parts, given.out)


if __name__ == "__main__":
    run(main)
