"""Products of bands with activations rounded to 8 bits, as a job (quant.compiled.threads)."""

from __future__ import annotations

from numba import njit

from quant.compiled.threads import compiled_loop
from quant.kernels.bands.activations import round_rows_of
from quant.kernels.bands.at_once import WIDTHS, dot_of_codes
from quant.kernels.bands.batches import batches_of, by_rows, given_to, rows_of, start_of, write_sums
from quant.kernels.bands.decoding import TABLE_OF_BYTES_BITS, WHOLE, band_of_bytes
from quant.kernels.bands.dots import dot_of_bytes
from quant.kernels.bands.loops import lines_of_block, preparation_of, products_of, totals_of
from quant.kernels.bands.transposing import SIZE
from quant.kernels.frame import BITS, BYTES_OF_CODES, COLUMNS, FACTOR, MIDDLE, ROW_BYTES
from quant.kernels.widths import by_number, by_width

_round_2, _round_4, _round_others = (by_rows(lambda rows, bits=bits: round_rows_of(bits, rows)) for bits in WHOLE)
_dot = by_rows(dot_of_bytes)


def _by_table(make):
    """Make a function of a width. What it makes takes (table, *arguments), and calls make(bits, is_table) on the arguments."""

    def make_of(bits: int):
        of_codes = make(bits, False)
        of_table = make(bits, True) if bits <= TABLE_OF_BYTES_BITS else of_codes

        @njit(nogil=True)
        def chosen(table, *arguments):
            if table:
                of_table(*arguments)
            else:
                of_codes(*arguments)

        return chosen

    return make_of


_to_bytes = by_width(_by_table(band_of_bytes))
_at_once = by_number(_by_table(lambda bits, is_table: by_rows(lambda rows: dot_of_codes(bits, is_table, rows))), WIDTHS)


def rounded_bytes(columns: int) -> int:
    """Bytes of a row in 8 bits in a batch, without sums: words, firsts and steps."""
    return columns + 8 * (columns // SIZE)


_row_bytes = njit(nogil=True)(rounded_bytes)


@njit(nogil=True)
def _places(job, batch, batches):
    """Addresses of the parts of a batch: words, firsts and steps (quant.kernels.bands.dots)."""
    words, rows = batches + start_of(job, batch, _row_bytes(job[COLUMNS])), rows_of(job, batch)
    firsts = words + rows * job[COLUMNS]
    return words, firsts, firsts + 4 * rows * (job[COLUMNS] // SIZE)


@njit(nogil=True)
def _prepare_batch(job, batch, batches):
    """Round a batch, and write it to its place. batches: address of the first."""
    (x, given), bits, rows, size = given_to(job, batch), job[BITS], rows_of(job, batch), 4 * job[COLUMNS]
    blocks, middle, factor = job[COLUMNS] // SIZE, job[MIDDLE], job[FACTOR]
    words, firsts, steps = _places(job, batch, batches)
    if bits == 2:
        _round_2(rows, x, size, given, blocks, middle, factor, words, firsts, steps)
    elif bits == 4:
        _round_4(rows, x, size, given, blocks, middle, factor, words, firsts, steps)
    else:
        _round_others(rows, x, size, given, blocks, middle, factor, words, firsts, steps)
    write_sums(job, batch, _row_bytes(job[COLUMNS]), batches)


@njit(nogil=True)
def _multiply_strip(job, batches, strip, codes, scales, totals, ahead, first, groups, blocks):  # as `products_of` describes it
    before, bits, row_bytes, table = first // SIZE, job[BITS], job[ROW_BYTES], job[BYTES_OF_CODES]
    is_at_once = batches_of(job) == 1 and bits in WIDTHS
    if not is_at_once:
        _to_bytes(bits, table, codes, row_bytes, groups * blocks, table, strip)
    for batch in range(batches_of(job)):
        rows, target, lines = rows_of(job, batch), totals_of(totals, batch), 0 if batch else lines_of_block(job)
        words, firsts, steps = _places(job, batch, batches)
        words, firsts, steps = words + first * rows, firsts + 4 * before * rows, steps + 4 * before * rows
        if is_at_once:
            _at_once(bits, table, rows, codes, row_bytes, table, words, firsts, steps, scales, target, ahead, groups, blocks)
        else:
            _dot(rows, strip, words, firsts, steps, scales, target, ahead, groups, blocks, lines)


_products, _preparation = products_of(_row_bytes, _prepare_batch, _multiply_strip), preparation_of(_prepare_batch)


@compiled_loop
def multiply_rounded(job_pointer):
    """Multiply rows of activations in 8 bits with a weight whose groups are multiples of 64 codes; HEIGHT is a multiple of 32.
    They are taken from PREPARED, or else each thread rounds those at X."""
    _products(job_pointer)


@compiled_loop
def round_activations(job_pointer):
    """Round the COUNT rows at X to 8 bits, to PREPARED."""
    _preparation(job_pointer)
