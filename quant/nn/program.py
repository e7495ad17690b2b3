"""Builds a program of compiled loops (quant.compiled.threads) from the modules of a model, for one token of each sequence.

A job reads and writes vectors of float32, those of all sequences one after another: buffers of the program, or those that a name
stands for until the program runs. Every method appends a job, and raises Unfit where no loop can do what the module does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import nn

from quant.compiled import threads
from quant.kernels import attention, cpu, float_rows, frame, norm
from quant.model.architectures import Range
from quant.nn.modules import FusedLinear, QLinear, QNorm, QWeight

LINE = 16  # floats in a cache line of the processor
FLOAT_PART = 2**16  # weights of a float matrix in a part of a product
STRIP = 64  # outputs in a part, where the weights of an output do not lie together: four cache lines of each input's are read
Vector = int | str  # a buffer's offset in the program, in floats; or the name of an address that is known when it runs


class Unfit(Exception):
    """Raised for a module that no loop can run: a kind that is not known, or weights that are not float32 on the CPU."""


@dataclass(frozen=True)
class Piece:
    """Rows of a linear that are stored together: all of it, or a part of a FusedLinear. ranges: the linear's rows that it has, in
    its order."""

    weight: QWeight | nn.Module
    ranges: tuple[Range, ...]

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True)
class Heads:
    """Where the heads of queries, keys or values lie in a buffer, in floats: the first of the first sequence, and the steps."""

    first: int
    to_next_head: int
    to_next_sequence: int


class Program:
    """Jobs whose buffers and named addresses are filled in at each run; valid while `is_current`."""

    def __init__(self, builder: ProgramBuilder):
        self._template = numpy.frombuffer(threads.program_of(builder.jobs), numpy.int64).copy()
        self._size, self._names = builder.size, tuple(builder.places)
        self._buffer_places, offsets = (numpy.array(column) for column in zip(*builder.offsets, strict=True))
        self._template[self._buffer_places] = offsets  # to which a run adds the address of its buffers
        self._named_places = numpy.array([place for name in self._names for place in builder.places[name]])
        self._repeats = numpy.array([len(builder.places[name]) for name in self._names])
        self._held, self._versions, self._hooks = builder.held, builder.versions, builder.hooks

    def is_current(self) -> bool:
        """Whether no weight has changed since the program was made, and no module that it would skip has a hook."""
        return not any(self._hooks) and all(weight.version == version for weight, version in self._versions)

    def run(self, numbers: Mapping[str, int]) -> None:
        """Run all jobs. numbers: the addresses, and other numbers, that the names stand for."""
        buffers, program = torch.empty(self._size), self._template.copy()
        program[self._buffer_places] += buffers.data_ptr()
        program[self._named_places] = numpy.repeat(numpy.array([numbers[name] for name in self._names]), self._repeats)
        threads.perform(program)


class ProgramBuilder:
    """Collects jobs in order; `Program(builder)` runs them. count: of sequences.

    hooks: dictionaries of hooks that must stay empty. held: tensors whose addresses the jobs have. versions: weights, and their
    versions of now.
    """

    def __init__(self, count: int = 1):
        self.count = count
        self.size = 0  # floats of all buffers
        self.jobs: list[ctypes.Array] = []
        self.places: dict[str, list[int]] = {}  # name -> places of its number in the program
        self.offsets: list[tuple[int, int]] = []  # (place of a buffer's address in the program, its offset in bytes)
        self.held: list[torch.Tensor] = []
        self.versions: list[tuple[QWeight, int]] = []
        self.hooks: list[dict] = []

    def buffer(self, width: int) -> int:
        """Reserve a buffer of `width` floats for each sequence, on a cache line; returns its offset."""
        start, self.size = self.size, self.size + -(-self.count * width // LINE) * LINE
        return start

    def skip(self, modules: Sequence[nn.Module]) -> None:
        """Note that these modules will not be called, so that they may have no hooks."""
        self.hooks += [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]

    def norm(self, module: nn.Module, source: Vector, target: Vector, heads: int = 1) -> None:
        """Normalize a vector of each sequence, or of each of its heads; source and target may be the same."""
        kind = module.norm if isinstance(module, QNorm) else module
        weight = module.weight.dense() if isinstance(module, QNorm) else module.weight
        if isinstance(module, QNorm):
            self.versions.append((module.weight, module.weight.version))
        name = type(kind).__name__
        if weight is None or not (isinstance(kind, nn.LayerNorm) or name.endswith("RMSNorm")):
            raise Unfit
        if name.startswith("Gemma"):  # Gemma's weights are stored less one
            weight = 1 + weight.detach()
        job = threads.Job()
        job[threads.PARTS], job[threads.WORK], job[norm.WIDTH] = self.count, norm.NORMALIZE, weight.numel()
        job[norm.COUNT] = self.count * heads
        job[norm.CENTERED] = int(isinstance(kind, nn.LayerNorm))
        job[norm.EPSILON] = self._number(kind.variance_epsilon if hasattr(kind, "variance_epsilon") else kind.eps)
        job[norm.WEIGHT], job[norm.BIAS] = self._address(weight), self._address(getattr(module, "bias", None))
        self._add(job, {norm.X: source, norm.Y: target})

    def linear(self, module: nn.Module, piece: Piece, source: Vector, target: Vector, rows: range | None = None, then: int = 0,
               other: Vector | None = None) -> None:
        """Multiply with a piece of a linear, or some of its rows, and add the linear's bias. then, other: the epilogue and its
        vector (quant.kernels.frame)."""
        rows = rows or range(piece.rows)
        bias = self._address(_bias_of(module, piece, rows))
        if isinstance(piece.weight, QWeight):
            matmul = piece.weight.matmul()
            if not isinstance(matmul, cpu.Matmul):
                raise Unfit
            self.versions.append((piece.weight, piece.weight.version))
            job = matmul.job(self.count, bias, then, rows)
        else:
            job = self._float_job(piece.weight, bias, then, rows)
        self._add(job, {frame.X: source, frame.Y: target} | ({} if other is None else {frame.OTHER: other}))

    def attention(self, query: Heads, key: Heads, value: Heads, target: Vector, scaling: float, sizes: Mapping[int, int],
                  cache: Mapping[int, str]) -> None:
        """Attend to the cache, which gets the new keys and values. sizes: numbers of the job; cache: the names of the others."""
        job = threads.Job()
        job[threads.PARTS], job[threads.WORK] = self.count * sizes[attention.HEADS], attention.ATTEND_TO_CACHE
        job[attention.SCALING], job[attention.BATCH] = self._number(scaling), self.count
        job[attention.THREADS] = torch.get_num_threads()
        strides = {
            attention.QUERY_BATCH: query.to_next_sequence, attention.QUERY_HEAD: query.to_next_head,
            attention.NEW_KEY_BATCH: key.to_next_sequence, attention.NEW_KEY_HEAD: key.to_next_head,
            attention.NEW_VALUE_BATCH: value.to_next_sequence, attention.NEW_VALUE_HEAD: value.to_next_head,
        }
        for place, number in {**sizes, **strides}.items():
            job[place] = number
        self._add(job, {attention.QUERY: query.first, attention.NEW_KEY: key.first, attention.NEW_VALUE: value.first,
                        attention.OUT: target} | dict(cache))

    def _float_job(self, module: nn.Module, bias: int, then: int, rows: range) -> ctypes.Array:
        weight = module.weight
        is_transposed = type(module).__name__ == "Conv1D"
        if not is_transposed and type(module) is not nn.Linear:
            raise Unfit
        outputs, inputs = reversed(weight.shape) if is_transposed else weight.shape
        if is_transposed and len(rows) != outputs:
            raise Unfit
        job = threads.Job()
        job[frame.CODES] = self._address(weight) + (0 if is_transposed else 4 * rows.start * inputs)
        job[frame.ROWS], job[frame.COLUMNS], job[frame.BIAS], job[frame.THEN] = len(rows), inputs, bias, then
        job[frame.COUNT] = self.count
        height = max(1, min(STRIP if is_transposed else FLOAT_PART // inputs, cpu.height_of_part(len(rows))))
        job[frame.HEIGHT], job[threads.PARTS] = height, -(-len(rows) // height)
        job[threads.WORK] = float_rows.MULTIPLY_COLUMNS_OF_FLOATS if is_transposed else float_rows.MULTIPLY_ROWS_OF_FLOATS
        return job

    def _number(self, value: float) -> int:
        """The address of a float32 with this value."""
        return self._address(torch.tensor([value], dtype=torch.float32))

    def _address(self, tensor: torch.Tensor | None) -> int:
        """The address of a contiguous float32 tensor on the CPU; 0 for None. Raises Unfit for other tensors."""
        if tensor is None:
            return 0
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Unfit
        self.held.append(tensor)
        return tensor.data_ptr()

    def _add(self, job: ctypes.Array, filled: Mapping[int, Vector]) -> None:
        """Append a job. filled: place in the job -> a vector, or the name of a number."""
        self.jobs.append(job)
        start = threads.SIZE * len(self.jobs)  # the program's head comes first
        for place, source in filled.items():
            if isinstance(source, str):
                self.places.setdefault(source, []).append(start + place)
            else:
                self.offsets.append((start + place, 4 * source))


def pieces_of(module: nn.Module) -> list[Piece]:
    """The pieces of a linear, quantized or not. Raises Unfit for what is no linear."""
    if isinstance(module, FusedLinear):
        return [Piece(_weight_of(getattr(module, role)), module.ranges[role]) for role in module.roles]
    weight = _weight_of(module)
    rows = module.weight.shape[1] if type(module).__name__ == "Conv1D" else module.weight.shape[0]
    return [Piece(weight, ((0, rows),))]


def _weight_of(module: nn.Module) -> QWeight | nn.Module:
    """What a piece multiplies with; a weight in classes of rows is no piece."""
    if isinstance(module, QLinear):
        if not isinstance(module.weight, QWeight):
            raise Unfit
        return module.weight
    if not isinstance(getattr(module, "weight", None), torch.Tensor):
        raise Unfit
    return module


def _bias_of(module: nn.Module, piece: Piece, rows: range) -> torch.Tensor | None:
    """The bias of some rows of a piece."""
    bias = module.bias
    if bias is None:
        return None
    numbers = [row for start, stop in piece.ranges for row in range(start, stop)][rows.start : rows.stop]
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return bias.detach()[numbers[0] : numbers[0] + len(numbers)]
    return bias.detach()[numbers]
