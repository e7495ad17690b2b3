"""What calibrated variants share: the windows of the calibration text, the moments of the vocabulary, and what each part of the
model costs at each width."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch

from quant.calibration.outside import is_of_vocabulary, rows_in_classes
from quant.calibration.plan import CalibrationPlan
from quant.calibration.prepared import described, write_moments, write_windows
from quant.calibration.probe import PartCost, as_table, from_table, part_costs
from quant.calibration.skeleton import Skeleton
from quant.calibration.vocabulary import VocabularyMoments
from quant.errors import InputError, Refused
from quant.files import atomic_folder, write_json, write_manifest
from quant.methods import Preparation
from quant.model.checkpoint import Checkpoint
from quant.model.inventory import Inventory
from quant.model.recipe import Recipe
from quant.model.selection import Selected, select, with_classes
from quant.outside import read_json
from quant.tensor.scheme import Scheme


def prepare(given: Preparation, out: Path) -> None:
    """Write what the rows want to the folder `out`, but windows of a text that may not be shared to the private folder."""
    plan, checkpoint = CalibrationPlan.from_dict(given.calibration), Checkpoint(given.base)
    with atomic_folder(out) as folder:
        tokens = write_windows(checkpoint, given.evaluated, given.private, plan, given.data, given.evaluate, folder)
        _prepare_costs(checkpoint, given.wants, tokens, plan.seed, folder)
        write_manifest(folder, {"method": "calibrated", "text": described(folder)["source"]})


def _prepare_costs(checkpoint: Checkpoint, wants: Sequence[Mapping], tokens: torch.Tensor, seed: int, folder: Path) -> None:
    inventory = checkpoint.inventory
    chosen = {}
    for want in wants:
        with suppress(Refused):  # the row's own stage says why, and the others are made
            chosen[key_of(want)] = (want, chosen_weights(inventory, want))
    moments = None
    if any(is_of_vocabulary(selected.weight, inventory) for _, weights in chosen.values() for selected in weights):
        moments = write_moments(checkpoint.folder, tokens, seed, folder)
    skeleton = None
    for key, (want, weights) in chosen.items():
        if want["candidates"]:
            skeleton = skeleton or Skeleton(checkpoint)
            candidates = [Scheme.from_dict(values) for values in want["candidates"]]
            divided = in_classes(weights, inventory, moments, want["classes"])
            write_json(folder / f"costs-{key}.json", as_table(part_costs(skeleton, divided, candidates, moments, tokens)))


def chosen_weights(inventory: Inventory, want: Mapping) -> list[Selected]:
    """The weights that a row quantizes. Their scheme is a placeholder: the first candidate."""
    scheme = Scheme.from_dict(want["candidates"][0]) if want["candidates"] else Scheme()
    blocks = None if want["blocks"] is None else tuple(want["blocks"])
    recipe = Recipe(scheme, tuple(want["include"]), tuple(want["exclude"]), blocks)
    return [selected for selected in select(inventory, recipe) if selected.is_quantized]


def in_classes(weights: list[Selected], inventory: Inventory, moments: VocabularyMoments | None, count: int) -> list[Selected]:
    """The weights, with the rows of the embedding and the head in classes of importance. Raises InputError without moments."""
    needed = [selected.weight.module for selected in weights if is_of_vocabulary(selected.weight, inventory)]
    if count > 1 and needed and moments is None:
        raise InputError(f"the rows of {needed[0]} are divided by importance, which is not yet measured; run dvc repro prepare")
    return [
        selected if count == 1 or not is_of_vocabulary(selected.weight, inventory) else with_classes(
            selected, rows_in_classes(moments.of(selected.weight)[1], count), [selected.parts[0].scheme] * count)
        for selected in weights
    ]


def key_of(want: Mapping) -> str:
    """A short name for what a row wants."""
    return sha256(json.dumps(want, sort_keys=True).encode()).hexdigest()[:12]


def read_costs(prepared: Path, want: Mapping) -> dict[str, PartCost]:
    """What each part costs at each of a row's candidates."""
    path = prepared / f"costs-{key_of(want)}.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: it holds what each part of the model costs at each width, from which those "
                         "of a budget are chosen; run dvc repro prepare to measure it")
    return from_table(read_json(path))
