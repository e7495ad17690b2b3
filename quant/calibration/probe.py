"""What each part of a model costs at each width: the divergence of the part quantized alone, measured once, and an estimate for
the other widths from its rounding error.

Every part has a stream of hidden states of its own, which leaves the float model's where the part is, and goes on through the
float blocks. So each block is loaded once, whatever the number of parts. The estimate for another width is the measured
divergence times the ratio of the errors tr(dW H dW^T): divergence is quadratic in small errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div, log_softmax

from quant.calibration.hooks import linear_inputs, matrix_of
from quant.calibration.moments import Moments
from quant.calibration.outside import is_of_vocabulary
from quant.calibration.skeleton import Skeleton, run_block
from quant.calibration.solver import Curvature, Solver
from quant.calibration.vocabulary import VocabularyMoments
from quant.model.selection import Part, RowClass, Selected
from quant.progress import progress
from quant.tensor.qtensor import dequantize, layout
from quant.tensor.scheme import Scheme

PROBE_WINDOWS = 24
PROBE_BITS = 3.0  # the candidate of the nearest size is the one whose divergence is measured
BITS_MEASURED = 5.0  # larger candidates are too good to be worth rounding: a bit more divides the error by 4
QUICK = Solver(refits=0, sweeps=0)


@dataclass(frozen=True)
class PartCost:
    """weights: number of them. measured: index of the candidate whose divergence was measured. bits, costs: stored bits and
    predicted divergence in mnat of each candidate."""

    weights: int
    measured: int
    bits: tuple[int, ...]
    costs: tuple[float, ...]


def part_costs(skeleton: Skeleton, weights: Sequence[Selected], candidates: Sequence[Scheme], moments: VocabularyMoments | None,
               tokens: torch.Tensor) -> dict[str, PartCost]:
    """The cost of every part of the chosen weights, by its name (Selected.name_of). tokens: windows of the calibration text."""
    probe = tokens[:: max(1, len(tokens) // PROBE_WINDOWS)][:PROBE_WINDOWS]
    return _Probe(skeleton, weights, candidates, moments, tokens, probe).run()


class _Probe:
    def __init__(self, skeleton, weights, candidates, moments, tokens, probe):
        self.skeleton, self.candidates, self.moments = skeleton, list(candidates), moments
        self.weights = [selected for selected in weights if selected.is_quantized]
        self.tokens, self.probe = tokens, probe
        self.arguments, self.probe_arguments = skeleton.arguments(tokens), skeleton.arguments(probe)
        self.outside: dict[str, dict[str, torch.Tensor]] = {}  # parts outside the blocks: the weight to use instead
        self.errors: dict[str, list[float]] = {}
        self.found: dict[str, tuple[int, int, tuple[int, ...]]] = {}

    @torch.no_grad()
    def run(self) -> dict[str, PartCost]:
        hidden, base = self.skeleton.embed(self.tokens), self.skeleton.embed(self.probe)
        streams = self._outside()
        for number in progress(range(self.skeleton.count), "sensitivity"):
            hidden, base = self._through(number, hidden, base, streams)
        divergence = {name: self._divergence(base, stream, self.outside.get(name)) for name, stream in streams.items()}
        costs = {}
        for name, (count, measured, bits) in self.found.items():
            errors = self.errors[name]
            scale = divergence[name] / errors[measured] if errors[measured] else 0.0
            costs[name] = PartCost(count, measured, bits, tuple(scale * error for error in errors))
        return costs

    def _outside(self) -> dict[str, torch.Tensor]:
        """Streams of the parts outside the blocks."""
        streams = {}
        for selected in self.weights:
            weight = selected.weight
            if weight.block is not None:
                continue
            stored = self.skeleton.checkpoint.read(weight.tensor).float()
            second, rows = None, None
            if is_of_vocabulary(weight, self.skeleton.inventory):
                second, rows = self.moments.of(weight)
            curvature = Curvature(torch.eye(weight.shape[-1], dtype=torch.float64) if second is None else second)
            for part in _quantized(selected):
                index = selected.index_of(part)
                name, value = selected.name_of(part), stored.clone()
                value[index] = self._candidates(name, stored[index], curvature, None if rows is None else rows[index])
                self.outside[name] = {weight.name: value}
                streams[name] = self.skeleton.embed(self.probe, self.outside[name])
        return streams

    def _through(self, number: int, hidden: torch.Tensor, base: torch.Tensor, streams: dict[str, torch.Tensor]):
        """Take all streams through a block, and begin those of its parts."""
        skeleton, block = self.skeleton, self.skeleton.block(number)
        prefix = f"{skeleton.inventory.architecture.blocks}.{number}."
        chosen = {s.weight.module.removeprefix(prefix): s for s in self.weights if s.weight.block == number}
        arguments, probe_arguments = self.arguments[number], self.probe_arguments[number]
        for name, stream in streams.items():
            streams[name] = run_block(block, stream, probe_arguments)
        inputs = linear_inputs(block, [n for n, s in chosen.items() if len(s.weight.shape) == 2], hidden, arguments)
        curvatures: dict[int, Curvature] = {}
        for module, selected in chosen.items():
            matrix = matrix_of(block, module, selected.weight)
            if len(selected.weight.shape) == 2:
                given = inputs[module]
                if id(given) not in curvatures:
                    curvatures[id(given)] = Curvature(_second(given))
                curvature = curvatures[id(given)]
            else:
                curvature = Curvature(torch.eye(matrix.shape[-1], dtype=torch.float64))
            for part in _quantized(selected):
                index, name = selected.index_of(part), selected.name_of(part)
                with _instead(matrix, index, self._candidates(name, matrix[index], curvature, None)):
                    streams[name] = run_block(block, base, probe_arguments)
        return run_block(block, hidden, arguments), run_block(block, base, probe_arguments)

    def _candidates(self, name: str, rows: torch.Tensor, curvature: Curvature,
                    importance: torch.Tensor | None) -> torch.Tensor:
        """Note size and error of each candidate for a part; returns its rows, a matrix or a vector, as the measured candidate
        stores them."""
        shape, rows = rows.shape, torch.atleast_2d(rows)
        bits = tuple(_stored_bits(tuple(rows.shape), scheme) for scheme in self.candidates)
        per_weight = [count / rows.numel() for count in bits]
        measured = min(range(len(bits)), key=lambda i: abs(per_weight[i] - PROBE_BITS))
        weighting = torch.ones(len(rows), dtype=torch.float64) if importance is None else importance
        errors, values = [math.nan] * len(bits), None
        for i, scheme in enumerate(self.candidates):
            if per_weight[i] > BITS_MEASURED and i != measured:
                continue
            stored = dequantize(QUICK.solve(rows, curvature, scheme))
            change = stored.double() - rows.double()
            errors[i] = float((weighting * ((change @ curvature.second) * change).sum(-1)).sum())
            if i == measured:
                values = stored
        finest = max((i for i in range(len(bits)) if not math.isnan(errors[i])), key=lambda i: per_weight[i])
        errors = [errors[finest] * 4.0 ** (per_weight[finest] - per_weight[i]) if math.isnan(error) else error
                  for i, error in enumerate(errors)]
        self.errors[name], self.found[name] = errors, (rows.numel(), measured, bits)
        return values.view(shape)

    def _divergence(self, base: torch.Tensor, stream: torch.Tensor, weights: Mapping[str, torch.Tensor] | None) -> float:
        """Mean divergence of a stream's predictions from the base's, in mnat a token. weights: of the stream, where they differ
        from the model's."""
        total = 0.0
        for base_states, states in zip(base.split(1), stream.split(1), strict=True):  # one window at a time: logits are large
            expected = log_softmax(self.skeleton.logits(base_states), -1)
            found = log_softmax(self.skeleton.logits(states, weights), -1)
            total += float(kl_div(found, expected, reduction="none", log_target=True).sum(-1).sum(dtype=torch.float64))
        return max(0.0, 1000 * total / self.probe.numel())


def _second(given: torch.Tensor) -> torch.Tensor:
    moments = Moments.empty(given.shape[-1])
    for rows in given.flatten(0, -2).split(2**13):
        moments.add(rows)
    return moments.hessian(is_centred=False)


def _quantized(selected: Selected) -> list[Part | RowClass]:
    return [part for part in selected.parts if part.scheme]


def _stored_bits(shape: tuple[int, ...], scheme: Scheme) -> int:
    return 8 * sum(dtype.itemsize * math.prod(size) for dtype, size in layout(shape, scheme).values())


@contextmanager
def _instead(matrix: torch.Tensor, index: slice | torch.Tensor, values: torch.Tensor) -> Iterator[None]:
    before = matrix.clone()
    matrix[index] = values
    try:
        yield
    finally:
        matrix.copy_(before)


def as_table(costs: Mapping[str, PartCost]) -> dict:
    """For JSON; the inverse of `from_table`."""
    return {name: {"weights": cost.weights, "measured": cost.measured, "bits": list(cost.bits), "costs": list(cost.costs)}
            for name, cost in costs.items()}


def from_table(table: Mapping) -> dict[str, PartCost]:
    return {name: PartCost(row["weights"], row["measured"], tuple(row["bits"]), tuple(row["costs"]))
            for name, row in table.items()}
