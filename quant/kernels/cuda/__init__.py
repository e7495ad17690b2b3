"""Matrix products on a CUDA GPU, in Triton, straight from the packed codes.

    operands      quant.kernels.operands: the weight as tensors and numbers
    matmul.py     picks the way by the number of rows of activations, and starts the kernels
    few_rows.py   up to some rows: every code is read once and decoded once; float32 sums without tensor cores
    tiles.py      up to some tens of rows: tensor cores, and the codes are decoded while they multiply
    dequantize.py any number of rows: the weight is written as floats, some rows at a time, and torch's own product multiplies
    decode.py     what all of them share: how codes are read, and turned into numbers
    blocks.py     which way and which block sizes, by GPU, rows and bits

For one row of activations (decoding a token), each code is read once, and the activations from cache, so the least time is
out * in * bits / 8 bytes over the bandwidth of the GPU's memory. Compiled for sm_90, the inner loop has 5.6 instructions per
code at 8 bits, 5.1 at 4, 6.0 at 3 and 5.3 at 2, so a GPU with much bandwidth for its clock is limited by its instruction rate.

Activations are never rounded, and sums are float32. Float32 activations are multiplied as float32, never as TF32.
"""

from __future__ import annotations

from quant.errors import InputError

try:
    import triton  # noqa: F401  for its error alone
except ModuleNotFoundError as error:
    raise InputError("a quantized weight lies on a CUDA device, and products there need triton, which is not installed; "
                     "pip install triton, or set device to cpu") from error

from quant.kernels.cuda.matmul import Matmul

__all__ = ["Matmul"]
