"""The calibrated pass: decoder blocks are quantized in order, each on the inputs that the quantized blocks before it give.

Two streams of hidden states go through the model: that of the model as it is, and that of the quantized one. In each block,
layers that read the same input are quantized together, in the order in which they run, and their moments
(quant.calibration.moments) are taken from both streams. Only one block is in memory. Results and hidden states are written after
each block, so that a run which was killed goes on at the block it was in. On a cluster the windows are divided by batches, and
what batches give is added in their order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from quant.calibration.batches import products_at_end, products_within, run_watched
from quant.calibration.equalize import column_factors, fold
from quant.calibration.hooks import matrix_of, norm_before, outputs_of, silent
from quant.calibration.memory import keep_freed_memory
from quant.calibration.moments import Moments
from quant.calibration.saved import Saved
from quant.calibration.skeleton import Skeleton, run_block
from quant.calibration.solver import Curvature, Solver
from quant.cluster.pieces import in_turn
from quant.model.selection import Part, Selected
from quant.progress import progress
from quant.tensor.products import FastProducts
from quant.tensor.qtensor import QTensor, dequantize, quantize

EXAMPLE_COLUMNS = 32
BATCH_TOKENS = 8192
ADDED_AT_START, ADDED_AT_END = "o", "down"  # roles whose output is added to the residual stream: within a block, at its end
TOLERANCE = 1e-3  # relative to the largest hidden state; sums in another order differ by about 1e-6


@dataclass(frozen=True)
class Settings:
    """solver: see Solver. targets: "corrected" aims at the float model's outputs on the quantized model's inputs, "original" at
    the weights as they are. biases: whether biases make up for the mean error. equalize: see quant.calibration.equalize."""

    solver: Solver
    targets: str = "corrected"
    biases: bool = True
    equalize: bool = False


@dataclass(frozen=True)
class Layers:
    """Linear layers of a block that read the same input. names: of the modules within the block. added: role of a layer whose
    output is added to the residual stream, else None."""

    names: tuple[str, ...]
    added: str | None


def calibrate(skeleton: Skeleton, weights: list[Selected], tokens: torch.Tensor, settings: Settings, saved: Saved) -> None:
    """Quantize every chosen matrix of the decoder blocks; the results go to `saved`, which may hold those of an earlier run.

    tokens: int64 [windows, length]. Weights outside the blocks, which `saved` holds already, act on the quantized stream.
    """
    keep_freed_memory()
    chosen = {selected.weight.module: selected for selected in weights if selected.is_quantized}
    streams = saved.streams
    if streams is None:
        outside = saved.dequantized([s for s in chosen.values() if s.weight.block is None])
        batches = tokens.split(_windows(tokens))
        streams = (torch.cat([skeleton.embed(batch) for batch in batches]),
                   torch.cat([skeleton.embed(batch, outside) for batch in batches]))
    done = saved.blocks
    for number in progress(range(done, skeleton.count), "calibrate"):
        streams = _Block(skeleton, number, chosen, tokens, settings, saved).quantize(*streams)
        saved.finish_block(number, streams)


class _Block:
    """One decoder block: its float copy, its quantized copy, and the layers to quantize."""

    def __init__(self, skeleton: Skeleton, number: int, chosen: Mapping[str, Selected], tokens: torch.Tensor, settings: Settings,
                 saved: Saved):
        self.settings, self.saved = settings, saved
        # The last layer, once its moments are taken: name, inputs, and what the quantized block gives without it
        self._end: tuple[str, torch.Tensor, torch.Tensor] | None = None
        self.floats = skeleton.block(number)
        self.quantized = copy.deepcopy(self.floats)
        self.prefix = f"{skeleton.inventory.architecture.blocks}.{number}."
        self.chosen = {name.removeprefix(self.prefix): selected for name, selected in chosen.items()
                       if selected.weight.block == number}
        self.weights = skeleton.weights_of(number)
        self.biases = {weight.module.removeprefix(self.prefix): weight for weight in self.weights if weight.is_bias}
        size = _windows(tokens)
        self.batches = [slice(start, min(start + size, len(tokens))) for start in range(0, len(tokens), size)]
        shapes = {len(tokens[batch]): tokens[batch] for batch in (*self.batches, slice(1))}
        self._arguments = {count: skeleton.arguments(some)[number] for count, some in shapes.items()}

    @torch.no_grad()
    def quantize(self, floats: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize the block. Takes and returns the hidden states of both streams, float32 [windows, length, width]."""
        for name, selected in self.chosen.items():  # vectors, such as a norm's weight, have no inputs to calibrate on
            if len(selected.weight.shape) == 1:
                self._replace(name, selected, {part: quantize(rows, part.scheme) for part, rows in self._parts(name, selected)})
        inputs, floats_after = self._run_floats(floats)
        for layers in inputs:
            floats_in = inputs[layers]
            if floats_in is None:
                moments = self._moments_at_end(layers.names[0], floats_after, quantized)
            else:
                if self.settings.equalize:
                    self._equalize(layers, floats_in, floats[self.batches[0]])
                moments = self._moments(layers, floats_in, floats, quantized)
            curvatures: dict[bool, Curvature] = {}
            for name in layers.names:
                self._solve(name, moments, curvatures)
        return floats_after, self._run_quantized(quantized)

    @FastProducts()
    def _run_quantized(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states that leave the quantized block. Only the last layer is run where its inputs are known."""
        after = torch.empty_like(hidden)
        for batch in self.batches:
            if self._end is None:
                after[batch] = run_block(self.quantized, hidden[batch], self._arguments_of(batch))
            else:
                name, inputs, without = self._end
                given = inputs[batch]
                after[batch] = without[batch] + self.quantized.get_submodule(name)(given).view_as(without[batch])
        return after

    def _equalize(self, layers: Layers, inputs: torch.Tensor, hidden: torch.Tensor) -> None:
        """Scale the inputs of layers whose input is a norm's output that no other layer reads; `inputs` is scaled with them.

        Nothing is scaled where the norm, or a part of a layer, would not be stored as scaled here.
        """
        if any(part.scheme is None for layer in layers.names for part in self.chosen[layer].parts):
            return
        norm = norm_before(self.floats, layers.names, hidden, self._arguments[len(hidden)])
        if norm is None or norm[0] in self.chosen:
            return
        name, sample = norm
        second = Moments.empty(inputs.shape[-1])
        second.add(inputs.flatten(0, -2))
        parts = [(rows, part.scheme) for layer in layers.names for part, rows in self._parts(layer, self.chosen[layer])]
        factors = column_factors(parts, second.hessian(is_centred=False))
        if factors is None or not all(fold(block.get_submodule(name), factors, lambda module: module(sample))
                                      for block in (self.floats, self.quantized)):
            return
        inputs /= factors
        for layer in layers.names:
            for block in (self.floats, self.quantized):
                matrix_of(block, layer, self.chosen[layer].weight).mul_(factors)
        for weight in self.weights:
            if weight.module.removeprefix(self.prefix) == name:
                parameter = self.quantized.get_parameter(weight.name.removeprefix(self.prefix))
                parameter.copy_(parameter.to(weight.stored.dtype))
                self.saved.put_float(weight.name, parameter.to(weight.stored.dtype))

    def _solve(self, name: str, moments: Moments, curvatures: dict[bool, Curvature]) -> None:
        """Quantize one layer. curvatures: of the layer's inputs, about 0 and about their mean, shared with layers beside it."""
        selected, settings, bias = self.chosen[name], self.settings, self.biases.get(name)
        is_centred = settings.biases and bias is not None
        if is_centred not in curvatures:
            curvatures[is_centred] = Curvature(moments.hessian(is_centred))
        weight = matrix_of(self.floats, name, selected.weight)
        target = moments.corrected(weight, is_centred) if settings.targets == "corrected" else weight
        found = {part: settings.solver.solve(rows, curvatures[is_centred], part.scheme)
                 for part, rows in self._parts(name, selected, target)}
        self._replace(name, selected, found)
        self._note_example(name, selected, weight, curvatures[is_centred])
        if is_centred:
            change = moments.bias_change(weight, matrix_of(self.quantized, name, selected.weight))
            parameter = self.quantized.get_parameter(f"{name}.bias")
            stored = (parameter.double() + change).to(bias.stored.dtype)
            parameter.copy_(stored)
            self.saved.put_float(bias.name, stored)

    def _note_example(self, name: str, selected: Selected, weight: torch.Tensor, curvature: Curvature) -> None:
        """Keep the first group of a row, rounded to nearest and as solved, and what both cost; of the first layer only."""
        scheme = next(part.scheme for part in selected.parts if part.scheme)
        if self.saved.example is not None or len(selected.parts) > 1:
            return
        nearest = dequantize(replace(self.settings.solver, rounding="nearest").solve(weight, curvature, scheme))
        solved = matrix_of(self.quantized, name, selected.weight)
        count = min(EXAMPLE_COLUMNS, weight.shape[1])
        whole = float(((weight.double() @ curvature.second) * weight.double()).sum())
        errors = {key: (values.double() - weight.double()) for key, values in (("nearest", nearest), ("feedback", solved))}
        self.saved.put_example({
            "module": selected.weight.module, "row": 0, "scheme": scheme.label, "weights": weight[0, :count].tolist(),
            "nearest": nearest[0, :count].tolist(), "feedback": solved[0, :count].tolist(),
            "weight_error_pct": {key: 100 * float(error.square().sum() / weight.double().square().sum()) ** 0.5
                                 for key, error in errors.items()},
            "output_error_pct": {key: 100 * (float(((error @ curvature.second) * error).sum()) / whole) ** 0.5
                                 for key, error in errors.items()},
        })

    def _run_floats(self, hidden: torch.Tensor) -> tuple[dict[Layers, torch.Tensor | None], torch.Tensor]:
        """Run the float block: the inputs of the layers to quantize, in the order in which they run, without those of the last
        where its output is added to the residual stream; and the hidden states that leave the block."""
        names = [name for name, selected in self.chosen.items() if len(selected.weight.shape) == 2]
        after = torch.empty_like(hidden)
        layers = self._trace(names, hidden[:1])
        inputs: dict[Layers, torch.Tensor | None] = dict.fromkeys(layers)
        wanted = [group for group in layers if group.added != ADDED_AT_END]
        work = partial(run_watched, self.floats, [group.names[0] for group in wanted])
        for batch, (left, seen) in self._of_batches(work, hidden):
            after[batch] = left
            for group, value in zip(wanted, seen, strict=True):
                if inputs[group] is None:
                    inputs[group] = self.saved.scratch(f"inputs-{group.names[0]}", (*hidden.shape[:-1], value.shape[-1]))
                inputs[group][batch] = value.view_as(inputs[group][batch])  # OPT joins windows and tokens
        return inputs, after

    def _moments(self, layers: Layers, floats_in: torch.Tensor, floats: torch.Tensor, quantized: torch.Tensor) -> Moments:
        """Of layers within the block. floats_in: their inputs in the float block; floats, quantized: the block's inputs."""
        first, is_added = layers.names[0], layers.added == ADDED_AT_START
        moments = Moments.empty(floats_in.shape[-1], quantized.shape[-1] if is_added else None)
        weight = matrix_of(self.floats, first, self.chosen[first].weight) if is_added else None
        work = partial(products_within, self.quantized, first, weight)
        for _, products in self._of_batches(work, floats_in, *([floats] if is_added else []), quantized):
            moments.join(products)
        return moments

    def _moments_at_end(self, name: str, floats_after: torch.Tensor, quantized: torch.Tensor) -> Moments:
        """Of the last layer, whose output is added to the residual stream. floats_after: the output of the float block."""
        moments = None
        work = partial(products_at_end, self.quantized, name)
        for batch, (given, without, products) in self._of_batches(work, floats_after, quantized):
            if moments is None:
                moments = Moments.empty(given.shape[-1], without.shape[-1])
                inputs = self.saved.scratch("end", (*quantized.shape[:-1], given.shape[-1]))
                self._end = name, inputs, torch.empty_like(quantized)
            self._end[1][batch], self._end[2][batch] = given, without
            moments.join(products)
        return moments

    def _of_batches(self, work: Callable, *states: torch.Tensor) -> Iterator[tuple[slice, Any]]:
        """(batch, work((*states of the batch, arguments))) of every batch, in their order, whichever machines compute it."""
        pieces = ((*(values[batch].clone() for values in states), self._arguments_of(batch)) for batch in self.batches)
        return zip(self.batches, in_turn(work, pieces), strict=True)

    def _trace(self, names: list[str], hidden: torch.Tensor) -> list[Layers]:
        """The layers to quantize, by input, in the order in which they run."""
        if not names:
            return []
        order: list[tuple[str, torch.Tensor]] = []
        hooks = [self.floats.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: order.append((name, given[0]))) for name in names]
        arguments = self._arguments[len(hidden)]
        try:
            whole = run_block(self.floats, hidden, arguments)
        finally:
            for hook in hooks:
                hook.remove()
        groups: list[tuple[torch.Tensor, list[str]]] = []
        for name, given in order:
            if groups and groups[-1][0] is given:
                groups[-1][1].append(name)
            else:
                groups.append((given, [name]))
        is_added = self._is_added([name for name, _ in order], hidden, arguments, whole)
        return [Layers(tuple(found), self._role(found[0]) if is_added and len(found) == 1 else None) for _, found in groups]

    def _role(self, name: str) -> str | None:
        role = self.chosen[name].weight.roles[0]
        return role if role in (ADDED_AT_START, ADDED_AT_END) else None

    def _is_added(self, names: list[str], hidden: torch.Tensor, arguments: dict, whole: torch.Tensor) -> bool:
        """Whether the block adds its last layer's output to the residual stream as it is, without a norm after it."""
        last = next((name for name in names if self._role(name) == ADDED_AT_END), None)
        if last is None:
            return not self._has_norm_after()
        with outputs_of(self.floats, [last]) as outputs:
            run_block(self.floats, hidden, arguments)
        with silent(self.floats, last):
            without = run_block(self.floats, hidden, arguments)
        error = (without + outputs[last].view_as(without) - whole).abs().max()
        return bool(error <= TOLERANCE * whole.abs().max())

    def _has_norm_after(self) -> bool:
        return any(name.startswith("post_feedforward") for name, _ in self.floats.named_modules())

    def _parts(self, name: str, selected: Selected, matrix: torch.Tensor | None = None) -> Iterator[tuple[Part, torch.Tensor]]:
        """The quantized parts of a weight, with their rows of `matrix`, by default of the weight itself."""
        matrix = matrix_of(self.floats, name, selected.weight) if matrix is None else matrix
        return ((part, matrix[selected.index_of(part)]) for part in selected.parts if part.scheme)

    def _replace(self, name: str, selected: Selected, found: Mapping[Part, QTensor]) -> None:
        """Write quantized parts to the quantized block, and save them."""
        matrix = matrix_of(self.quantized, name, selected.weight)
        for part, tensor in found.items():
            matrix[selected.index_of(part)] = dequantize(tensor)
            self.saved.put(selected, part, tensor)

    def _arguments_of(self, batch: slice) -> dict:
        return self._arguments[batch.stop - batch.start]


def _windows(tokens: torch.Tensor) -> int:
    """Windows that are run together."""
    return max(1, BATCH_TOKENS // tokens.shape[1])
