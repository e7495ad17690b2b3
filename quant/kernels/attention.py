"""Attention of the token that is being decoded: one query per head against all keys so far.

Per head, softmax(q k^T * scaling) v, on torch's own threads; keys and values are read in place, from the cache. Those that are
needed next are asked for meanwhile (quant.kernels.prefetch): the heads of several sequences come from memory, in short pieces.
`attend` is called by itself. ATTEND_TO_CACHE is the loop of a job in a program (quant.compiled.threads): it also rotates query
and key by their position (RoPE, Su et al. 2021, in halves as in Llama) and writes the new key and value into the cache.
"""

from __future__ import annotations

import ctypes

import numpy
import torch
from numba import carray, float32, njit

from quant.compiled import threads
from quant.compiled.threads import FIRST, claim, compiled_loop, finish, pointer
from quant.kernels.exponential import exp
from quant.kernels.prefetch import LINE, ask

# Places in a job of quant.compiled.threads: addresses of float32 numbers, then sizes, from KEYS_BATCH on strides in numbers.
# Only ATTEND_TO_CACHE uses NEW_KEY, NEW_VALUE, COS, SIN and what follows VALUES_HEAD. HEADS: of keys. POSITION_BATCH: stride of
# COS and SIN. ROTATED: dimensions of a head, from the first, that RoPE turns. WINDOW: most tokens that a new one attends to.
# THREADS: that share the heads.
(QUERY, KEYS, VALUES, OUT, SCALING, NEW_KEY, NEW_VALUE, COS, SIN, BATCH, HEADS, QUERIES_PER_KV, LENGTH, WIDTH, KEYS_BATCH,
 KEYS_HEAD, VALUES_BATCH, VALUES_HEAD, QUERY_BATCH, QUERY_HEAD, NEW_KEY_BATCH, NEW_KEY_HEAD, NEW_VALUE_BATCH, NEW_VALUE_HEAD,
 POSITION_BATCH, ROTATED, WINDOW, THREADS, FIELDS) = range(FIRST, FIRST + 29)
ASKED_BYTES = 2**18  # of keys or values that are asked for before they are needed: they stay in a core's second cache
_FAST = {"reassoc", "contract", "nsz"}


@njit(nogil=True)
def _ask_for_row(address, row, width):
    """Ask memory for a row of float32 numbers, one of those behind an address."""
    start = address + 4 * row * width
    for line in range(0, 4 * width, LINE):
        ask(start + line)


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _attend(queries, keys, values, scaling, weights, out, next_keys):
    """Attention of queries that share a head of keys and values, each of which is read from memory once.

    queries, out: float32 [queries, width]; keys, values: float32 [length, width]; weights: float32 [queries, length], scratch;
    next_keys: address of the keys that this thread probably reads next, as many, or 0.
    """
    (length, width), count = keys.shape, len(queries)
    asked = min(length, ASKED_BYTES // (4 * width))  # rows: more would be forgotten before they are read
    for j in range(length):
        if j < asked:
            _ask_for_row(values.ctypes.data, j, width)
        key = keys[j]
        for i in range(count):
            dot, query = float32(0), queries[i]
            for d in range(width):
                dot += query[d] * key[d]
            weights[i, j] = dot * scaling
    for i in range(count):
        of_query, total = weights[i], float32(0)
        largest = of_query.max()
        for j in range(length):
            of_query[j] = exp(of_query[j] - largest)
            total += of_query[j]
        for j in range(length):
            of_query[j] /= total
    out[:] = 0
    for j in range(0, length, 4):
        if next_keys and j < asked:
            for k in range(4):
                _ask_for_row(next_keys, j + k, width)
        some = min(4, length - j)
        for i in range(count):
            result = out[i]
            if some == 4:
                a, b, c, e = weights[i, j], weights[i, j + 1], weights[i, j + 2], weights[i, j + 3]
                for d in range(width):
                    result[d] += a * values[j, d] + b * values[j + 1, d] + c * values[j + 2, d] + e * values[j + 3, d]
            else:
                for k in range(j, length):
                    for d in range(width):
                        result[d] += weights[i, k] * values[k, d]


@njit(nogil=True)
def _place_of(job, part, start, to_next_sequence, to_next_head):
    """Address of what a part has in a buffer: a part is one head of keys and values, of one sequence."""
    return job[start] + 4 * (part // job[HEADS] * job[to_next_sequence] + part % job[HEADS] * job[to_next_head])


@njit(nogil=True)
def _keys_and_values(job, part):
    """float32 [LENGTH, WIDTH] each."""
    keys = _place_of(job, part, KEYS, KEYS_BATCH, KEYS_HEAD)
    values = _place_of(job, part, VALUES, VALUES_BATCH, VALUES_HEAD)
    shape = job[LENGTH], job[WIDTH]
    return carray(pointer(keys), shape, numpy.float32), carray(pointer(values), shape, numpy.float32)


@compiled_loop
def _attend_heads(job_pointer):
    job = carray(job_pointer, FIELDS)
    heads, count, length, width = job[HEADS], job[QUERIES_PER_KV], job[LENGTH], job[WIDTH]
    scaling = carray(pointer(job[SCALING]), 1, numpy.float32)[0]
    queries = carray(pointer(job[QUERY]), (job[BATCH] * heads, count, width), numpy.float32)
    out = carray(pointer(job[OUT]), (job[BATCH] * heads, count, width), numpy.float32)
    weights = numpy.empty((count, length), numpy.float32)
    while True:
        part = claim(job_pointer)
        if part >= len(queries):
            break
        keys, values = _keys_and_values(job, part)
        _attend(queries[part], keys, values, scaling, weights, out[part], 0)
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
    heads, count, length, width = job[HEADS], job[QUERIES_PER_KV], job[LENGTH], job[WIDTH]
    parts, first = job[BATCH] * heads, max(0, length - job[WINDOW])
    scaling = carray(pointer(job[SCALING]), 1, numpy.float32)[0]
    out = carray(pointer(job[OUT]), (parts, count, width), numpy.float32)
    weights, queries = numpy.empty((count, length - first), numpy.float32), numpy.empty((count, width), numpy.float32)
    while True:
        part = claim(job_pointer)
        if part >= parts:
            break
        sequence, head, following = part // heads, part % heads, part + job[THREADS]
        cos = carray(pointer(job[COS] + 4 * sequence * job[POSITION_BATCH]), job[ROTATED], numpy.float32)
        sin = carray(pointer(job[SIN] + 4 * sequence * job[POSITION_BATCH]), job[ROTATED], numpy.float32)
        keys, values = _keys_and_values(job, part)
        key_at = _place_of(job, part, NEW_KEY, NEW_KEY_BATCH, NEW_KEY_HEAD)
        value_at = _place_of(job, part, NEW_VALUE, NEW_VALUE_BATCH, NEW_VALUE_HEAD)
        _rotate(carray(pointer(key_at), width, numpy.float32), cos, sin, keys[length - 1])
        values[length - 1][:] = carray(pointer(value_at), width, numpy.float32)
        for i in range(count):
            query_at = job[QUERY] + 4 * (sequence * job[QUERY_BATCH] + (head * count + i) * job[QUERY_HEAD])
            _rotate(carray(pointer(query_at), width, numpy.float32), cos, sin, queries[i])
        next_keys = 0
        if following < parts:
            next_keys = _place_of(job, following, KEYS, KEYS_BATCH, KEYS_HEAD) + 4 * first * width
        _attend(queries, keys[first:], values[first:], scaling, weights, out[part], next_keys)
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
        batch, key_heads, heads // key_heads, length, width, *keys.stride()[:2], *values.stride()[:2],
    ))  # fmt: skip
    return out


def can_attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `attend` supports these: one token, float32, on the CPU, heads of one width, each head contiguous."""
    return (
        query.shape[2] == 1 and query.dtype == keys.dtype == values.dtype == torch.float32 and query.device.type == "cpu"
        and keys.shape == values.shape and keys.stride()[2:] == values.stride()[2:] == (keys.shape[3], 1)
    )
