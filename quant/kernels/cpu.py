"""Products on a processor, compiled by numba when first used: codes are read as they are stored, and never written out.

One row of activations (decoding a token) reads every code once and nothing else, so that memory sets the pace. A few
rows share each row of the weight, decoded into a buffer that stays in the core's first cache. Many rows (a prompt) get the
weight decoded tile by tile and go through torch's own matrix product.

Sums are float32, in another order than the reference's: the difference is rounding, nothing else.
"""

from __future__ import annotations

import numba
import numpy
import torch
from numba import float32, int8, int64, njit, prange, uint8

from quant.codebooks import LinearGrid, grid_of
from quant.kernels.simd import BLOCK, row_dot
from quant.qtensor import QTensor

FEW = 16  # rows of activations up to which each row of the weight is decoded for itself, instead of in tiles
TILE = 2**19  # weights of a tile: 2 MB of float32, which stay in the processor's last cache

BY_BYTE, BY_HALF, BY_BITS = range(3)  # how codes are decoded: 8 bits in equal steps, 4 bits by table, any other
FAST = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}


class Product:
    """x W^T + b for one weight. Made once: its scales are widened to float32, its codes stay where and as they are."""

    def __init__(self, weight: QTensor):
        scheme, grid = weight.scheme, grid_of(weight.scheme)
        self.rows, self.columns = weight.shape
        self.bits = scheme.bits
        scales = weight.scales.rows(slice(None)) if scheme.double_quant else weight.scales.float()
        zeros = None if weight.zeros is None else weight.zeros.float()
        if scheme.bits == 8 and isinstance(grid, LinearGrid):
            self.way = BY_BYTE  # reads code - 128
            zeros = zeros if grid.offset else zeros + 128 * scales
        else:
            self.way = BY_HALF if scheme.bits == 4 else BY_BITS
        self.codes = weight.codes.numpy()
        self.scales = scales.expand(self.rows, -1).contiguous().numpy()  # one scale for all is repeated for every row
        self.zeros = numpy.zeros((0, 0), numpy.float32) if zeros is None else zeros.expand(self.rows, -1).contiguous().numpy()
        self.values = _values(grid, scheme.bits)
        halves = numpy.arange(256) & 15, numpy.arange(256) >> 4
        self.pairs = numpy.stack([self.values[half % len(self.values)] for half in halves], axis=1).view(numpy.uint64)[:, 0]
        planes = self.values[:16].view(numpy.uint8).reshape(-1, 4).T
        self.planes = numpy.ascontiguousarray(numpy.tile(planes, 2)).reshape(-1)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] of any floating dtype -> [..., out] in x's dtype; computed in float32."""
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        flat = x.reshape(-1, self.columns).float().contiguous()
        y = torch.empty((len(flat), self.rows))
        if len(flat) > FEW:
            self._by_tiles(flat, y)
        elif len(flat) == 1 and self.way == BY_BYTE:
            _dot_bytes(flat[0].numpy(), self.codes, self.scales, self.zeros, y[0].numpy())
        elif len(flat) == 1 and self.way == BY_HALF and self.columns // self.scales.shape[1] % BLOCK == 0:
            _dot_halves(flat[0].numpy(), self.codes, self.scales, self.zeros, self.values, self.planes, y[0].numpy())
        else:
            _dot_rows(flat.numpy(), self.codes, self.scales, self.zeros, self.values, self.pairs, self.bits, self.way, y.numpy())
        if bias is not None:
            y += bias
        return y.to(x.dtype).view(*x.shape[:-1], self.rows)

    def _by_tiles(self, x: torch.Tensor, y: torch.Tensor) -> None:
        height = max(1, TILE // self.columns)
        tile = torch.empty((min(height, self.rows), self.columns))
        for start in range(0, self.rows, height):
            rows = slice(start, min(start + height, self.rows))
            weight = tile[: rows.stop - start]
            _decode(self.codes[rows], self.scales[rows], self.zeros[rows], self.values, self.pairs, self.bits, self.way,
                    weight.numpy())
            torch.matmul(x, weight.T, out=y[:, rows])


def _values(grid, bits: int) -> numpy.ndarray:
    """float32 [2**bits]: the value of every code; those that a table does not name are 0."""
    if isinstance(grid, LinearGrid):
        return grid.decode(torch.arange(2**bits, dtype=torch.uint8)).numpy()
    return torch.nn.functional.pad(grid.values, (0, 2**bits - len(grid.values))).numpy()


@njit(**FAST)
def _group_sums(x, groups):
    """float32 [groups]: what a group's zero is multiplied with."""
    sums, size = numpy.empty(groups, numpy.float32), len(x) // max(groups, 1)
    for group in range(groups):
        part, total = x[group * size : (group + 1) * size], float32(0)
        for j in range(len(part)):
            total += part[j]
        sums[group] = total
    return sums


@njit(**FAST)
def _zeros_dot(zeros, sums):
    total = float32(0)
    for group in range(len(zeros)):
        total += zeros[group] * sums[group]
    return total


@njit(parallel=True, **FAST)
def _dot_bytes(x, codes, scales, zeros, y):
    groups = scales.shape[1]
    size = len(x) // groups
    sums = _group_sums(x, len(zeros.T))
    for row in prange(len(codes)):
        total = float32(0)
        for group in range(groups):
            part, activations = codes[row, group * size : (group + 1) * size], x[group * size : (group + 1) * size]
            dot = float32(0)
            for j in range(len(part)):
                dot += activations[j] * float32(int8(part[j] ^ uint8(128)))
            total += dot * scales[row, group]
        y[row] = total + _zeros_dot(zeros[row], sums) if len(zeros) else total


@njit(parallel=True, **FAST)
def _dot_halves(x, codes, scales, zeros, values, planes, y):
    ordered = numpy.empty(len(x), numpy.float32)
    for eight in range(len(x) // 8):
        for i in range(4):
            ordered[8 * eight + i] = x[8 * eight + 2 * i]
            ordered[8 * eight + 4 + i] = x[8 * eight + 2 * i + 1]
    sums = _group_sums(x, len(zeros.T))
    blocks = len(x) // scales.shape[1] // BLOCK
    for row in prange(len(codes)):
        total = row_dot(codes[row], ordered, values, planes, scales[row], blocks)
        y[row] = total + _zeros_dot(zeros[row], sums) if len(zeros) else total


@njit(parallel=True, **FAST)
def _dot_rows(x, codes, scales, zeros, values, pairs, bits, way, y):
    rows, columns = len(codes), x.shape[1]
    height = 16
    for part in prange((rows + height - 1) // height):
        buffer = numpy.empty(columns, numpy.float32)
        for row in range(part * height, min(rows, (part + 1) * height)):
            _decode_row(codes[row], scales[row], zeros[row] if len(zeros) else scales[row, :0], values, pairs, bits, way, buffer)
            for i in range(len(x)):
                activations, dot = x[i], float32(0)
                for j in range(columns):
                    dot += activations[j] * buffer[j]
                y[i, row] = dot


@njit(**FAST)
def _decode(codes, scales, zeros, values, pairs, bits, way, out):
    """Rows of packed codes -> float32 [rows, columns].

    On one thread: the product that follows runs on torch's threads, which numba's would fight for the cores while they wait.
    """
    for row in range(len(codes)):
        _decode_row(codes[row], scales[row], zeros[row] if len(zeros) else scales[row, :0], values, pairs, bits, way, out[row])


@njit(**FAST)
def _decode_row(codes, scales, zeros, values, pairs, bits, way, out):
    columns, size = len(out), len(out) // len(scales)
    if way == BY_BYTE:
        for j in range(columns):
            out[j] = float32(int8(codes[j] ^ uint8(128)))
    elif way == BY_HALF:
        twos = out[: columns // 2 * 2].view(numpy.uint64)
        for j in range(len(twos)):
            twos[j] = pairs[codes[j]]
        if columns % 2:
            out[columns - 1] = values[codes[len(twos)] & uint8(15)]
    else:
        mask = (1 << bits) - 1
        for eight in range((columns + 7) // 8):  # eight codes are `bits` bytes, of which a row's end may lack some
            stored, word = codes[eight * bits : (eight + 1) * bits], 0
            for k in range(len(stored)):
                word |= int64(stored[k]) << (8 * k)
            some = out[8 * eight : 8 * eight + 8]
            for i in range(len(some)):
                some[i] = values[(word >> (bits * i)) & mask]
    for group in range(len(scales)):
        part, scale = out[group * size : (group + 1) * size], scales[group]
        zero = zeros[group] if len(zeros) else float32(0)
        for j in range(len(part)):
            part[j] = part[j] * scale + zero
