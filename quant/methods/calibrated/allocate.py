"""Chooses a scheme for each part of the model under a row's budget, or takes the schemes of an allocation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import yaml

from quant.calibration.budget import Choice, allocate
from quant.calibration.vocabulary import VocabularyMoments
from quant.errors import Refused
from quant.methods.calibrated.prepare import chosen_weights, in_classes, read_costs
from quant.methods.calibrated.spec import Spec, changed
from quant.model.inventory import Inventory
from quant.model.selection import Selected, with_classes


@dataclass(frozen=True)
class Allocation:
    """weights: with the scheme of each part. changes: of the row's scheme, by part. predicted: divergence in mnat, None where the
    allocation was given. costs: predicted divergence of each part, by name."""

    weights: list[Selected]
    changes: Mapping[str, Mapping]
    predicted: float | None
    costs: Mapping[str, float]

    def to_dict(self) -> dict:
        """For the manifest."""
        return {"predicted_kld_mnats": self.predicted, "parts": [
            {"name": selected.name_of(part), "roles": list(selected.weight.roles), "block": selected.weight.block,
             "weights": part.rows * (selected.weight.shape[1] if len(selected.weight.shape) > 1 else 1),
             "bits": part.scheme.bits, "scheme": part.scheme.label, "predicted_kld_mnats": self.costs.get(selected.name_of(part))}
            for selected in self.weights for part in selected.parts if part.scheme]}

    def text(self) -> str:
        """The choice as a file that can be edited and given to a row as `allocation`."""
        head = ("# Changes of the row's scheme for each part. Edit a copy, and set `allocation` in a row of params.yaml to its "
                "path.\n")
        return head + yaml.safe_dump({"predicted_kld_mnats": self.predicted,
                                      "parts": {name: dict(values) for name, values in self.changes.items()}}, sort_keys=False)


def allocation_of(spec: Spec, want: Mapping, inventory: Inventory, prepared: Path,
                  moments: VocabularyMoments | None) -> Allocation:
    """The schemes of all parts. Raises InputError for a budget that is too small, and for parts that the model does not have."""
    table = None if spec.allocation is not None else read_costs(prepared, want)  # first: without it nothing is prepared
    whole = chosen_weights(inventory, want)
    divided = in_classes(whole, inventory, moments, spec.classes)
    names = [selected.name_of(part) for selected in divided for part in selected.parts if part.scheme]
    if table is None:
        _check_names(spec.allocation, names)
        changes, predicted, costs = {name: spec.allocation[name] for name in names}, None, {}
    else:
        budget = spec.bits_allowed(inventory.parameters) - _fixed_bits(inventory, divided)
        choices = {name: [Choice(str(i), bits, cost) for i, (bits, cost) in enumerate(zip(row.bits, row.costs, strict=True))]
                   for name, row in table.items()}
        chosen = allocate(choices, budget)
        changes = {name: spec.candidates[int(chosen[name].name)] for name in names}
        costs = {name: chosen[name].cost for name in names}
        predicted = sum(costs.values())
    schemes = {name: changed(spec.recipe.scheme, values) for name, values in changes.items()}
    return Allocation([_with_schemes(before, after, schemes) for before, after in zip(whole, divided, strict=True)],
                      changes, predicted, costs)


def _with_schemes(whole: Selected, divided: Selected, schemes: Mapping) -> Selected:
    chosen = [schemes[divided.name_of(part)] if part.scheme else None for part in divided.parts]
    if divided.classes is not None:
        return with_classes(whole, divided.class_numbers, chosen)
    return replace(divided, parts=tuple(replace(part, scheme=scheme) for part, scheme in zip(divided.parts, chosen, strict=True)))


def _fixed_bits(inventory: Inventory, weights: list[Selected]) -> int:
    """Bits of what the budget does not choose: weights, and parts of them, that stay as they are, and the classes of rows."""
    chosen = {selected.weight.name for selected in weights}
    stays = sum(8 * weight.stored.bytes for weight in inventory.weights if weight.name not in chosen)
    stays += sum(8 * selected.weight.stored.dtype.itemsize * math.prod(selected.shape_of(part))
                 for selected in weights for part in selected.parts if part.scheme is None)
    return stays + sum(8 * selected.weight.shape[0] for selected in weights if selected.classes is not None)


def _check_names(given: Mapping, names: list[str]) -> None:
    for name in given:
        if name not in names:
            similar = ", ".join(get_close_matches(name, names)) or ", ".join(names[:3])
            raise Refused(f"allocation names {name}, which this row does not quantize; expected parts such as {similar}")
    missing = [name for name in names if name not in given]
    if missing:
        raise Refused(f"allocation lacks {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}; expected every "
                      "part that the row quantizes, or exclude them")
