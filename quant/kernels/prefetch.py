"""Asks memory for codes before they are needed.

The processor foresees reads within a page of 4 KB and starts anew in the next one. A loop that asks for a line two pages ahead
reads a large weight 1.3 to 1.6 times as fast; nothing changes for a weight that is in a cache.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

AHEAD = 8192  # bytes: less comes too late; more is lost where a part of a weight ends

LINE = 64  # bytes of a cache line
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Emit a request for the cache line AHEAD bytes behind an address."""
    request(builder, builder.gep(address, [ir.Constant(_I64, AHEAD)]))


def request(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Emit a request for the cache line of an address; one that belongs to no memory is ignored."""
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    to_read, into_all_caches, data = (ir.Constant(_I32, number) for number in (0, 3, 1))
    builder.call(get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [address, to_read, into_all_caches, data])


def request_lines(builder: ir.IRBuilder, address: ir.Value, step: ir.Value, count: ir.Value) -> None:
    """Emit requests for the cache lines of a step, `count` of them, where every step has as many. All are int64."""
    one, start = ir.Constant(_I64, 1), builder.mul(step, count)
    with cgutils.for_range_slice(builder, start, builder.add(start, count), one, _I64) as (line, _):
        offset = builder.mul(line, ir.Constant(_I64, LINE))
        request(builder, builder.inttoptr(builder.add(address, offset), _I8.as_pointer()))


@intrinsic
def ask(typing, address):
    """Ask for the cache line of an int64 address, from a compiled loop."""

    def generate(context, builder, signature, arguments):
        request(builder, builder.inttoptr(arguments[0], _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), generate
