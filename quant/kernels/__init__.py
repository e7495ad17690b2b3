"""Products with quantized weights: one file per device, all equal to the plain-torch reference."""

from quant.kernels.reference import linear

__all__ = ["linear"]
