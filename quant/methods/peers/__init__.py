"""Other projects' quantizers: hqq, torchao, optimum-quanto, llm-compressor, auto-round and GPTQModel, each in a child process of
an environment of their own. Their codes become artifacts of this project, so all are scored and run by the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from quant.errors import Refused
from quant.methods import Look, Method, Preparation, Sizes, Tell
from quant.methods.peers.spec import Spec, properties


def _prepare(given: Preparation, out: Path) -> None:
    from quant.calibration.plan import CalibrationPlan
    from quant.calibration.prepared import described, write_windows
    from quant.files import atomic_folder, write_manifest
    from quant.model.checkpoint import Checkpoint

    plan = CalibrationPlan.from_dict(given.calibration)
    with atomic_folder(out) as folder:
        write_windows(Checkpoint(given.base), given.evaluated, given.private, plan, given.data, given.evaluate, folder)
        write_manifest(folder, {"method": "peers", "text": described(folder)["source"]})


def _build(base: Path, prepared: Path, values: Mapping, out: Path, tell: Tell) -> None:
    from quant.methods.peers.build import build

    build(base, prepared, Spec(**values), out, tell)


def _here(values: Mapping) -> dict:
    from quant.methods.peers.environment import missing

    return {"missing": missing(values["package"])}


def _sizes(inventory, folder: Path, values: Mapping) -> Sizes:
    from quant.methods.peers.environment import missing
    from quant.model.artifact import artifact_layout
    from quant.model.needs import held_bytes
    from quant.model.selection import select

    reason = missing(values["package"])
    if reason:
        raise Refused(reason)
    weights = select(inventory, Spec(**values).recipe)
    layout = artifact_layout(inventory, weights)
    matrices = sum(weight.count for weight in inventory.weights if weight.is_block_matrix)
    memory = 8 * inventory.parameters + 9 * matrices  # float32 twice, and the codes with the weights they restore
    return Sizes(sum(info.bytes for info in layout.values()), held_bytes(layout, weights), memory,
                 "as asked; the package may choose other groups", 4 * 2**15)


METHOD = Method(
    label="other quantizers",
    resolve=lambda defaults, row: asdict(Spec.from_dict({**defaults, **row})),
    build=_build,
    sizes=_sizes,
    properties=properties,
    nominal_bits=lambda values: values["bits"],
    prepare=_prepare,
    recipe=lambda values: Spec(**values).recipe,
    here=_here,
    libraries=("numba", "llvmlite"),
    look=Look("#882255", "p", "oo"),
    needs_code=True,
)
