"""Score one variant against the base on the evaluation text: python stages/evaluate.py VARIANT

base comes first: it leaves what it predicted in data/reference, which the others are compared with.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: threads that wait leave the cores to others

from common import parameters, run

from quant.text.corpus import load_corpus
from quant.quality.evaluate import evaluate
from quant.files import write_json
from quant.quality.windows import Protocol
from quant.variants import variant_named


def main(name: str) -> None:
    params = parameters()
    protocol = Protocol.from_dict(params["evaluate"])
    result = evaluate(variant_named(name), load_corpus(Path("data/eval")), protocol, params["device"])
    write_json(Path("reports/quality") / f"{name}.json", result)


run(main)
