"""Make one variant of the base model by its method; one that can't be made leaves its reason, and costs its row alone."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: waiting threads sleep

from quant.errors import Refused
from quant.pipeline import BASE, PLAN, PREPARED, folder_of, run
from quant.refusal import Refusal, require_made, write_refusal
from quant.variants import planned


def main(variant: str) -> None:
    from quant.model.checkpoint import Checkpoint

    row, inventory = planned(variant, PLAN), Checkpoint(BASE).inventory
    prepared, out = PREPARED / row.method.name, folder_of(variant)
    try:
        require_made(prepared)
        row.method.sizes(inventory, BASE, row.values)  # what quant.check says no to is not tried
        row.method.build(BASE, prepared, row.values, out, print)
    except Refused as reason:
        write_refusal(out, Refusal("quantize", str(reason), row.method.here(row.values)))
        print(f"{variant} is left out: {reason}")


run(main)
