"""The `quantization_config` of an artifact: the scheme and the rows of every part of every quantized module.

    {"quant_method": "qtensor", "schemes": [...], "modules": {module: {part: {"scheme": index or null, "ranges": rows}}}}

A module has one part, or several if it is a fused matrix whose roles are stored separately. A part with a scheme is stored as
the tensors of quant.tensor.qtensor.layout, a part without one as a plain weight.

The parts of a matrix in classes of rows are class0, class1, ... with {"scheme": index or null, "rows": their number}; which rows
these are stands in the tensor `<module>.weight.classes`, uint8 [rows], the class of each row. The rows of a class are stored in
ascending order as `<module>.weight.class0.codes` and so on, or as `<module>.weight.class0` if they have no scheme.
"""

from __future__ import annotations

from collections.abc import Mapping

from quant.errors import InputError
from quant.model.selection import RowClass, Selected
from quant.outside import is_count, shown
from quant.tensor.scheme import Scheme

METHOD = "qtensor"
MOST_SCHEMES, MOST_PARTS, MOST_ROWS = 4096, 300, 2**31
AGAIN = "quantize the model again"


def check_quantization(schemes, modules) -> list[Scheme]:
    """The schemes of an artifact's config, after its form is checked, before any module is made by it.

    Raises InputError for anything that `quantization_config` does not write.
    """
    if not isinstance(schemes, list) or len(schemes) > MOST_SCHEMES or not all(isinstance(one, dict) for one in schemes):
        raise InputError(f"quantization_config has the schemes {shown(schemes)}; expected a list of at most "
                         f"{MOST_SCHEMES}; {AGAIN}")
    if not isinstance(modules, dict):
        raise InputError(f"quantization_config has the modules {shown(modules)}; expected parts by module; {AGAIN}")
    found = [Scheme.from_dict(values) for values in schemes]
    for name, parts in modules.items():
        if not isinstance(parts, dict) or not 1 <= len(parts) <= MOST_PARTS:
            raise InputError(f"quantization_config: {shown(name)} has the parts {shown(parts)}; expected 1 to "
                             f"{MOST_PARTS}; {AGAIN}")
        for part in parts.values():
            _check_part(name, part, len(found))
    return found


def _check_part(name: str, part, schemes: int) -> None:
    keys = part.keys() if isinstance(part, dict) else set()
    scheme = part["scheme"] if "scheme" in keys else -1
    if keys not in ({"scheme", "ranges"}, {"scheme", "rows"}) or not (
            scheme is None or (is_count(scheme) and scheme < schemes)):
        raise InputError(f"quantization_config: {shown(name)} has the part {shown(part)}; expected one of {schemes} schemes, or "
                         f"null, and its ranges of rows; {AGAIN}")
    ranges = part.get("ranges", [[0, part.get("rows")]])
    ordered = isinstance(ranges, list) and ranges and all(
        isinstance(one, list) and len(one) == 2 and all(is_count(n) and n < MOST_ROWS for n in one) and one[0] < one[1]
        for one in ranges)
    if not ordered:
        raise InputError(f"quantization_config: {shown(name)} has the rows {shown(ranges)}; expected ranges [start, stop) of at "
                         f"most {MOST_ROWS:,}; {AGAIN}")


def quantization_config(weights: list[Selected]) -> dict:
    """The `quantization_config` entry of the artifact's config.json; each scheme is listed once."""
    schemes: list[dict] = []
    modules: dict[str, Mapping] = {}
    for selected in weights:
        if not selected.is_quantized:
            continue
        parts = {}
        for part in selected.parts:
            if part.scheme and part.scheme.to_dict() not in schemes:
                schemes.append(part.scheme.to_dict())
            scheme = schemes.index(part.scheme.to_dict()) if part.scheme else None
            rows = {"rows": part.rows} if isinstance(part, RowClass) else {"ranges": [list(r) for r in part.ranges]}
            parts[part.name] = {"scheme": scheme, **rows}
        modules[selected.weight.module] = parts
    return {"quant_method": METHOD, "schemes": schemes, "modules": modules}
