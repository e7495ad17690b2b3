"""No quantization: the base as it is, or cast to another floating-point type when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quant.config import check_choice, one_of
from quant.errors import InputError
from quant.methods import Look, Method, Sizes, Tell

BYTES = {"float32": 4, "bfloat16": 2}


def _resolve(defaults: Mapping, row: Mapping) -> dict:
    values = {"dtype": "float32", **defaults, **row}
    if set(values) != {"dtype"}:
        raise InputError(f"unknown key {', '.join(sorted(set(values) - {'dtype'}))}; known: dtype")
    check_choice("dtype", values["dtype"], tuple(BYTES))
    return values


def _build(base: Path, prepared: Path, values: Mapping, out: Path, tell: Tell) -> None:
    """Write a manifest that names the base and the dtype to open it with; no weight is copied."""
    from quant.files import atomic_folder, write_manifest

    with atomic_folder(out) as folder:
        write_manifest(folder, {"method": "float", "runtime": METHOD.runtime, "opened_as": values["dtype"],
                                "weights": base.name})


def _sizes(inventory, folder: Path, values: Mapping) -> Sizes:
    return Sizes(inventory.stored_bytes, BYTES[values["dtype"]] * inventory.parameters, build_bytes=0)


METHOD = Method(
    label="not quantized",
    resolve=_resolve,
    build=_build,
    sizes=_sizes,
    properties=lambda: {"dtype": one_of(list(BYTES))},
    nominal_bits=lambda _: None,
    look=Look("#333333", "s"),
)
