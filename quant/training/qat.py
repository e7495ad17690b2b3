"""Quantization-aware training: a model learns with the values in its forward pass that its codes and scales would store.

Rounding has no useful gradient: it is flat between its steps. The straight-through estimator (Bengio, Léonard & Courville 2013)
rounds in the forward pass and lets the gradient through to the weight as if nothing had been rounded, so that a weight in 32 bits
gathers small updates until its code changes. The scales are trained as well (LSQ, Esser et al. 2020; EfficientQAT, Chen et al.
2024). Training begins at the codes and scales of rounding to nearest, and what is learnt is the model's own unquantized
predictions (distillation, as in LLM-QAT, Liu et al. 2023).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from quant.files import atomic_folder
from quant.model.checkpoint import Checkpoint
from quant.model.folder import copy_companions
from quant.model.inventory import Weight
from quant.tensor.grids import Grid, grid_of
from quant.tensor.qtensor import quantize
from quant.tensor.rounding import nearest
from quant.tensor.scheme import Scheme
from quant.training.train import Schedule, logits_of

# A scale in 16 bits for 64 weights. Four levels in equal steps around zero leave none at zero (ParetoQ, Liu et al. 2025); the
# symmetric grid of 2 bits has three: -1, 0 and 1 (ternary weight networks, Li et al. 2016; BitNet b1.58, Ma et al. 2024).
TRAINED = {
    "int2": Scheme(2, 64, codebook=(-1.5, -0.5, 0.5, 1.5), scale_dtype="float16", fit="mse"),
    "ternary": Scheme(2, 64, scale_dtype="float16", fit="mse"),
}
ROUNDED = {f"int{bits}": Scheme(bits, 64, scale_dtype="float16", fit="mse") for bits in (4, 3)}  # only rounded, to compare with
SCHEDULE = Schedule(epochs=3, batch_size=8, peak_rate=5e-4, warmup=50, decay=0.1, average=0.0)


class StraightThrough(torch.autograd.Function):
    """Round weights to the values that are stored; the gradient passes through to every weight, and to its scale as in LSQ.

    blocks: float32 [rows, groups, n]; scales: float32 [rows, groups], which are stored in `dtype`. A value is grid value * scale.
    Its derivative by the scale is the grid value where the weight lies beyond the grid, else the grid value minus weight / scale.
    """

    @staticmethod
    def forward(context, blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, grid: Grid) -> torch.Tensor:
        stored = scales.clamp(min=0).to(dtype).float()
        inverses = torch.where(stored == 0, 0.0, 1 / stored)
        found = grid.decode(nearest(blocks, inverses, None, grid))
        steps = blocks * inverses.unsqueeze(-1)
        context.save_for_backward(torch.where(steps.abs() > grid.limit, found, found - steps))
        return found * stored.unsqueeze(-1)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        (by_scale,) = context.saved_tensors
        return gradient, (gradient * by_scale).sum(-1), None, None


class StoredValues(nn.Module):
    """The parametrization of a weight: in its place the model multiplies with the values of its codes.

    scales: of all groups, trained, as a vector, since vectors have no weight decay. They begin as the scheme fits them.
    """

    def __init__(self, weight: torch.Tensor, scheme: Scheme, transposed: bool):
        super().__init__()
        self.grid, self.transposed = grid_of(scheme), transposed
        found = quantize(weight.detach().T if transposed else weight.detach(), scheme).scales.scales
        self.shape, self.dtype = found.shape, found.dtype
        self.scales = nn.Parameter(found.float().flatten())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        matrix = weight.T if self.transposed else weight
        blocks, scales = matrix.reshape(*self.shape, -1), self.scales.view(self.shape)
        values = StraightThrough.apply(blocks, scales, self.dtype, self.grid).view(matrix.shape)
        return values.T if self.transposed else values


class Distillation:
    """A loss: the Kullback-Leibler divergence of a model's predictions from a teacher's, in nats per token."""

    def __init__(self, teacher: PreTrainedModel):
        self.teacher = teacher.eval()

    def __call__(self, model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = torch.log_softmax(logits_of(self.teacher, batch), -1)
        found = torch.log_softmax(logits_of(model, batch), -1)
        return nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def student_of(base: Path, scheme: Scheme) -> PreTrainedModel:
    """The model in `base` in float32 and without dropout, its decoder blocks' matrices quantized in the forward pass."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the teacher's predictions can't be learnt by heart from a text this long in a few epochs
    for weight in _quantized(base):
        module = model.get_submodule(weight.module)
        parametrize.register_parametrization(module, "weight", StoredValues(module.weight, scheme, weight.transposed))
    return model


def save_student(model: PreTrainedModel, base: Path, out: Path) -> None:
    """Write a trained student as a plain checkpoint in float32: the values of its codes, all else rounded to 16 bits.

    Quantizing that checkpoint by the student's scheme gives the codes and scales back, but where a group uses none of the
    outermost values, which happens to hardly any of 64 weights. The model ends up as it is written.
    """
    quantized = {weight.name: weight.module for weight in _quantized(base)}
    for module in quantized.values():
        parametrize.remove_parametrizations(model.get_submodule(module), "weight")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in quantized:
                parameter.copy_(parameter.half())
    disable_progress_bar()
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        copy_companions(base, folder)


def _quantized(base: Path) -> list[Weight]:
    return [weight for weight in Checkpoint(base).inventory.weights if weight.is_block_matrix]
