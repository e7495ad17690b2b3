"""Sensitivity: the divergence that results when one role, or one decoder block, alone is quantized and the rest stays in float.

The model is loaded once. Weights of a part are replaced by the numbers that their codes stand for, scored against the base's
predictions, and restored from the checkpoint, so no second copy of the model is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from quant.errors import InputError
from quant.files import significant
from quant.model.architectures import ROLES
from quant.model.checkpoint import Checkpoint
from quant.model.inventory import Inventory, Weight
from quant.model.recipe import Recipe
from quant.model.selection import Selected, select
from quant.progress import progress
from quant.quality.bootstrap import Blocks, mean_kld
from quant.quality.evaluate import open_model, predictions_of_base
from quant.quality.protocol import ScoringProtocol
from quant.quality.score import ModelPredictions, Scores, score, summarize
from quant.quality.sensitivity_plan import SensitivityPlan
from quant.quality.windows import tokenize
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme
from quant.text.corpus import Corpus

QUANTIZED_ALONE = tuple(role for role in ROLES if role not in ("norm", "other"))


@dataclass(frozen=True)
class Part:
    """A part of the model, and the recipe that quantizes it alone. kind: all, role or block."""

    kind: str
    name: str
    recipe: Recipe


def measure_sensitivity(base: Path, corpus: Corpus, protocol: ScoringProtocol, device: str, reference: Path,
                        plan: SensitivityPlan) -> dict:
    """Divergence of every part, for JSON. The first is all decoder blocks, with which the sum of the others can be compared.

    reference: the folder that `evaluate_base` wrote.
    """
    checkpoint, tokens = Checkpoint(base), tokenize(corpus, base, protocol)
    expected, model = predictions_of_base(base, tokens, protocol, device, reference), open_model(base, protocol, device)
    found = []
    for part in progress(parts(checkpoint.inventory, plan.scheme), "sensitivity"):
        weights = [selected for selected in select(checkpoint.inventory, part.recipe) if selected.is_quantized]
        with quantized(model.model, checkpoint, weights):
            scores = score(ModelPredictions(model), expected, tokens, protocol, plan.windows)
        found.append({"kind": part.kind, "name": part.name, "weights": sum(map(_count, weights)), **_distance(scores)})
    return {"scheme": plan.scheme.to_dict(), "tokens": len(scores), "parts": found}


def parts(inventory: Inventory, scheme: Scheme) -> list[Part]:
    """All decoder blocks together, each role that the model has, and each decoder block. A tied head is part of the embedding."""
    held = {role for weight in inventory.weights if not weight.is_bias for role in weight.roles}
    return [
        Part("all", "all", Recipe(scheme)),
        *(Part("role", role, Recipe(scheme, include=(role,))) for role in QUANTIZED_ALONE if role in held),
        *(Part("block", str(block), Recipe(scheme, blocks=(block,))) for block in sorted(inventory.blocks)),
    ]


@contextmanager
def quantized(model: torch.nn.Module, checkpoint: Checkpoint, weights: list[Selected]) -> Iterator[None]:
    """Replace these weights of a model opened from `checkpoint` by what their codes stand for, as long as the block runs."""
    try:
        for selected in weights:
            rows, values = _rows_of(model, selected.weight), _stored_rows(checkpoint, selected.weight)
            for part in selected.parts:
                if part.scheme:
                    index = selected.rows_of(part)
                    try:
                        rows[index] = dequantize(quantize(values[index], part.scheme)).to(rows)
                    except InputError as error:
                        raise InputError(f"{selected.name_of(part)}: {error}") from None
        yield
    finally:
        for selected in weights:
            _rows_of(model, selected.weight).copy_(_stored_rows(checkpoint, selected.weight))


def _rows_of(model: torch.nn.Module, weight: Weight) -> torch.Tensor:
    """The weight in the model, [out, in], to be written to; a tied head shares it."""
    parameter = model.get_parameter(weight.name).data
    return parameter.T if weight.transposed else parameter


def _stored_rows(checkpoint: Checkpoint, weight: Weight) -> torch.Tensor:
    """The weight in the checkpoint, [out, in], in the dtype it is stored in."""
    value = checkpoint.read(weight.tensor)
    return value.T if weight.transposed else value


def _count(selected: Selected) -> int:
    return sum(part.rows for part in selected.parts if part.scheme) * selected.weight.shape[1]


def _distance(scores: Scores) -> dict:
    kld = mean_kld(Blocks.cut(scores.places, scores.nll, scores.kld, scores.top1))
    return significant({"kld_mnats": kld.value, "interval": [kld.low, kld.high],
                        "ppl_change_pct": summarize(scores)["ppl_change_pct"]})
