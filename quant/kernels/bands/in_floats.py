"""Products of bands with activations in floats, as a job (quant.compiled.threads)."""

from __future__ import annotations

from numba import njit

from quant.compiled.threads import compiled_loop
from quant.kernels.bands.activations import order_rows_of
from quant.kernels.bands.batches import batches_of, by_rows, given_to, rows_of, start_of, write_sums
from quant.kernels.bands.decoding import band_of_words
from quant.kernels.bands.dots import dot_of_floats
from quant.kernels.bands.loops import lines_of_block, preparation_of, products_of, totals_of
from quant.kernels.bands.transposing import SIZE
from quant.kernels.frame import BITS, COLUMNS, ROW_BYTES, VALUES
from quant.kernels.widths import by_width

_order = by_rows(order_rows_of)
_to_words = by_width(band_of_words)
_dot = by_width(lambda bits: by_rows(lambda rows: dot_of_floats(bits, rows)))


def float_bytes(columns: int) -> int:
    """Bytes of a row in floats in a batch, without sums."""
    return 4 * columns


_row_bytes = njit(nogil=True)(float_bytes)


@njit(nogil=True)
def _prepare_batch(job, batch, batches):
    """Write a batch to its place: float32 [columns, rows], and sums. batches: address of the first."""
    (x, given), columns = given_to(job, batch), job[COLUMNS]
    _order(rows_of(job, batch), x, 4 * columns, given, columns // SIZE, batches + start_of(job, batch, 4 * columns))
    write_sums(job, batch, 4 * columns, batches)


@njit(nogil=True)
def _multiply_strip(job, batches, strip, codes, scales, totals, ahead, first, groups, blocks):  # as `products_of` describes it
    _to_words(job[BITS], codes, job[ROW_BYTES], groups * blocks, 0, strip)
    for batch in range(batches_of(job)):
        rows, lines = rows_of(job, batch), 0 if batch else lines_of_block(job)
        x = batches + start_of(job, batch, 4 * job[COLUMNS]) + 4 * first * rows
        _dot(job[BITS], rows, strip, x, job[VALUES], scales, totals_of(totals, batch), ahead, groups, blocks, lines)


_products, _preparation = products_of(_row_bytes, _prepare_batch, _multiply_strip), preparation_of(_prepare_batch)


@compiled_loop
def multiply_floats(job_pointer):
    """Multiply rows of activations with a weight whose groups are multiples of 64 codes; HEIGHT is a multiple of 32. They are
    taken from PREPARED, or else each thread orders those at X."""
    _products(job_pointer)


@compiled_loop
def order_activations(job_pointer):
    """Write the COUNT rows at X, by columns, to PREPARED."""
    _preparation(job_pointer)
