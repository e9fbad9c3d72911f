"""What threads need that numba lacks: atomic operations, prefetching, yielding and a clock.

Each is one instruction or one call of the C library, written in LLVM's terms. Arrays are
one-dimensional and contiguous; an index is not checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
CLOCK_MONOTONIC = 1

# The decorator takes the first parameter away, which no annotation says.
intrinsic: Any = _intrinsic


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """The address of `array[index]`."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def atomic_add(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] += value, in one indivisible step; returns what was there before."""
    kind = array.dtype

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _element(context, builder, signature.args[0], arguments[0], arguments[1])
        operation = "fadd" if isinstance(kind, types.Float) else "add"
        return builder.atomic_rmw(operation, address, arguments[2], "acq_rel")

    return kind(array, types.intp, kind), codegen


@intrinsic
def atomic_load(typingctx: Any, array: Any, index: Any) -> Any:
    """array[index] (integers); what its writer wrote before it is seen from here on."""
    kind = array.dtype

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _element(context, builder, signature.args[0], arguments[0], arguments[1])
        return builder.load_atomic(address, "acquire", kind.bitwidth // 8)

    return kind(array, types.intp), codegen


@intrinsic
def atomic_store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value (integers), after all that was written before it."""
    kind = array.dtype

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _element(context, builder, signature.args[0], arguments[0], arguments[1])
        builder.store_atomic(arguments[2], address, "release", kind.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, kind), codegen


@intrinsic
def atomic_swap(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value (integers), in one indivisible step; returns what was there before."""
    kind = array.dtype

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _element(context, builder, signature.args[0], arguments[0], arguments[1])
        return builder.atomic_rmw("xchg", address, arguments[2], "acq_rel")

    return kind(array, types.intp, kind), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Fetch array[index] into the nearest cache, to be written to."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _element(context, builder, signature.args[0], arguments[0], arguments[1])
        pointer = _I8.as_pointer()
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32]),
            "llvm.prefetch.p0",
        )
        to_write, nearest, data = _I32(1), _I32(3), _I32(1)
        builder.call(function, [builder.bitcast(address, pointer), to_write, nearest, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def yield_core(typingctx: Any) -> Any:
    """Let another thread have the core, if one waits for it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I32, []), "sched_yield"
        )
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nanoseconds(typingctx: Any) -> Any:
    """The monotonic clock, in nanoseconds."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        times = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
        address = builder.bitcast(times, _I64.as_pointer())
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_I32, [_I32, _I64.as_pointer()]),
            "clock_gettime",
        )
        builder.call(function, [_I32(CLOCK_MONOTONIC), address])
        seconds = builder.load(address)
        rest = builder.load(builder.gep(address, [_I64(1)]))
        return builder.add(builder.mul(seconds, _I64(1_000_000_000)), rest)

    return types.int64(), codegen
