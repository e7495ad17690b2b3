"""llama.cpp: its converter from a Hugging Face folder to GGUF, then its quantizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from quant.errors import Refused
from quant.methods import Look, Method, Preparation, Sizes, Tell
from quant.methods.llama_cpp.spec import Spec, properties


def _resolve(defaults: Mapping, row: Mapping) -> dict:
    return asdict(Spec.from_dict({**defaults, **row}))


def _prepare(given: Preparation, out: Path) -> None:
    from quant.methods.llama_cpp.prepare import prepare

    prepare(given, out)


def _build(base: Path, prepared: Path, values: Mapping, out: Path, tell: Tell) -> None:
    from quant.methods.llama_cpp.quantize import LOOKED, quantize
    from quant.refusal import require_made

    spec = Spec(**values)
    if _wants(values):
        require_made(prepared / LOOKED)
    if spec.calibrated:
        from quant.methods.llama_cpp.calibrated import build

        build(base, prepared, spec, out, tell)
    else:
        quantize(prepared / "model.gguf", spec, out)


def _sizes(inventory, folder: Path, values: Mapping) -> Sizes:
    from quant.methods.llama_cpp.sizes import sizes
    from quant.methods.llama_cpp.support import obstacle

    reason = obstacle(inventory, folder)
    if reason:
        raise Refused(reason)
    has_imatrix = values["imatrix"] or values["calibrated"]
    return sizes(inventory, values["type"], has_imatrix, values["budget"])


def _nominal_bits(values: Mapping) -> int | None:
    if values["type"] is None:
        return round(values["budget"])
    match = re.search(r"(?:Q|FP)(\d)", values["type"])  # Q4_K_M, IQ4_XS, TQ1_0, MXFP4; F16 and BF16 have none
    return int(match[1]) if match else None


def _wants(values: Mapping) -> dict:
    """What a row needs of the calibration text; nothing, for llama.cpp's own types without an importance matrix."""
    found = {"imatrix": values["imatrix"] or values["calibrated"], "calibrated": values["calibrated"],
             "budget": values["budget"] is not None}
    return {key: True for key, is_wanted in found.items() if is_wanted}


def _published_name(values: Mapping, model: str) -> str:
    words = [values.get("type") or f"{values['budget']}bit", *(key for key in ("imatrix", "calibrated") if values.get(key))]
    return f"{model}-{'-'.join(words)}.gguf"


METHOD = Method(
    label="llama.cpp",
    resolve=_resolve,
    build=_build,
    sizes=_sizes,
    properties=properties,
    nominal_bits=_nominal_bits,
    runtime="llama_cpp",
    prepare=_prepare,
    libraries=("gguf", "sentencepiece"),
    look=Look("#009E73", "D", ".."),
    published_name=_published_name,
    wants=_wants,
    hub_library="gguf",
)
