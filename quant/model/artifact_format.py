"""The `quantization_config` of an artifact: the scheme and the rows of every part of every quantized module.

    {"quant_method": "qtensor", "schemes": [...], "modules": {module: {part: {"scheme": index or null, "ranges": rows}}}}

A module has one part, or several if it is a fused matrix whose roles are stored separately. A part with a scheme is stored as
the tensors of quant.tensor.qtensor.layout, a part without one as a plain weight.
"""

from __future__ import annotations

from collections.abc import Mapping

from quant.model.selection import Selected

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
            parts[part.name] = {"scheme": scheme, "ranges": [list(r) for r in part.ranges]}
        modules[selected.weight.module] = parts
    return {"quant_method": METHOD, "schemes": schemes, "modules": modules}
