"""Distillation: what stays in float beside the codes learns from the original model, at no bits.

Each row of a quantized matrix gets a factor, which is folded into the row's stored scales and real zeros afterwards. Biases and
the weights and biases of norms are trained with them. Codes stay as they are. The loss is the divergence of the quantized
model's predictions from the original's over the whole vocabulary, on windows of the calibration text. A part of the windows is
held out, and decides how much of what was learned is taken: where the divergence there, of the model as it would be stored,
does not fall, nothing.

The original's predictions come from the hidden states that calibration kept, so that its blocks are not needed. The quantized
model is held as a whole in float32, twice during a step: this is for models that fit the memory so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import kl_div, log_softmax

from quant.calibration.saved import Saved
from quant.calibration.skeleton import Skeleton
from quant.model.inventory import Weight
from quant.model.selection import Part, RowClass, Selected
from quant.progress import progress
from quant.tensor.groups import Groups, has_row_scales, times_rows
from quant.tensor.qtensor import QTensor, dequantize, matrix_shape

RATE = 5e-3  # of learning, relative to what is learned: a step changes a row by about this part of it
WARM_UP = 0.1  # of the steps
BETAS = (0.9, 0.99)
BATCH = 8  # windows a step
HELD_OUT = 8  # one window of so many is not trained on
BATCH_LOGITS = 2**23  # computed at a time
UNIT_WINDOWS = 4
SHARES = (1.0, 0.5, 0.25, 0.125)  # of what was learned: the one that does best on the held-out windows is taken


@dataclass(frozen=True)
class Distilled:
    """groups: new scales and zeros of quantized parts, by the name of the part's tensor (Selected.tensor_of). floats: new values
    of biases and norms by name, in the dtype of the checkpoint. Both are empty where the values from before are kept.
    before, after: held-out divergence in mnat a token without and with what was learned; NaN where nothing was trained.
    share: how much of it is taken, or did the least harm.
    left_out: names of parts whose rows share what is stored of their scales, and which so have no factors.
    """

    groups: Mapping[str, Groups] = field(default_factory=dict)
    floats: Mapping[str, torch.Tensor] = field(default_factory=dict)
    before: float = math.nan
    after: float = math.nan
    share: float = 0.0
    left_out: tuple[str, ...] = ()

    @property
    def is_better(self) -> bool:
        """Whether the trained values are used."""
        return self.after < self.before

    def __str__(self) -> str:
        """A line for the log."""
        if math.isnan(self.before):
            result = "nothing to train, or fewer than two windows of the calibration text"
        else:
            kept = "" if self.is_better else "; the values before are kept"
            result = f"held-out divergence {self.before:.3f} mnat before, {self.after:.3f} after{kept}"
        shared = f"; no factors for {', '.join(self.left_out)}, whose rows share their scales" if self.left_out else ""
        return f"distillation: {result}{shared}"

    def to_dict(self) -> dict:
        """For the manifest."""
        pairs = (("before", self.before), ("after", self.after))
        return {"held_out_kld_mnats": {key: value if math.isfinite(value) else None for key, value in pairs},
                "is_used": self.is_better, "share": self.share, "left_out": list(self.left_out)}

    def apply(self, selected: Selected, part: Part | RowClass, tensor: QTensor) -> QTensor:
        """A quantized part with its new scales and zeros, and the same codes."""
        groups = self.groups.get(selected.tensor_of(part))
        return tensor if groups is None else replace(tensor, scales=groups.scales, zeros=groups.zeros)


def distill(skeleton: Skeleton, weights: list[Selected], saved: Saved, tokens: torch.Tensor, steps: int,
            seed: int = 0) -> Distilled:
    """Train factors of rows, biases and norms for so many steps, on what a finished pass over the windows left in `saved`.

    tokens: the windows of that pass, int64 [windows, length]. seed: of the windows that are held out, and of the others' order.
    The result depends on these, the number of threads and the machine.
    """
    if steps == 0:
        return Distilled()
    student = _Student(skeleton, weights, saved)
    if len(tokens) < 2 or not student.parameters:
        return Distilled(left_out=student.left_out)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    count = max(1, len(tokens) // HELD_OUT)
    task = _Task(skeleton, tokens, saved.streams[0])
    held_out, training = order[:count].sort().values, order[count:]
    student.measure_units(tokens[training[:UNIT_WINDOWS]])
    before = task.divergence(student.stored(), held_out)
    _train(student, task, training, steps, seed)
    found = {share: task.divergence(student.stored(*student.folded(share)), held_out) for share in SHARES}
    share = min(SHARES, key=lambda share: (not found[share] < math.inf, found[share]))  # NaN last
    groups, floats = student.folded(share) if found[share] < before else ({}, {})
    return Distilled(groups, floats, 1000 * before, 1000 * found[share], share, student.left_out)


def _train(student: _Student, task: _Task, windows: torch.Tensor, steps: int, seed: int) -> None:
    optimizer = torch.optim.AdamW(student.parameters, lr=RATE, betas=BETAS, weight_decay=0.0)
    warm = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (1 + math.cos(math.pi * step / steps)) / 2))
    losses: list[float] = []
    batches = _batches(windows, seed)
    for _ in progress(range(steps), "distill", note=lambda: f"{1000 * sum(losses[-10:]) / len(losses[-10:]):.2f} mnat"):
        optimizer.zero_grad()
        losses.append(task.backward(student, next(batches)))
        optimizer.step()
        schedule.step()


def _batches(windows: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """Batches of windows without end, every window once before any comes again."""
    generator, left = torch.Generator().manual_seed(seed), windows[:0]
    size = min(BATCH, len(windows))
    while True:
        while len(left) < size:
            left = torch.cat([left, windows[torch.randperm(len(windows), generator=generator)]])
        yield left[:size]
        left = left[size:]


class _Task:
    """The windows, and the original model's hidden states after its last block."""

    def __init__(self, skeleton: Skeleton, tokens: torch.Tensor, hidden: torch.Tensor):
        self.skeleton, self.tokens, self.hidden = skeleton, tokens, hidden
        vocabulary = skeleton.model.get_output_embeddings().weight.shape[0]
        self.at_once = max(1, min(BATCH, BATCH_LOGITS // (tokens.shape[1] * vocabulary)))

    @torch.no_grad()
    def divergence(self, values: Mapping[str, torch.Tensor], windows: torch.Tensor) -> float:
        """Of a model of these weights from the original, in nat a token."""
        return sum(float(self._sum(values, some)) for some in windows.split(self.at_once)) / self.tokens[windows].numel()

    def backward(self, student: _Student, windows: torch.Tensor) -> float:
        """Add the gradients of the divergence in nat a token, and return it."""
        total = 0.0
        for some in windows.split(self.at_once):
            with torch.enable_grad():
                loss = self._sum(student.values(), some) / self.tokens[windows].numel()
                loss.backward()
            total += float(loss.detach())
        return total

    def _sum(self, values: Mapping[str, torch.Tensor], windows: torch.Tensor) -> torch.Tensor:
        expected = log_softmax(self.skeleton.logits(self.hidden[windows]), -1)
        output = functional_call(self.skeleton.model, values, (self.tokens[windows],), {"use_cache": False})
        found = log_softmax(output.logits, -1)
        return kl_div(found, expected, reduction="sum", log_target=True)


class _Student:
    """All weights of the quantized model, of which factors of rows, biases and norms are learned."""

    def __init__(self, skeleton: Skeleton, weights: list[Selected], saved: Saved):
        self.skeleton, self.saved = skeleton, saved
        checkpoint, floats = skeleton.checkpoint, saved.floats()
        chosen = {selected.weight.name: selected for selected in weights if selected.is_quantized}
        self.rows: list[_Rows] = []
        self.vectors: list[_Vector] = []
        self.fixed: dict[str, torch.Tensor] = {}
        for weight in skeleton.inventory.weights:
            stored = floats[weight.name] if weight.name in floats else checkpoint.read(weight.tensor)
            if weight.name in chosen:
                self.rows.append(_Rows(chosen[weight.name], stored.float(), saved))
            elif len(weight.shape) == 1:
                self.vectors.append(_Vector(weight, stored.float()))
            else:
                self.fixed[weight.name] = stored.float()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [rows.logs for rows in self.rows if rows.free.any()] + [vector.change for vector in self.vectors]

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(rows.selected.name_of(part) for rows in self.rows for part in rows.selected.parts
                     if part.scheme and not has_row_scales(part.scheme))

    def values(self) -> dict[str, torch.Tensor]:
        """Every weight of the model by name, as the factors and changes make it."""
        return self.fixed | {learned.name: learned.value() for learned in (*self.rows, *self.vectors)}

    def folded(self, share: float) -> tuple[dict[str, Groups], dict[str, torch.Tensor]]:
        """What is stored of a share of the factors and changes."""
        groups = {selected.tensor_of(part): times_rows(self.saved.read(selected, part).groups, rows.factors_of(part, share))
                  for rows in self.rows for selected in (rows.selected,) for part in selected.parts
                  if part.scheme and has_row_scales(part.scheme)}
        return groups, {vector.name: vector.value(share).detach().to(vector.weight.stored.dtype) for vector in self.vectors}

    @torch.no_grad()
    def stored(self, groups: Mapping[str, Groups] | None = None, floats: Mapping[str, torch.Tensor] | None = None
               ) -> dict[str, torch.Tensor]:
        """Every weight of the model by name, as it is read if these are stored; as it is now without them."""
        new = Distilled(groups or {})
        vectors = {vector.name: vector.start for vector in self.vectors} | dict(floats or {})
        values = {rows.name: rows.read(self.saved, new) for rows in self.rows}
        return self.fixed | values | {name: value.float() for name, value in vectors.items()}

    @torch.no_grad()
    def measure_units(self, tokens: torch.Tensor) -> None:
        """Find the size that each vector's changes are relative to: that of a typical output of its module."""
        found: dict[str, float] = {}

        def watch(name: str, output: torch.Tensor) -> None:
            found[name] = float(output.abs().median())

        model = self.skeleton.model
        hooks = [model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: watch(name, output))
                 for name in sorted({vector.weight.module for vector in self.vectors})]
        try:
            functional_call(model, self.values(), (tokens,), {"use_cache": False, "logits_to_keep": 1})
        finally:
            for hook in hooks:
                hook.remove()
        for vector in self.vectors:
            vector.unit = found.get(vector.weight.module, 0.0)  # 0: one that is not called, and so stays


class _Vector:
    """A bias, or a norm's weight, and its change in units of what its module puts out."""

    def __init__(self, weight: Weight, start: torch.Tensor):
        self.weight, self.name, self.start, self.unit = weight, weight.name, start, 0.0
        self.change = nn.Parameter(torch.zeros_like(start))

    def value(self, share: float = 1.0) -> torch.Tensor:
        return self.start + share * self.unit * self.change


class _Rows:
    """A quantized weight, each row times a factor. free: 1 for rows whose factor can be stored, else 0. logs: of the factors."""

    def __init__(self, selected: Selected, original: torch.Tensor, saved: Saved):
        self.selected, self.name = selected, selected.weight.name
        original = original.T if selected.weight.transposed else original
        self._original = original if any(part.scheme is None for part in selected.parts) else None  # rows in it stay as they are
        self._values = self._matrix(saved, Distilled())
        self.free = torch.zeros(len(self._values))
        for part in selected.parts:
            self.free[selected.rows_of(part)] = float(bool(part.scheme and has_row_scales(part.scheme)))
        self.logs = nn.Parameter(torch.zeros(len(self._values)))

    def value(self) -> torch.Tensor:
        """The weight as the checkpoint stores it, float32."""
        return self._oriented(self._values * (self.logs * self.free).exp().unsqueeze(-1))

    def read(self, saved: Saved, distilled: Distilled) -> torch.Tensor:
        """The same, read from what is stored."""
        return self._oriented(self._matrix(saved, distilled))

    def factors_of(self, part: Part | RowClass, share: float) -> torch.Tensor:
        return (share * self.logs.detach()[self.selected.rows_of(part)]).exp()

    def _matrix(self, saved: Saved, distilled: Distilled) -> torch.Tensor:
        """The rows, float32 [out, in]; one for a vector."""
        selected = self.selected
        matrix = torch.empty(matrix_shape(selected.weight.shape)) if self._original is None else self._original.clone()
        for part in selected.parts:
            if part.scheme:
                tensor = distilled.apply(selected, part, saved.read(selected, part))
                matrix[selected.rows_of(part)] = dequantize(tensor).view(part.rows, -1)
        return matrix

    def _oriented(self, matrix: torch.Tensor) -> torch.Tensor:
        matrix = matrix.view(self.selected.weight.shape)
        return matrix.T if self.selected.weight.transposed else matrix
