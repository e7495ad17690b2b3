"""Builds a variant with another project's quantizer: a job for its environment, then its codes as an artifact of this project."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from quant.calibration.prepared import described, read_windows
from quant.files import write_json
from quant.methods import Tell
from quant.methods.peers.environment import run_worker
from quant.methods.peers.imported import as_asked, qtensor_of
from quant.methods.peers.spec import Spec
from quant.model.artifact import write_selected
from quant.model.checkpoint import Checkpoint
from quant.model.inventory import Inventory
from quant.model.selection import Part, Selected, select
from quant.outside import read_json
from quant.tensor.qtensor import QTensor

FLOATS = "floats:"  # before the names of weights that changed and are not quantized


def build(base: Path, prepared: Path, spec: Spec, out: Path, tell: Tell) -> None:
    """Write the variant of the model in `base` to the folder `out`. Raises InputError where the package is absent or fails."""
    checkpoint = Checkpoint(base)
    weights = select(checkpoint.inventory, spec.recipe)
    asked = [selected.weight.module for selected in weights if selected.is_quantized]
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        write_json(job / "job.json", _job(base, spec, asked) | {"distribution": spec.about.name})
        save_file({"tokens": read_windows(prepared).to(torch.int32)}, job / "windows.safetensors")
        run_worker(job, spec.package)
        found = read_json(job / "found.json")
        weights, differences = as_asked(weights, found["quantized"], found["tied"], checkpoint.inventory.is_tied)
        notes = found["notes"] + differences
        for note in notes:
            tell(f"{spec.package}: {note}")
        with safe_open(job / "found.safetensors", "pt") as tensors:
            held = set(tensors.keys())
            replaced = {name.removeprefix(FLOATS): tensors.get_tensor(name) for name in sorted(held) if name.startswith(FLOATS)}

            def taken_over(selected: Selected, part: Part, _: torch.Tensor) -> QTensor:
                name = selected.weight.module
                read = {key.rpartition(".")[2]: tensors.get_tensor(key) for key in
                        (f"{name}.codes", f"{name}.scales", f"{name}.weight")}
                zeros = tensors.get_tensor(f"{name}.zeros") if f"{name}.zeros" in held else None
                return qtensor_of(read["codes"], read["scales"], zeros, read["weight"], selected.shape_of(part), part.scheme)

            about = {"method": "peers", "runtime": "transformers", "scheme": spec.scheme.label,
                     "peer": _about(spec, found, notes, checkpoint.inventory)}
            if spec.about.is_calibrated:
                about["calibration"] = described(prepared)
            write_selected(checkpoint, weights, out, about, tell, taken_over, replaced)


def _job(base: Path, spec: Spec, asked: list[str]) -> dict:
    return {"base": str(Path(base).resolve()), "package": spec.package, "algorithm": spec.algorithm, "bits": spec.bits,
            "group_size": None if spec.group_size == "row" else spec.group_size, "symmetric": spec.symmetric,
            "iterations": spec.iterations, "seed": spec.seed, "threads": torch.get_num_threads(), "modules": asked}


def _about(spec: Spec, found: dict, notes: list[str], inventory: Inventory) -> dict:
    """The entry of the manifest: package, version, notes, and bits of a quantized weight as the package itself stores them."""
    counts = {weight.module: weight.count for weight in inventory.weights if not weight.is_bias}
    stored = sum(found["stored_bytes"].values())
    own = 8 * stored / max(1, sum(counts[name] for name in found["quantized"]))
    return {"package": spec.about.name, "version": found["version"], "algorithm": spec.algorithm, "notes": notes,
            "own_bits_per_weight": own}
