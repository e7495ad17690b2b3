"""What the rows share: the model as GGUF and, for rows that look at a text, its windows, moments and importance matrix."""

from __future__ import annotations

import shutil
from pathlib import Path

from quant.calibration.activity import mean_squares
from quant.calibration.outside import is_of_vocabulary
from quant.calibration.plan import CalibrationPlan
from quant.calibration.prepared import described, write_moments, write_windows
from quant.calibration.probe import as_table, part_costs
from quant.calibration.skeleton import Skeleton
from quant.errors import Refused
from quant.files import atomic_folder, write_json, write_manifest
from quant.gguf.imatrix import write_imatrix
from quant.gguf.tensors import Place, places
from quant.methods import Preparation
from quant.methods.llama_cpp.convert import convert
from quant.methods.llama_cpp.quantize import IMATRIX, LOOKED
from quant.model.checkpoint import Checkpoint
from quant.model.inventory import Inventory, Weight
from quant.model.selection import Part, Selected
from quant.outside import read_json
from quant.refusal import Refusal, write_refusal
from quant.tensor.ggml import scheme_of
from quant.tensor.scheme import K_TYPES, SUPERBLOCK

COSTS = "costs.json"
CANDIDATES = (*K_TYPES, "Q8_0")  # types between which a budget chooses
PLAIN_CANDIDATES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # the same for rows that are not whole superblocks


def prepare(given: Preparation, out: Path) -> None:
    """Write the converted model to out/model.gguf, and beside it what the rows want."""
    wanted = {key for want in given.wants for key in want}
    with atomic_folder(out) as folder:
        convert(given.base, folder / "converted")
        about = read_json(folder / "converted" / "manifest.json")
        (folder / "converted" / "model.gguf").rename(folder / "model.gguf")
        shutil.rmtree(folder / "converted")
        if wanted:
            try:
                _look_at_text(given, wanted, folder)
            except Refused as reason:  # rows that look at no text are made
                write_refusal(folder / LOOKED, Refusal("prepare", str(reason)))
        write_manifest(folder, {key: about[key] for key in ("method", "runtime", "type")})


def _look_at_text(given: Preparation, wanted: set[str], folder: Path) -> None:
    checkpoint, plan = Checkpoint(given.base), CalibrationPlan.from_dict(given.calibration)
    tokens = write_windows(checkpoint, given.evaluated, given.private, plan, given.data, given.evaluate, folder)
    found = places(folder / "model.gguf", checkpoint)
    names = {place.weight.name: name for name, place in found.items()}
    squares = mean_squares(given.base, checkpoint.inventory, tokens)
    source = described(folder)["source"]
    write_imatrix(folder / IMATRIX, {names[name]: values for name, values in squares.items()}, source, *tokens.shape)
    if "calibrated" in wanted:
        moments = write_moments(given.base, tokens, plan.seed, folder)
    if "budget" in wanted:
        skeleton = Skeleton(checkpoint)
        table: dict = {}
        for kinds in (CANDIDATES, PLAIN_CANDIDATES):
            weights = [selected_of(place, kinds[0]) for place in found.values()
                       if kinds_for(place.weight, checkpoint.inventory) == kinds]
            if weights:
                costs = part_costs(skeleton, weights, [scheme_of(kind) for kind in kinds], moments, tokens)
                table |= {name: {**row, "kinds": list(kinds)} for name, row in as_table(costs).items()}
        write_json(folder / COSTS, table)


def kinds_for(weight: Weight, inventory: Inventory) -> tuple[str, ...]:
    """The types between which a budget chooses: none for vectors, and for positions, which llama.cpp keeps in float."""
    if not (weight.is_block_matrix or is_of_vocabulary(weight, inventory)):
        return ()
    return PLAIN_CANDIDATES if weight.shape[1] % SUPERBLOCK else CANDIDATES


def selected_of(place: Place, kind: str) -> Selected:
    """A tensor's weight, to be quantized to a type of ggml."""
    weight = place.weight
    return Selected(weight, (Part(weight.roles, ((0, weight.shape[0]),), scheme_of(kind, "mse")),))
