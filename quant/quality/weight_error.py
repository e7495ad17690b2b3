"""Rounding errors of a model's own weights, without any text: the numbers behind three figures and a worked example.

Errors are relative: root mean square of (dequantized - weight) over that of the weight, in per cent. Large weights are sampled,
in evenly spaced whole rows, so the cost does not grow with the model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from quant.model.architectures import GROUPS, ROLES
from quant.model.checkpoint import Checkpoint
from quant.model.inventory import Weight
from quant.tensor.codebooks import CODEBOOKS, LINEAR
from quant.tensor.packing import unpack
from quant.tensor.qtensor import dequantize, quantize
from quant.tensor.scheme import Scheme

MAP_SCHEME = Scheme(bits=4, group_size="row")  # fits every shape; one scale per row makes outliers visible
MAP_SAMPLE = 2**16  # numbers sampled of each weight for the map
SCHEMES_SAMPLE = 2**17  # numbers sampled of all weights together for the comparison of schemes
GROUP_SIZES = ("row", 128, 64, 32)
BINS = 80
FOUR_BITS = (LINEAR, *(name for name, book in CODEBOOKS.items() if book.bits == 4))  # grids that are compared at one width
SHOWN = 8  # weights of the worked example
LEAST_RANGE = 1e-30  # a group whose weights lie closer together than this has no example to show


@dataclass(frozen=True)
class Sample:
    """Rows of one weight, or of one role's part of a fused weight.

    values: float32 [rows, columns]. block: None outside the decoder blocks. weights: numbers in all rows.
    """

    module: str
    role: str
    block: int | None
    weights: int
    values: torch.Tensor


def compare_schemes(checkpoint: Checkpoint) -> dict:
    """The numbers of all figures about weights, and of the example, for JSON."""
    inventory = checkpoint.inventory
    in_blocks = {role for group in GROUPS.values() for role in group}
    weights = [weight for weight in inventory.weights if not weight.is_bias]
    matrices = [weight for weight in weights if in_blocks.issuperset(weight.roles)]
    most = max(1, SCHEMES_SAMPLE // max(1, sum(len(weight.roles) for weight in matrices)))
    middle = _middle(checkpoint, matrices)
    return {
        "map": error_map(samples(checkpoint, weights, MAP_SAMPLE)),
        "schemes": error_of_schemes(list(samples(checkpoint, matrices, most))),
        "histogram": histogram(middle),
        "example": example(middle),
    }


def samples(checkpoint: Checkpoint, weights: Iterable[Weight], most: int) -> Iterator[Sample]:
    """Sample at most about `most` numbers of each weight, or of each role's rows where a weight is fused."""
    for weight in weights:
        matrix = checkpoint.read(weight.tensor)
        matrix = (matrix.T if weight.transposed else matrix).reshape(weight.shape[0] if len(weight.shape) > 1 else 1, -1)
        for role, ranges in checkpoint.inventory.rows(weight).items():
            rows = torch.cat([torch.arange(start, stop) for start, stop in ranges])
            step = max(1, math.ceil(len(rows) * matrix.shape[1] / most))
            yield Sample(weight.name_of(role), role, weight.block, len(rows) * matrix.shape[1], matrix[rows[::step]].float())


def error_map(chosen: Iterable[Sample]) -> dict:
    """Error by block and role under MAP_SCHEME; weights of the same block and role are pooled."""
    squared_error: defaultdict[tuple, float] = defaultdict(float)
    squared: defaultdict[tuple, float] = defaultdict(float)
    sampled = weights = 0
    for sample in chosen:
        key = (sample.block, sample.role)
        squared_error[key] += _squares(sample.values - dequantize(quantize(sample.values, MAP_SCHEME)))
        squared[key] += _squares(sample.values)
        sampled += sample.values.numel()
        weights += sample.weights
    ordered = sorted(squared, key=lambda key: (key[0] is None, key[0] or 0, ROLES.index(key[1])))
    cells = [{"block": block, "role": role, "error_pct": _percent(squared_error[block, role], squared[block, role])}
             for block, role in ordered]
    roles = [role for role in ROLES if any(role == cell["role"] for cell in cells)]
    return {"scheme": MAP_SCHEME.label, "roles": roles, "cells": cells, "weights": weights, "sampled": sampled}


def error_of_schemes(chosen: Sequence[Sample]) -> dict:
    """Bits per weight, scales included, and error of every width, grid and group size on the same numbers.

    kind: plain, double (quantized scales) or clipped (least squared error).
    """
    widths = {sample.values.shape[1] for sample in chosen}
    rows = [torch.cat([s.values for s in chosen if s.values.shape[1] == width]) for width in sorted(widths)]  # scales are by row
    count, squared = sum(values.numel() for values in rows), sum(map(_squares, rows))
    schemes = [("plain", Scheme(bits=bits, group_size=size)) for size in GROUP_SIZES for bits in range(2, 9)]
    schemes += [("plain", Scheme(book.bits, size, codebook=name)) for size in GROUP_SIZES for name, book in CODEBOOKS.items()]
    schemes += [("double", Scheme(4, 64, codebook=name, double_quant=True)) for name in FOUR_BITS]
    schemes += [("clipped", Scheme(bits=bits, group_size=64, fit="mse")) for bits in range(2, 6)]
    points = []
    for kind, scheme in schemes:
        squared_error = stored = 0.0
        for values in rows:
            tensor = quantize(values, scheme)
            stored += sum(t.numel() * t.element_size() for t in tensor.tensors().values())
            squared_error += _squares(values - dequantize(tensor))
        points.append({
            "label": scheme.label, "kind": kind, "codebook": scheme.codebook, "bits": scheme.bits,
            "group_size": scheme.group_size, "bits_per_weight": round(8 * stored / count, 4),
            "error_pct": _percent(squared_error, squared),
        })
    return {"points": points, "weights": sum(sample.weights for sample in chosen), "sampled": count}


def histogram(sample: Sample) -> dict:
    """Histogram of one matrix, each group divided by its largest magnitude, and the values of the 4-bit grids.

    share_pct: share of the matrix per bin, or per value of a grid. entropy_bits: entropy of the latter, 4 at most.
    """
    size = _group_of(sample)
    groups = sample.values.reshape(-1, size)
    largest = groups.abs().amax(1, keepdim=True)
    groups = (groups / largest)[largest[:, 0] > 0]
    counts = torch.histc(groups, BINS, -1, 1)
    grids = {}
    for name in FOUR_BITS:
        scheme = Scheme(bits=4, group_size="row", codebook=name)
        ramp = torch.linspace(-1, 1, 2**14 + 1).reshape(1, -1)
        values = dequantize(quantize(ramp, scheme)).unique()
        nearest = torch.bucketize(dequantize(quantize(groups, scheme)), (values[1:] + values[:-1]) / 2)
        share = nearest.flatten().bincount(minlength=len(values)) / nearest.numel()
        grids[name] = {"values": [round(float(v), 6) + 0.0 for v in values],
                       "share_pct": [round(100 * float(s), 4) for s in share],
                       "entropy_bits": round(-float((share[share > 0] * share[share > 0].log2()).sum()), 4)}
    centred = sample.values - sample.values.mean()
    kurtosis = float((centred**4).mean() / (centred**2).mean() ** 2)
    return {"module": sample.module, "group_size": size, "sampled": sample.values.numel(),
            "share_pct": [round(100 * float(c) / groups.numel(), 5) for c in counts], "kurtosis": round(kurtosis, 3),
            "grids": grids}


def example(sample: Sample) -> dict | None:
    """One group of the first row, rounded to 4 bits with every grid: its first group whose weights differ; None if none do.

    Of the group: lowest, highest and the first SHOWN weights. Of each grid: scale, zero (the value of code 0; None where
    symmetric), codes and restored values of the shown weights; error_pct: of the whole group.
    """
    size = _group_of(sample)
    groups = sample.values[0].reshape(-1, size)
    found = [i for i, group in enumerate(groups) if float(group.max() - group.min()) > LEAST_RANGE]
    if not found:
        return None
    group = groups[found[0]].reshape(1, -1)
    grids = []
    for scheme in (Scheme(4, "row"), Scheme(4, "row", symmetric=False), *(Scheme(4, "row", codebook=n) for n in FOUR_BITS[1:])):
        tensor = quantize(group, scheme)
        restored = dequantize(tensor)
        codes = unpack(tensor.codes, scheme.bits, size)[:, :SHOWN]
        grids.append({
            "codebook": scheme.codebook, "symmetric": scheme.symmetric,
            "scale": float(tensor.scales.rows(slice(None))), "zero": None if tensor.zeros is None else float(tensor.zeros),
            "codes": codes[0].tolist(), "restored": restored[0, :SHOWN].tolist(),
            "error_pct": _percent(_squares(restored - group), _squares(group)),
        })
    return {"module": sample.module, "row": 0, "start": found[0] * size, "group_size": size, "lowest": float(group.min()),
            "highest": float(group.max()), "weights": group[0, :SHOWN].tolist(), "grids": grids}


def _group_of(sample: Sample) -> int:
    """Weights of a group: 64 where that divides the rows, else a whole row."""
    columns = sample.values.shape[1]
    return 64 if columns % 64 == 0 else columns


def _middle(checkpoint: Checkpoint, matrices: Sequence[Weight]) -> Sample:
    """Sample the up projection of the middle decoder block; every architecture has one."""
    ups = [weight for weight in matrices if "up" in weight.roles]
    chosen = samples(checkpoint, [ups[len(ups) // 2]], SCHEMES_SAMPLE)
    return next(sample for sample in chosen if sample.role == "up")


def _squares(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().sum())


def _percent(squared_error: float, squared: float) -> float:
    return round(100 * math.sqrt(squared_error / squared), 4) if squared else 0.0
