"""Measure a model of the section `family` on the evaluation text: unquantized, and by the recipes that the stage `plan` wrote."""

import os

from quant.files import write_json
from quant.outside import read_json
from quant.pipeline import MODELS, PLAN, PRIVATE, STUDIES, TEXT, parameters, run

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: waiting threads sleep


def main(name: str) -> None:
    from quant.model.recipe import Recipe
    from quant.quality.family import measure_relative
    from quant.quality.protocol import ScoringProtocol
    from quant.tensor.scheme import Scheme
    from quant.text.load import load_corpus

    params = parameters()
    recipes = {row["variant"]: Recipe.from_dict(row["recipe"], Scheme()) for row in read_json(PLAN / "family.json")}
    found = measure_relative(MODELS / "relatives" / name, recipes, load_corpus(TEXT, PRIVATE),
                             ScoringProtocol.from_dict(params["evaluate"]), params["device"])
    write_json(STUDIES / "family" / f"{name}.json", {"name": name, **found})
    measured = [row for row in found["rows"] if "refused" not in row]
    print(f"{name}: " + "; ".join(f"{row['variant']} {row['bits_per_byte']:.4f} bits per byte in {row['weights_mib']:.2f} MiB"
                                  for row in measured))


run(main)
