"""Quantize the base model from scratch by one recipe: python stages/quantize.py RECIPE"""

from pathlib import Path

from common import parameters, run

from quant.model.artifact import write_artifact
from quant.tensor.scheme import Scheme
from quant.select import Recipe


def main(name: str) -> None:
    params = parameters()
    recipe = Recipe.from_dict(params["recipes"][name] or {}, Scheme.from_dict(params["quant"]))
    write_artifact(Path("models/base"), recipe, Path("models") / name, tell=print)


run(main)
