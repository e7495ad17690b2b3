"""Convert the base model to GGUF, in the precision it is stored in, with llama.cpp's converter: python stages/convert.py

An empty section gguf leaves llama.cpp out: then there is nothing to convert for, and the folder stays empty.
"""

from pathlib import Path

from common import parameters, run

from quant.methods.llama_cpp.quantize import convert


def main() -> None:
    out = Path("models/converted")
    if parameters()["gguf"]:
        convert(Path("models/base"), out)
    else:
        out.mkdir(parents=True, exist_ok=True)


run(main)
