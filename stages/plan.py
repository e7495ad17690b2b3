"""Check every parameter, and write each variant's method, parameters with all defaults, and versions of its libraries.

A variant's stages depend on its file in data/plan/variants. So a changed default, such as quant.bits, reruns only the variants
that inherit it, and a changed library version reruns only the stages that use the library.
"""

from quant.device import check_device
from quant.files import atomic_folder, write_json
from quant.hub.source import ModelSource
from quant.pins import COMPUTE, REPORT, pinned
from quant.pipeline import PLAN, REQUIREMENTS, parameters, run
from quant.quality.protocol import ScoringProtocol
from quant.speed.plan import TimingPlan
from quant.text.source import TextSource
from quant.variants import variants


def main() -> None:
    params = parameters()
    ModelSource.from_dict(params["model"])
    TextSource.from_dict(params["data"])
    ScoringProtocol.from_dict(params["evaluate"])
    TimingPlan.from_dict(params["benchmark"])
    check_device(params["device"])
    found = variants(params)
    with atomic_folder(PLAN) as folder:
        for variant in found:
            libraries = pinned(REQUIREMENTS, variant.method.libraries)
            write_json(folder / "variants" / f"{variant.name}.json", variant.to_dict() | {"libraries": libraries})
        write_json(folder / "methods.json", sorted({variant.method.name for variant in found}))
        for name, libraries in (("compute", COMPUTE), ("report", REPORT)):
            write_json(folder / "libraries" / f"{name}.json", pinned(REQUIREMENTS, libraries))


run(main)
