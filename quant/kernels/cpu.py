"""Matrix products on a CPU straight from packed codes; the weight is never dequantized to memory as a whole.

For one row of activations (decoding a token), every code is read once, so memory bandwidth sets the pace. For several rows, a
part of the weight is decoded into the core's first cache and serves all of them: 32 rows with AVX-512 (quant.kernels.bands), else
one. Without AVX-512, or in bfloat16, a prompt's rows are multiplied by torch, tile by tile; tiles of bfloat16 are decoded in the
order in which oneDNN multiplies them, where it is known (quant.kernels.onednn).

Activations are widened to float32 and not rounded, unless another precision is chosen (quant.kernels.precision). Sums are
float32, in another order than the reference's: the results differ by rounding only.
"""

from __future__ import annotations

import torch

from quant.compiled import threads
from quant.compiled.lanes import LANES
from quant.kernels import decode, frame, loops, onednn, precision
from quant.kernels.frame import BETWEEN, BIAS, CODES, COUNT, GATHERED, GROUPS, HEIGHT, PREPARED, ROWS, SCALES, THEN, ZEROS, X, Y
from quant.kernels.vectors import BLOCK
from quant.tensor.grids import LinearGrid, grid_of
from quant.tensor.qtensor import QTensor

FEW_ROWS = 16  # up to this many rows, each thread prepares them for itself, or decodes the weight row by row; above, tiles
PREPARED_ROWS = 512  # rows of activations that are multiplied at a time, so that they stay in the caches
TILE = 2**23  # bytes of a tile of decoded weights: they stay in the last-level cache, and the threads are seldom woken
PART_BYTES = 2**20  # most bytes of codes in a part: reading starts anew at its beginning (quant.kernels.prefetch)
PARTS_PER_THREAD = 4  # least number of parts of a weight with enough rows, so that threads end at about the same time
DECODED_PART = 2**16  # weights in a part of a tile to decode
DECODED_TOGETHER = 16  # rows, where a tile is decoded in oneDNN's order; so tiles have a multiple of it

_TO = {torch.float32: decode.to_float32.address, torch.bfloat16: decode.to_bfloat16.address}
MULTIPLY_ROW, MULTIPLY_ROWS = loops.multiply_row.address, loops.multiply_rows.address
MULTIPLY_BANDS = MULTIPLY_ROUNDED = None
PREPARED_BY = {}  # loop -> the loop that prepares its activations, and bytes of a prepared row by its columns
if LANES == 16:
    from quant.kernels.bands.batches import BATCH
    from quant.kernels.bands.in_floats import float_bytes, multiply_floats, order_activations
    from quant.kernels.bands.transposing import ROWS as BAND_ROWS

    MULTIPLY_BANDS = multiply_floats.address
    PREPARED_BY[MULTIPLY_BANDS] = order_activations.address, float_bytes
if precision.HAS_INT8:
    from quant.kernels.bands import levels
    from quant.kernels.bands.decoding import TABLE_OF_BYTES_BITS
    from quant.kernels.bands.in_bytes import multiply_rounded, round_activations, rounded_bytes

    MULTIPLY_ROUNDED = multiply_rounded.address
    PREPARED_BY[MULTIPLY_ROUNDED] = round_activations.address, rounded_bytes
TO_PANELS = None
if onednn.IS_POSSIBLE:
    from quant.kernels.panels import to_panels

    TO_PANELS = to_panels.address


class Matmul:
    """x W^T + b for one weight. The constructor widens scales and zeros to float32; the codes are used in place."""

    def __init__(self, weight: QTensor):
        bits, grid = weight.scheme.bits, grid_of(weight.scheme)
        self.rows, self.columns = weight.shape
        scales, zeros = weight.groups.scale_values(), weight.groups.zero_values()
        if isinstance(grid, LinearGrid):
            middle = 2 ** (bits - 1)
            decoder, values = frame.EQUAL_STEPS, torch.arange(2**bits, dtype=torch.float32) - middle
            if not grid.offset:  # codes count from zero; the loops count from the middle
                zeros = middle * scales + (0 if zeros is None else zeros)
        else:
            decoder = frame.TABLE_OF_16 if bits == 4 else frame.ANY_TABLE
            values = torch.nn.functional.pad(grid.values, (0, 2**bits - len(grid.values)))
        codes = weight.codes.contiguous()
        scales = scales.expand(self.rows, -1).contiguous()  # one scale for all is repeated for every row
        zeros = None if zeros is None else zeros.expand(self.rows, -1).contiguous()
        values = values.repeat(-(-32 // len(values)))  # a vector's table has 16 or 32
        lookup_planes = values[:16].view(torch.uint8).view(-1, 4).T.repeat(1, 2).contiguous()
        self._held = codes, scales, zeros, values, lookup_planes  # kept alive: a job has only their addresses
        groups, size = scales.shape[1], weight.scheme.columns_per_group(self.columns)
        self._group_size = size
        is_vector = decoder == frame.EQUAL_STEPS or bits in loops.LOOKUP_BITS
        self._is_blocked = is_vector and size % BLOCK == 0 and groups * size == self.columns
        self._row_bytes = [0 if tensor is None else tensor.stride(0) * tensor.element_size() for tensor in self._held[:3]]
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in self._held]
        self._most_height = max(1, PART_BYTES // codes.shape[1])  # rows of a part, in a product
        sizes = self.rows, self.columns, groups, size, codes.shape[1], bits, decoder, max(1, DECODED_PART // self.columns)
        self._job = bytes(threads.Job(*[0] * CODES, *addresses, *sizes))
        self._is_banded = self._is_blocked and size % (2 * BLOCK) == 0
        self._takes_int8 = precision.HAS_INT8 and self._is_banded and (
            decoder == frame.EQUAL_STEPS or bits <= TABLE_OF_BYTES_BITS)
        if self._takes_int8:
            self._prepare_int8(bits, None if decoder == frame.EQUAL_STEPS else grid.values)

    def _prepare_int8(self, bits: int, values: torch.Tensor | None) -> None:
        """Complete the job for products in 8 bits. values: what the codes stand for, unless they are equal steps."""
        job, middle, factor = threads.Job.from_buffer_copy(self._job), 2 ** (bits - 1), 1.0
        if values is not None:
            bytes_, factor = levels.bytes_of(values)
            bytes_, middle = torch.nn.functional.pad(bytes_, (0, 16 - len(bytes_))), levels.MIDDLE
            self._held += (bytes_,)
            job[frame.BYTES_OF_CODES] = bytes_.data_ptr()
        self._held += (torch.tensor([factor]),)
        job[frame.FACTOR], job[frame.MIDDLE] = self._held[-1].data_ptr(), middle
        self._job = bytes(job)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] of any floating dtype -> [..., out] in x's dtype; in float32 unless another precision is chosen."""
        count, bias = x.numel() // self.columns, None if bias is None else bias.float().contiguous()
        loop = self._loop(count)
        if loop is None:
            return self._by_tiles(x.reshape(count, self.columns), bias).view(*x.shape[:-1], self.rows)
        flat, y = x.float().contiguous().view(count, self.columns), torch.empty((*x.shape[:-1], self.rows))
        for start in range(0, count, PREPARED_ROWS):
            end = start + PREPARED_ROWS
            self._by_loop(loop, flat[start:end], bias, y.view(count, self.rows)[start:end])
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def _by_loop(self, loop: int, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
        """Write x W^T + b to y, [count, rows], both contiguous and float32."""
        job = threads.Job.from_buffer_copy(self._job)
        job[X], job[Y], job[COUNT] = x.data_ptr(), y.data_ptr(), len(x)
        self._divide(job, loop)
        if bias is not None:
            job[BIAS] = bias.data_ptr()
        if len(x) > FEW_ROWS:  # prepared once, for all threads
            prepare, row_bytes = PREPARED_BY[loop]
            size = -(-len(x) // BATCH) * BATCH * (row_bytes(self.columns) + 4 * job[GROUPS])
            prepared = torch.empty(size, dtype=torch.uint8)
            job[PREPARED] = prepared.data_ptr()
            threads.run(prepare, threads.Job.from_buffer_copy(job))
        threads.run(loop, job)

    def job(self, count: int, bias: int, then: int, rows: range | None = None) -> threads.Job:
        """A program's job that multiplies a few rows of activations; the caller fills in X, Y and, if `then` needs it, OTHER.

        bias: address of float32 [out], or 0; then: the epilogue, such as quant.kernels.frame.ADD; rows: of the weight, instead of
        all; Y, OTHER and the bias begin with the first of them.
        """
        job, rows = threads.Job.from_buffer_copy(self._job), rows or range(self.rows)
        for place, size in zip((CODES, SCALES, ZEROS), self._row_bytes, strict=True):
            job[place] += rows.start * size
        job[threads.WORK] = self._loop(count)
        job[ROWS] = len(rows)
        self._divide(job, job[threads.WORK])
        job[threads.PARTS] = -(-len(rows) // job[HEIGHT])
        job[COUNT], job[BIAS], job[THEN] = count, bias, then
        return job

    def _loop(self, count: int) -> int | None:
        """The loop that multiplies so many rows of activations; None where tiles are multiplied."""
        if count == 1 and self._is_blocked:
            return MULTIPLY_ROW
        wanted = precision.current()
        if wanted == "int8" and self._takes_int8:
            return MULTIPLY_ROUNDED
        is_few = count <= FEW_ROWS
        if MULTIPLY_BANDS and self._is_banded and (is_few or wanted != "bfloat16"):
            return MULTIPLY_BANDS
        return MULTIPLY_ROWS if is_few else None

    def _divide(self, job: threads.Job, loop: int) -> None:
        """Set the rows of a part of a product."""
        height = min(self._most_height, height_of_part(job[ROWS]))
        if loop in PREPARED_BY:
            height = max(1, height // BAND_ROWS) * BAND_ROWS
        job[HEIGHT], job[BETWEEN] = height, (torch.get_num_threads() - 1) * height

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight and read no others: int64 [n] -> float32 [n, in].

        Raises IndexError for a row out of range; negative numbers are out of range too.
        """
        rows = rows.contiguous()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a weight with {self.rows} rows; "
                             f"expected 0 to {self.rows - 1}")
        y = torch.empty((len(rows), self.columns))
        job = threads.Job.from_buffer_copy(self._job)
        job[Y], job[GATHERED], job[ROWS] = y.data_ptr(), rows.data_ptr(), len(rows)
        threads.run(_TO[torch.float32], job)
        return y

    def _by_tiles(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x W^T + b for many rows: [count, columns] -> [count, rows] in x's dtype. bias: float32."""
        given = x.to(torch.bfloat16 if precision.current() == "bfloat16" else torch.float32).contiguous()
        height = max(DECODED_TOGETHER, TILE // self.columns // given.element_size() // DECODED_TOGETHER * DECODED_TOGETHER)
        y = torch.empty((len(x), self.rows), dtype=x.dtype)
        for start in range(0, self.rows, height):
            end = min(start + height, self.rows)
            product = self._tile_product(given, start, end)
            if bias is None:
                y[:, start:end] = product
            else:
                torch.add(product, bias[start:end], out=y[:, start:end])
        return y

    def _tile_product(self, x: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """The columns from `start` to before `end` of x W^T, in x's dtype: all float32 or all bfloat16."""
        rows, panels = end - start, None
        if TO_PANELS and x.dtype == torch.bfloat16 and self._is_blocked and rows % DECODED_TOGETHER == 0:
            panels = onednn.panels(rows, self.columns)
        job = threads.Job.from_buffer_copy(self._job)
        job[ROWS] = rows
        for place, size in zip((CODES, SCALES, ZEROS), self._row_bytes, strict=True):
            job[place] += start * size
        if panels:
            job[Y], job[HEIGHT] = panels.address, -(-job[HEIGHT] // DECODED_TOGETHER) * DECODED_TOGETHER
            threads.run(TO_PANELS, job)
            return panels.multiply(x)
        tile = torch.empty((rows, self.columns), dtype=x.dtype)
        job[Y] = tile.data_ptr()
        threads.run(_TO[x.dtype], job)
        return precision.multiply(x, tile)


def height_of_part(rows: int) -> int:
    """Rows of a part, at most, so that torch's threads of now have enough parts each."""
    return max(1, rows // (PARTS_PER_THREAD * torch.get_num_threads()))
