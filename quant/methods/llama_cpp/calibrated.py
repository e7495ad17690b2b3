"""A GGUF file with this project's calibrated codes: llama.cpp's own file of the type, with the data of its tensors replaced.

So metadata, tokenizer and the type of every tensor are llama.cpp's, and the file has the same bytes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from quant.calibration.budget import Choice, allocate
from quant.calibration.distill import distill
from quant.calibration.outside import quantize_outside
from quant.calibration.prepared import described, read_moments, read_windows
from quant.calibration.saved import Saved, fingerprint
from quant.calibration.sequential import Settings, calibrate
from quant.calibration.skeleton import Skeleton
from quant.calibration.solver import Solver
from quant.errors import Refused
from quant.files import atomic_folder, write_manifest
from quant.gguf.imatrix import read_imatrix
from quant.gguf.quantizer import run_quantizer
from quant.gguf.tensors import Place, overwrite, places, types_of
from quant.methods import Tell
from quant.methods.llama_cpp.prepare import COSTS, selected_of
from quant.methods.llama_cpp.quantize import BUDGET_TYPE, IMATRIX
from quant.methods.llama_cpp.spec import Spec
from quant.model.checkpoint import Checkpoint
from quant.model.selection import Selected
from quant.outside import read_json
from quant.tensor.ggml_blocks import to_bytes
from quant.tensor.scheme import GGML_TYPES, K_TYPES

FLOATS = ("F32", "F16", "BF16")


def build(base: Path, prepared: Path, spec: Spec, out: Path, tell: Tell) -> None:
    """Write the variant of the model in `base` to out/model.gguf. A run that was killed goes on at the block it was in."""
    checkpoint, found = Checkpoint(base), places(prepared / "model.gguf", Checkpoint(base))
    kinds, predicted = _budget_kinds(spec, prepared, found) if spec.budget else (None, None)
    with atomic_folder(out) as folder:
        path = folder / "model.gguf"
        run_quantizer(prepared / "model.gguf", path, spec.type or BUDGET_TYPE, read_imatrix(prepared / IMATRIX), kinds)
        weights = _selected(types_of(path), found)
        work = out.with_name(f".{out.name}.calibrating")
        saved = Saved(work, fingerprint(base, prepared, asdict(spec)))
        solver, tokens = Solver(), read_windows(prepared)
        quantize_outside(checkpoint, list(weights.values()), read_moments(prepared), solver, saved)
        skeleton = Skeleton(checkpoint)
        calibrate(skeleton, list(weights.values()), tokens, Settings(solver), saved)
        distilled = distill(skeleton, list(weights.values()), saved, tokens, spec.distill)
        if spec.distill:
            tell(str(distilled))
        overwrite(path, _data(found, weights, saved, distilled))
        about = {"calibration": described(prepared), "predicted_kld_mnats": predicted}
        write_manifest(folder, {"method": "llama_cpp", "runtime": "llama_cpp", "type": spec.type or "mixed", "calibrated": True,
                                **{key: value for key, value in about.items() if value is not None}})
    shutil.rmtree(work)
    counts = Counter(kind for kind in types_of(out / "model.gguf").values() if kind not in FLOATS)
    tell("calibrated codes in llama.cpp's types: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))


def _selected(types: Mapping[str, str], found: Mapping[str, Place]) -> dict[str, Selected]:
    """The weights to quantize, by the name of their tensor. Raises InputError for a type that is not a grid of this project."""
    weights = {}
    for name, kind in types.items():
        if kind in FLOATS:
            continue
        if kind not in GGML_TYPES | K_TYPES:
            raise Refused(f"{name} is {kind} in this file type, whose codes this project does not choose; expected "
                          f"{', '.join(GGML_TYPES | K_TYPES)}: choose another type, or leave calibrated out")
        weights[name] = selected_of(found[name], kind)
    return weights


def _data(found: Mapping[str, Place], weights: Mapping[str, Selected], saved: Saved, distilled) -> dict[str, torch.Tensor]:
    """New data of tensors: blocks of codes, and biases and norms that have changed."""
    floats = saved.floats() | distilled.floats
    data = {}
    for name, place in found.items():
        if name in weights:
            selected = weights[name]
            (part,) = selected.parts
            data[name] = place.arranged(to_bytes(distilled.apply(selected, part, saved.read(selected, part))))
        elif place.weight.name in floats:
            data[name] = place.arranged(floats[place.weight.name])
    return data


def _budget_kinds(spec: Spec, prepared: Path, found: Mapping[str, Place]) -> tuple[dict[str, str], float]:
    """A type for each tensor within the budget, and the divergence that is predicted, in mnat."""
    table = read_json(prepared / COSTS)
    tensor_of = {place.weight.module: name for name, place in found.items() if not place.weight.is_bias}
    total = sum(place.weight.count for place in found.values())
    fixed = sum(32 * place.weight.count for place in found.values()
                if place.weight.is_bias or place.weight.module not in table)  # vectors and positions, in float32
    choices = {name: [Choice(kind, bits, cost) for kind, bits, cost in zip(row["kinds"], row["bits"], row["costs"], strict=True)]
               for name, row in table.items()}
    chosen = allocate(choices, spec.budget * total - fixed)
    return {tensor_of[name]: choice.name for name, choice in chosen.items()}, sum(choice.cost for choice in chosen.values())
