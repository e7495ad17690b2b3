"""Make one variant of the base model by its method."""

from quant.files import read_json
from quant.pipeline import BASE, PLAN, PREPARED, folder_of, run
from quant.variants import Variant


def main(variant: str) -> None:
    planned = Variant.from_dict(read_json(PLAN / "variants" / f"{variant}.json"))
    planned.method.build(BASE, PREPARED / planned.method.name, planned.values, folder_of(variant), print)


run(main)
