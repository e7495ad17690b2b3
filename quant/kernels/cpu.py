"""Products on a processor: codes are read as they are stored, and never written out.

One row of activations (decoding a token) reads every code once and nothing else, so that memory sets the pace. A few
rows share each row of the weight, decoded into the core's first cache. Many rows (a prompt) get the weight decoded tile by
tile and go through torch's own matrix product.

Activations are widened to float32 and not rounded. Sums are float32, in another order than the reference's: the difference
is rounding, nothing else.
"""

from __future__ import annotations

import torch

from quant.kernels import loops
from quant.kernels import threads as team
from quant.kernels.loops import ANY, BIAS, BLOCK, CODES, COUNT, PICKED, ROWS, SCALES, STEPS, TABLE, ZEROS, X, Y
from quant.tensor.grids import LinearGrid, grid_of
from quant.tensor.qtensor import QTensor

FEW = 16  # rows of activations up to which each row of the weight is decoded for itself, instead of in tiles
TILE = 2**19  # weights of a tile: 2 MB of float32, which stay in the processor's last cache
PART = 2**16  # bytes of the rows that a thread takes at a time, at most: memory is read ahead within them
PARTS = 8  # that a weight is taken in, at least

_MULTIPLY_ROW, _MULTIPLY_ROWS, _DECODE = (loop.address for loop in (loops.multiply_row, loops.multiply_rows, loops.decode))


class Product:
    """x W^T + b for one weight. Made once: its scales are widened to float32, its codes stay where and as they are."""

    def __init__(self, weight: QTensor):
        scheme, grid = weight.scheme, grid_of(weight.scheme)
        self.rows, self.columns = weight.shape
        scales = weight.scales.rows(slice(None)) if scheme.double_quant else weight.scales.float()
        zeros = None if weight.zeros is None else weight.zeros.float()
        middle = 2 ** (scheme.bits - 1)
        if isinstance(grid, LinearGrid):
            way, values = STEPS, torch.arange(2**scheme.bits, dtype=torch.float32) - middle
            if not grid.offset:  # codes count from zero; here they count from the middle
                zeros = middle * scales + (0 if zeros is None else zeros)
        else:
            way = TABLE if scheme.bits == 4 else ANY
            values = torch.nn.functional.pad(grid.values, (0, 2**scheme.bits - len(grid.values)))
        codes = weight.codes.contiguous()
        scales = scales.expand(self.rows, -1).contiguous()  # one scale for all is repeated for every row
        zeros = None if zeros is None else zeros.expand(self.rows, -1).contiguous()
        planes = values[:16].view(torch.uint8).view(-1, 4).T.repeat(1, 2).contiguous()
        self._held = codes, scales, zeros, values, planes  # a job has their addresses only
        groups = scales.shape[1]
        self._is_blocked = way != ANY and self.columns // groups % BLOCK == 0
        self._row_bytes = [0 if tensor is None else tensor.stride(0) * tensor.element_size() for tensor in self._held[:3]]
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in self._held]
        height = max(1, min(PART // codes.shape[1], self.rows // PARTS))
        sizes = self.rows, self.columns, groups, codes.shape[1], scheme.bits, way, height
        self._job = bytes(team.Job(*[0] * CODES, *addresses, *sizes))

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] of any floating dtype -> [..., out] in x's dtype; computed in float32."""
        flat = x.float().contiguous()
        y = torch.empty((*x.shape[:-1], self.rows))
        count = flat.numel() // self.columns
        if count > FEW:
            self._by_tiles(flat.view(count, self.columns), y.view(count, self.rows))
            y = y if bias is None else y.add_(bias)
        else:
            job = team.Job.from_buffer_copy(self._job)
            job[X], job[Y], job[COUNT] = flat.data_ptr(), y.data_ptr(), count
            if bias is not None:
                bias = bias.float().contiguous()
                job[BIAS] = bias.data_ptr()
            team.run(_MULTIPLY_ROW if count == 1 and self._is_blocked else _MULTIPLY_ROWS, job)
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def step(self, bias: int, then: int) -> team.Job:
        """A job of a program, for one row of activations; X, Y and OTHER are to be filled in.

        bias: address of float32 [out], or 0. then: what becomes of the product, as quant.kernels.loops names it.
        """
        job = team.Job.from_buffer_copy(self._job)
        job[team.PARTS] = -(-self.rows // job[loops.HEIGHT])
        job[team.WORK] = _MULTIPLY_ROW if self._is_blocked else _MULTIPLY_ROWS
        job[COUNT], job[BIAS], job[loops.THEN] = 1, bias, then
        return job

    def picked(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, int64 [n] -> float32 [n, in]; no others are read. Raises IndexError as torch does."""
        rows = rows.contiguous()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a weight with {self.rows} rows")
        y = torch.empty((len(rows), self.columns))
        job = team.Job.from_buffer_copy(self._job)
        job[Y], job[PICKED], job[ROWS] = y.data_ptr(), rows.data_ptr(), len(rows)
        team.run(_DECODE, job)
        return y

    def _by_tiles(self, x: torch.Tensor, y: torch.Tensor) -> None:
        height = max(1, TILE // self.columns)
        tile = torch.empty((min(height, self.rows), self.columns))
        for start in range(0, self.rows, height):
            rows = min(height, self.rows - start)
            job = team.Job.from_buffer_copy(self._job)
            job[Y], job[ROWS] = tile.data_ptr(), rows
            for place, size in zip((CODES, SCALES, ZEROS), self._row_bytes, strict=True):
                job[place] += start * size
            team.run(_DECODE, job)
            torch.matmul(x, tile[:rows].T, out=y[:, start : start + rows])
