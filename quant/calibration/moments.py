"""Moments: what a calibration text says of the inputs of a layer, for the model as it is and for its quantized copy.

x_f and x_q are the inputs of the float model and of the quantized one. A layer makes up for the drift of its inputs,
x_f - x_q; or, where its output is added to the residual stream, all that the stream would lack with the weight as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quant.tensor.products import product

TARGET_DAMPING = 0.05
WIDE = 1024  # columns of the symmetric product that are computed together


@dataclass(frozen=True)
class Products:
    """What a batch of tokens adds to Moments: second and cross float32, mean and mean_lack float64; None where nothing lacks."""

    second: torch.Tensor
    mean: torch.Tensor
    cross: torch.Tensor | None
    mean_lack: torch.Tensor | None
    count: int

    @classmethod
    def of(cls, quantized: torch.Tensor, lack: torch.Tensor | None) -> Products:
        """Of tokens, as `Moments.add` takes them."""
        second = torch.zeros((quantized.shape[1], quantized.shape[1]))
        for start in range(0, quantized.shape[1], WIDE):
            second[start : start + WIDE, start:] = product(quantized[:, start : start + WIDE].T, quantized[:, start:])
        cross, mean_lack = (None, None) if lack is None else (product(lack.T, quantized), lack.sum(0, dtype=torch.float64))
        return cls(second, quantized.sum(0, dtype=torch.float64), cross, mean_lack, len(quantized))


@dataclass
class Moments:
    """Sums over `count` tokens, float64.

    second: x_q x_q^T [columns, columns], its upper triangle. cross: d x_q^T [columns, columns], with d = x_f - x_q; or, if
    `is_of_outputs`, with d [rows] that which the outputs W x_q lack. mean, mean_lack: sums of x_q and of d.
    """

    second: torch.Tensor
    cross: torch.Tensor
    mean: torch.Tensor
    mean_lack: torch.Tensor
    is_of_outputs: bool
    count: int = 0

    @classmethod
    def empty(cls, columns: int, rows: int | None = None) -> Moments:
        """No token yet. rows: outputs of the layer, where these are what lacks something, else None."""
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        lacking = columns if rows is None else rows
        return cls(zeros(columns, columns), zeros(lacking, columns), zeros(columns), zeros(lacking), rows is not None)

    def add(self, quantized: torch.Tensor, lack: torch.Tensor | None = None) -> None:
        """Add a batch of tokens, float32 [tokens, columns]; lack: [tokens, columns] or [tokens, rows], None for nothing."""
        self.join(Products.of(quantized, lack))

    def join(self, batch: Products) -> None:
        """Add a batch's products. Sums in float64, whose last bits depend on the order of the batches."""
        self.second += batch.second
        self.mean += batch.mean
        if batch.cross is not None:
            self.cross += batch.cross
            self.mean_lack += batch.mean_lack
        self.count += batch.count

    def hessian(self, is_centred: bool) -> torch.Tensor:
        """E[x_q x_q^T], about the mean where a bias makes up for it; float64 [columns, columns]."""
        second = self.second.triu()
        return self._about_mean(second + second.triu(1).T, self.mean, is_centred)

    def corrected(self, weight: torch.Tensor, is_centred: bool) -> torch.Tensor:
        """The weight that, on the quantized model's inputs, comes nearest to the float model's outputs, float64 [rows, columns].

        Least squares: W + L (H + damping)^-1, with L the cross moments of what outputs lack: W times those of the drift, which
        is the aim of GPTAQ (Li et al. 2025), or of all that the residual stream lacks.
        """
        lack = self._about_mean(self.cross, self.mean_lack, is_centred)
        if not self.is_of_outputs:
            lack = weight.double() @ lack
        second = damped(self.hessian(is_centred), TARGET_DAMPING)
        return weight.double() + torch.cholesky_solve(lack.T, torch.linalg.cholesky(second)).T

    def bias_change(self, weight: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """What to add to the bias so that the mean output is the float model's, float64 [rows]."""
        lack = self.mean_lack if self.is_of_outputs else weight.double() @ self.mean_lack
        return ((weight.double() - quantized.double()) @ self.mean + lack) / self.count

    def _about_mean(self, product: torch.Tensor, mean: torch.Tensor, is_centred: bool) -> torch.Tensor:
        moments = product / self.count
        return moments - torch.outer(mean, self.mean) / self.count**2 if is_centred else moments


def damped(second: torch.Tensor, damping: float) -> torch.Tensor:
    """A copy with `damping` times the mean of the diagonal added to it; inputs that are always 0 get the mean itself."""
    diagonal = second.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(torch.float64).tiny)
    added = torch.where(diagonal <= 1e-12 * mean, mean, torch.zeros_like(diagonal)) + damping * mean
    return second + torch.diag(added)
