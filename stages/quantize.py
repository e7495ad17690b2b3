"""Make one variant of the base model by its method."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: waiting threads sleep

from quant.pipeline import BASE, PLAN, PREPARED, folder_of, run
from quant.variants import planned


def main(variant: str) -> None:
    row = planned(variant, PLAN)
    row.method.build(BASE, PREPARED / row.method.name, row.values, folder_of(variant), print)


run(main)
