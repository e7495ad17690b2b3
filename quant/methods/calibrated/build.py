"""Builds a calibrated variant: the weights outside the blocks, the blocks in order, then the artifact."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from quant.calibration.distill import Distilled, distill
from quant.calibration.outside import quantize_outside
from quant.calibration.prepared import described, read_moments, read_windows
from quant.calibration.saved import Saved, fingerprint
from quant.calibration.sequential import Settings, calibrate
from quant.calibration.skeleton import Skeleton
from quant.calibration.solver import Solver
from quant.methods import Tell
from quant.methods.calibrated.allocate import Allocation, allocation_of
from quant.methods.calibrated.spec import Spec, wants
from quant.model.artifact import write_selected
from quant.model.checkpoint import Checkpoint
from quant.model.selection import select


def build(base: Path, prepared: Path, spec: Spec, out: Path, tell: Tell) -> None:
    """Write the variant of the model in `base` to the folder `out`. A run that was killed goes on at the block it was in."""
    checkpoint, moments, tokens = Checkpoint(base), read_moments(prepared), read_windows(prepared)
    inventory, allocation = checkpoint.inventory, None
    if spec.is_mixed:
        allocation = allocation_of(spec, wants(spec.to_dict()), inventory, prepared, moments)
        tell(f"budget: predicted divergence {allocation.predicted:.3f} mnat" if allocation.predicted is not None else
             "allocation: taken as given")
    weights = allocation.weights if allocation else select(inventory, spec.recipe)
    work = out.with_name(f".{out.name}.calibrating")
    saved = Saved(work, fingerprint(base, prepared, spec.to_dict()))
    if saved.blocks:
        tell(f"going on after block {saved.blocks - 1}, which an earlier run finished")
    solver = Solver(spec.rounding, spec.importance, refits=spec.refits, sweeps=spec.sweeps)
    quantize_outside(checkpoint, weights, moments, solver, saved)
    skeleton = Skeleton(checkpoint)
    is_corrected = spec.targets == "corrected"  # without it, biases that make up for the mean error do more harm than good
    calibrate(skeleton, weights, tokens, Settings(solver, spec.targets, is_corrected, spec.equalize), saved)
    distilled = distill(skeleton, weights, saved, tokens, spec.distill)
    if spec.distill:
        tell(str(distilled))
    write_selected(checkpoint, weights, out, _about(spec, allocation, prepared, saved, distilled), tell,
                   lambda selected, part, _: distilled.apply(selected, part, saved.read(selected, part)),
                   saved.floats() | distilled.floats, {"allocation.yaml": allocation.text()} if allocation else {})
    shutil.rmtree(work)


def _about(spec: Spec, allocation: Allocation | None, prepared: Path, saved: Saved, distilled: Distilled) -> Mapping:
    """Entries of the manifest."""
    text = described(prepared)
    about = {"method": "calibrated", "runtime": "transformers", "calibration": text, "example": saved.example}
    if spec.distill:
        about["distilled"] = distilled.to_dict()
    if allocation is None:
        return about | {"scheme": spec.recipe.scheme.label}
    widths = [part.scheme.bits for selected in allocation.weights for part in selected.parts if part.scheme]
    return about | {"scheme": f"{min(widths)} to {max(widths)} bits", "allocation": allocation.to_dict()}
