"""Check every parameter, and write each variant's method, parameters with all defaults, and versions of its libraries.

A variant's stages depend on its file in data/plan/variants. So a changed default, such as quant.bits, reruns only the variants
that inherit it, and a changed library version reruns only the stages that use the library.
"""

from quant.family import family_recipes
from quant.files import atomic_folder, write_json
from quant.pins import COMPUTE, REPORT, pinned
from quant.pipeline import PLAN, REQUIREMENTS, parameters, run
from quant.preflight.sections import require_valid
from quant.variants import Variant, variants


def main() -> None:
    params = parameters()
    require_valid(params)
    found = variants(params)
    with atomic_folder(PLAN) as folder:
        for variant in found:
            libraries = pinned(REQUIREMENTS, variant.method.libraries)
            write_json(folder / "variants" / f"{variant.name}.json", variant.to_dict() | {"libraries": libraries})
        relatives = [{"variant": name, "recipe": recipe.to_dict()} for name, recipe in family_recipes(params).items()]
        write_json(folder / "family.json", relatives)
        write_json(folder / "methods.json", _wants(found))
        for name, libraries in (("compute", COMPUTE), ("report", REPORT)):
            write_json(folder / "libraries" / f"{name}.json", pinned(REQUIREMENTS, libraries))


def _wants(found: list[Variant]) -> dict[str, list]:
    """What the stage `prepare` makes for each method: see Method.wants."""
    wants: dict[str, list] = {variant.method.name: [] for variant in found}
    for variant in found:
        want = variant.method.wants(variant.values)
        if want and want not in wants[variant.method.name]:
            wants[variant.method.name].append(want)
    return wants


run(main)
