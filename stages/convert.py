"""Convert the base model to GGUF, in the precision it is stored in, with llama.cpp's converter: python stages/convert.py"""

from pathlib import Path

from common import run

from quant.methods.gguf import convert


def main() -> None:
    convert(Path("models/base"), Path("models/converted"))


run(main)
