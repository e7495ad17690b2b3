"""Scratch for a tile of bfloat16 in the order in which oneDNN multiplies it (quant.kernels.panels decodes into it).

torch makes such a tensor of a matrix, and multiplies with it, but says nothing of its order. So that is looked at once for each
shape; where it is another one, as it may be on another processor or in another version, tiles stay matrices.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from threading import local

import numpy
import torch

from quant.compiled.lanes import LANES, features

IS_POSSIBLE = LANES == 16 and "avx512bf16" in features() and torch.backends.mkldnn.is_available()
LOOKED_AT = 4096  # places of a tensor
MOST_HELD = 2**27  # bytes of a thread's scratch; a model with rows in classes has hundreds of shapes

_held = local()  # by shape: two threads must not decode into the same scratch


@dataclass(frozen=True)
class Panels:
    """A tensor of oneDNN for a matrix of bfloat16 [rows, columns], and the address of its first element."""

    tensor: torch.Tensor
    address: int

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T: bfloat16 [n, columns] -> [n, rows]."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self.tensor, None, "none", [], "")


def panels(rows: int, columns: int) -> Panels | None:
    """This thread's scratch for a tile, whose content is that of the last use; None where it has another order than panels, and
    for further shapes where those before take MOST_HELD bytes."""
    found = _held.__dict__.setdefault("panels", {})
    if (rows, columns) not in found:
        held = sum(2 * height * width for (height, width), one in found.items() if one)
        is_room = held + 2 * rows * columns <= MOST_HELD
        found[rows, columns] = _made(rows, columns) if IS_POSSIBLE and is_room else None
    return found[rows, columns]


def _made(rows: int, columns: int) -> Panels | None:
    from quant.kernels.panels import ROWS_OF_PANEL

    numbers = torch.arange(rows * columns, dtype=torch.int16).bitwise_and_(0x3FFF)  # no NaN, whatever bits mean
    tensor = torch.ops.mkldnn._reorder_linear_weight(numbers.view(torch.bfloat16).view(rows, columns), ROWS_OF_PANEL)
    made = Panels(tensor, torch.ops.mkldnn.data_ptr(tensor))
    count = -(-rows // ROWS_OF_PANEL) * ROWS_OF_PANEL * columns
    if torch.ops.mkldnn._nbytes(tensor) != 2 * count:
        return None
    stored = numpy.ctypeslib.as_array((ctypes.c_int16 * count).from_address(made.address))
    places = numpy.linspace(0, rows * columns - 1, LOOKED_AT).astype(numpy.int64)
    row, column = numpy.divmod(places, columns)
    start = row // ROWS_OF_PANEL * ROWS_OF_PANEL * columns
    within = column // 2 * 2 * ROWS_OF_PANEL + row % ROWS_OF_PANEL * 2 + column % 2
    return made if numpy.array_equal(stored[start + within], numbers.numpy()[places]) else None
