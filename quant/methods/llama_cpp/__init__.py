"""llama.cpp: its converter from a Hugging Face folder to GGUF, then its quantizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from quant.errors import InputError
from quant.methods import Look, Method, Preparation, Sizes, Tell


def _resolve(defaults: Mapping, row: Mapping) -> dict:
    from quant.methods.llama_cpp.quantize import Spec

    return asdict(Spec.from_dict({**defaults, **row}))


def _prepare(given: Preparation, out: Path) -> None:
    from quant.methods.llama_cpp.convert import convert

    convert(given.base, out)


def _build(base: Path, prepared: Path, values: Mapping, out: Path, tell: Tell) -> None:
    from quant.methods.llama_cpp.quantize import Spec, quantize

    quantize(prepared / "model.gguf", Spec(**values), out)


def _sizes(inventory, folder: Path, values: Mapping) -> Sizes:
    from quant.methods.llama_cpp.sizes import sizes
    from quant.methods.llama_cpp.support import obstacle

    reason = obstacle(inventory, folder)
    if reason:
        raise InputError(reason)
    return sizes(inventory, values["type"])


def _nominal_bits(values: Mapping) -> int | None:
    match = re.search(r"(?:Q|FP)(\d)", values["type"])  # Q4_K_M, IQ4_XS, TQ1_0, MXFP4; F16 and BF16 have none
    return int(match[1]) if match else None


METHOD = Method(
    label="llama.cpp",
    resolve=_resolve,
    build=_build,
    sizes=_sizes,
    nominal_bits=_nominal_bits,
    runtime="llama_cpp",
    prepare=_prepare,
    libraries=("gguf", "sentencepiece"),
    look=Look("#009E73", "D", ".."),
    published_name=lambda values, model: f"{model}-{values['type']}.gguf",
    hub_library="gguf",
)
