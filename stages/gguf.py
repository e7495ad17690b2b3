"""Quantize the converted model with llama.cpp's quantizer: python stages/gguf.py ROW, a row of the section gguf"""

from pathlib import Path

from common import parameters, run

from quant.methods.llama_cpp.quantize import Spec, quantize


def main(row: str) -> None:
    spec = Spec.from_dict(parameters()["gguf"][row])
    quantize(Path("models/converted/model.gguf"), spec, Path("models") / f"gguf-{row}")


run(main)
