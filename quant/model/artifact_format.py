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

from quant.model.selection import RowClass, Selected

METHOD = "qtensor"


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
