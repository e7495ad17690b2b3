"""Attention of the token that is being decoded: one query per head against all keys so far.

Per head, softmax(q k^T * scaling) v, on torch's own threads; keys and values are read in place, from the cache.
`attend` is called by itself. ATTEND_TO_CACHE is the loop of a job in a program (quant.compiled.threads): it also rotates query
and key by their position (RoPE, Su et al. 2021, in halves as in Llama) and writes the new key and value into the cache.
"""

from __future__ import annotations

import ctypes
import math

import numpy
import torch
from numba import carray, float32, njit

from quant.compiled import threads
from quant.compiled.threads import FIRST, claim, compiled_loop, finish, pointer
from quant.kernels.exponential import exp

# Places in a job of quant.compiled.threads: addresses of float32 numbers, then sizes, from KEYS_BATCH on strides in numbers.
# Only ATTEND_TO_CACHE uses NEW_KEY, NEW_VALUE, COS, SIN and what follows VALUES_HEAD; its HEADS counts key heads. POSITION_BATCH:
# stride of COS and SIN. ROTATED: dimensions of a head, from the first, that RoPE turns. WINDOW: most tokens that a new one
# attends to.
(QUERY, KEYS, VALUES, OUT, SCALING, NEW_KEY, NEW_VALUE, COS, SIN, BATCH, HEADS, QUERIES_PER_KV, LENGTH, WIDTH, KEYS_BATCH,
 KEYS_HEAD, VALUES_BATCH, VALUES_HEAD, QUERY_BATCH, QUERY_HEAD, NEW_KEY_BATCH, NEW_KEY_HEAD, NEW_VALUE_BATCH, NEW_VALUE_HEAD,
 POSITION_BATCH, ROTATED, WINDOW, FIELDS) = range(FIRST, FIRST + 28)
_FAST = {"reassoc", "contract", "nsz"}


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _attend(query, keys, values, scaling, weights, out):  # [width], [length, width] twice, float32, [length], [width]
    """Attention of one head; weights is scratch memory."""
    length, width = keys.shape
    largest = float32(-math.inf)
    for j in range(length):
        dot, key = float32(0), keys[j]
        for d in range(width):
            dot += query[d] * key[d]
        weights[j] = dot * scaling
        largest = max(largest, weights[j])
    total = float32(0)
    for j in range(length):
        weights[j] = exp(weights[j] - largest)
        total += weights[j]
    for d in range(width):
        out[d] = 0
    for four in range(length // 4):
        j = 4 * four
        a, b, c, e = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        for d in range(width):
            out[d] += a * values[j, d] + b * values[j + 1, d] + c * values[j + 2, d] + e * values[j + 3, d]
    for j in range(length // 4 * 4, length):
        for d in range(width):
            out[d] += weights[j] * values[j, d]
    for d in range(width):
        out[d] /= total


@compiled_loop
def _attend_heads(job_pointer):
    job = carray(job_pointer, FIELDS)
    heads, length, width = job[HEADS], job[LENGTH], job[WIDTH]
    scaling = carray(pointer(job[SCALING]), 1, numpy.float32)[0]
    queries = carray(pointer(job[QUERY]), (job[BATCH] * heads, width), numpy.float32)
    out = carray(pointer(job[OUT]), (job[BATCH] * heads, width), numpy.float32)
    weights = numpy.empty(length, numpy.float32)
    while True:
        part = claim(job_pointer)
        if part >= len(queries):
            break
        sequence, head = part // heads, part % heads // job[QUERIES_PER_KV]
        keys = pointer(job[KEYS] + 4 * (sequence * job[KEYS_BATCH] + head * job[KEYS_HEAD]))
        values = pointer(job[VALUES] + 4 * (sequence * job[VALUES_BATCH] + head * job[VALUES_HEAD]))
        _attend(queries[part], carray(keys, (length, width), numpy.float32), carray(values, (length, width), numpy.float32),
                scaling, weights, out[part])
        finish(job_pointer)


@njit(nogil=True, fastmath=_FAST)
def _rotate(x, cos, sin, out):  # float32 [width] twice, [rotated] twice
    """Write x cos + rotated x sin to out; dimensions from the width of cos on stay as they are."""
    rotated = len(cos)
    half = rotated // 2
    for i in range(half):
        out[i] = x[i] * cos[i] - x[half + i] * sin[i]
        out[half + i] = x[half + i] * cos[half + i] + x[i] * sin[half + i]
    for i in range(rotated, len(x)):
        out[i] = x[i]


@compiled_loop
def _attend_to_cache(job_pointer):
    job = carray(job_pointer, FIELDS)
    heads, queries_per_kv, length, width = job[HEADS], job[QUERIES_PER_KV], job[LENGTH], job[WIDTH]
    scaling = carray(pointer(job[SCALING]), 1, numpy.float32)[0]
    out = carray(pointer(job[OUT]), (job[BATCH] * heads * queries_per_kv, width), numpy.float32)
    weights, query, first = numpy.empty(length, numpy.float32), numpy.empty(width, numpy.float32), max(0, length - job[WINDOW])
    while True:
        part = claim(job_pointer)
        if part >= job[BATCH] * heads:
            break
        sequence, head = part // heads, part % heads
        cos = carray(pointer(job[COS] + 4 * sequence * job[POSITION_BATCH]), job[ROTATED], numpy.float32)
        sin = carray(pointer(job[SIN] + 4 * sequence * job[POSITION_BATCH]), job[ROTATED], numpy.float32)
        keys_at = job[KEYS] + 4 * (sequence * job[KEYS_BATCH] + head * job[KEYS_HEAD])
        values_at = job[VALUES] + 4 * (sequence * job[VALUES_BATCH] + head * job[VALUES_HEAD])
        keys = carray(pointer(keys_at), (length, width), numpy.float32)
        values = carray(pointer(values_at), (length, width), numpy.float32)
        key_at = job[NEW_KEY] + 4 * (sequence * job[NEW_KEY_BATCH] + head * job[NEW_KEY_HEAD])
        value_at = job[NEW_VALUE] + 4 * (sequence * job[NEW_VALUE_BATCH] + head * job[NEW_VALUE_HEAD])
        _rotate(carray(pointer(key_at), width, numpy.float32), cos, sin, keys[length - 1])
        values[length - 1][:] = carray(pointer(value_at), width, numpy.float32)
        for i in range(head * queries_per_kv, (head + 1) * queries_per_kv):
            query_at = job[QUERY] + 4 * (sequence * job[QUERY_BATCH] + i * job[QUERY_HEAD])
            _rotate(carray(pointer(query_at), width, numpy.float32), cos, sin, query)
            _attend(query, keys[first:], values[first:], scaling, weights, out[sequence * heads * queries_per_kv + i])
        finish(job_pointer)


_ATTEND_HEADS, ATTEND_TO_CACHE = _attend_heads.address, _attend_to_cache.address


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attend to all keys: softmax(query keys^T * scaling) values, float32 [batch, 1, heads, width].

    query: [batch, heads, 1, width]; keys, values: [batch, key heads, length, width], contiguous within a head; all float32.
    heads is a multiple of key heads: consecutive queries share a key head.
    """
    batch, heads, _, width = query.shape
    query = query.contiguous()
    out = torch.empty((batch, 1, heads, width))
    factor = ctypes.c_float(scaling)
    _, key_heads, length, _ = keys.shape
    threads.run(_ATTEND_HEADS, threads.Job(
        *[0] * FIRST, query.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr(), ctypes.addressof(factor), 0, 0, 0, 0,
        batch, heads, heads // key_heads, length, width, *keys.stride()[:2], *values.stride()[:2],
    ))  # fmt: skip
    return out


def can_attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `attend` supports these: one token, float32, on the CPU, heads of one width, each head contiguous."""
    return (
        query.shape[2] == 1 and query.dtype == keys.dtype == values.dtype == torch.float32 and query.device.type == "cpu"
        and keys.shape == values.shape and keys.stride()[2:] == values.stride()[2:] == (keys.shape[3], 1)
    )
