"""Moments: what a calibration text says of the inputs of a layer, for the model as it is and for its quantized copy.

x_f and x_q are the inputs of the float model and of the quantized one, r the difference of the residual streams (float minus
quantized) to which the layer's output is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TARGET_DAMPING = 0.05


@dataclass
class Moments:
    """Sums over `count` tokens, float64.

    second: x_q x_q^T [columns, columns]; drift: (x_f - x_q) x_q^T [columns, columns]; residual: r x_q^T [rows, columns], None for
    layers whose output is not added to the residual stream. mean, mean_drift, mean_residual: sums of x_q, x_f - x_q and r.
    """

    second: torch.Tensor
    drift: torch.Tensor
    mean: torch.Tensor
    mean_drift: torch.Tensor
    residual: torch.Tensor | None = None
    mean_residual: torch.Tensor | None = None
    count: int = 0

    @classmethod
    def empty(cls, columns: int, rows: int | None) -> Moments:
        """No token yet. rows: outputs of a layer that is added to the residual stream, else None."""
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(zeros(columns, columns), zeros(columns, columns), zeros(columns), zeros(columns),
                   None if rows is None else zeros(rows, columns), None if rows is None else zeros(rows))

    def add(self, quantized: torch.Tensor, floats: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Add a batch of tokens, float32 [tokens, columns]; residual: [tokens, rows]. Products in float32, sums in float64."""
        drift = floats - quantized
        self.second += (quantized.T @ quantized).double()
        self.drift += (drift.T @ quantized).double()
        self.mean += quantized.sum(0, dtype=torch.float64)
        self.mean_drift += drift.sum(0, dtype=torch.float64)
        if self.residual is not None and residual is not None:
            self.residual += (residual.T @ quantized).double()
            self.mean_residual += residual.sum(0, dtype=torch.float64)
        self.count += len(quantized)

    def hessian(self, is_centred: bool) -> torch.Tensor:
        """E[x_q x_q^T], about the mean where a bias makes up for it; float64 [columns, columns]."""
        return self._about_mean(self.second, self.mean, is_centred)

    def corrected(self, weight: torch.Tensor, is_centred: bool) -> torch.Tensor:
        """The weight that, on the quantized model's inputs, comes nearest to the float model's outputs, float64 [rows, columns].

        Least squares: W + (W D + R) (H + damping)^-1, with D the drift of the inputs and R that of the residual stream. The aim
        is that of GPTAQ (Li et al. 2025); R makes up for the errors of all layers before this one as well.
        """
        shift = weight.double() @ self._about_mean(self.drift, self.mean_drift, is_centred)
        if self.residual is not None:
            shift = shift + self._about_mean(self.residual, self.mean_residual, is_centred)
        second = damped(self.hessian(is_centred), TARGET_DAMPING)
        return weight.double() + torch.cholesky_solve(shift.T, torch.linalg.cholesky(second)).T

    def bias_change(self, weight: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """What to add to the bias so that the mean output is the float model's, float64 [rows]."""
        change = weight.double() @ (self.mean + self.mean_drift) - quantized.double() @ self.mean
        if self.mean_residual is not None:
            change = change + self.mean_residual
        return change / self.count

    def _about_mean(self, product: torch.Tensor, mean: torch.Tensor, is_centred: bool) -> torch.Tensor:
        moments = product / self.count
        return moments - torch.outer(mean, self.mean) / self.count**2 if is_centred else moments


def damped(second: torch.Tensor, damping: float) -> torch.Tensor:
    """A copy with `damping` times the mean of the diagonal added to it; inputs that are always 0 get the mean itself."""
    diagonal = second.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(torch.float64).tiny)
    added = torch.where(diagonal <= 1e-12 * mean, mean, torch.zeros_like(diagonal)) + damping * mean
    return second + torch.diag(added)
