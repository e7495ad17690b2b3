"""Quantize the base model with bitsandbytes: python stages/bnb.py ROW, a row of the section bnb"""

from pathlib import Path

from common import parameters, run

from quant.methods.bitsandbytes.build import Spec, build


def main(row: str) -> None:
    build(Path("models/base"), Spec.from_dict(parameters()["bnb"][row]), Path("models") / f"bnb-{row}")


run(main)
