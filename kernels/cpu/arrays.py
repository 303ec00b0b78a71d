"""Arrays at the boundary of the CPU kernels: tensors as flat arrays, the network's number formats, copies, prefetching.

An optional array that is absent is empty. What a network writes or reads is a side of it, (format, floats, bits): a
float32 array, or the bits of 16-bit floats, so that one compiled kernel serves all formats.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from .compile import routine
from .scalar import from_bfloat, from_half, intrinsic, to_bfloat, to_half

ABSENT, FLOAT, _BFLOAT, _HALF = range(4)  # formats
_FORMATS = {torch.float32: FLOAT, torch.bfloat16: _BFLOAT, torch.float16: _HALF}
_NO_FLOATS, _NO_BITS = np.empty(0, np.float32), np.empty(0, np.uint16)
_LINE = 64  # bytes of a cache line


def flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy().reshape(-1)


def optional(tensor: Tensor | None) -> np.ndarray:
    return _NO_FLOATS if tensor is None else flat(tensor)


def network_side(tensor: Tensor | None) -> tuple[int, np.ndarray, np.ndarray]:
    if tensor is None:
        return ABSENT, _NO_FLOATS, _NO_BITS
    if tensor.dtype == torch.float32:
        return FLOAT, flat(tensor), _NO_BITS
    return _FORMATS[tensor.dtype], _NO_FLOATS, flat(tensor.detach().view(torch.uint16))


def step_arrays(
    x: Tensor, f: Tensor, bad: Tensor, out: Tensor, history: Tensor | None, net_in: Tensor | None
) -> tuple[int | np.ndarray, ...]:
    """What every step works on, in the order in which its kernel takes them."""
    return flat(x), *network_side(f), bad.numpy(), flat(out), optional(history), *network_side(net_in)


def address(stream: Tensor, step: int, rows: int | None = None) -> tuple[np.ndarray, int]:
    """The stream's numbers, and the step counted from its first: part of every address, and a row of a table of so many
    ``rows``."""
    numbers = stream.numpy()
    step += int(numbers[2])
    if rows is not None and not 0 <= step < rows:
        raise ValueError(f"step, from the stream's first on, must be a row of the table, 0 .. {rows - 1}, got {step}")
    return numbers, step


@routine
def copy(size, x, out):
    for i in range(size):
        out[i] = x[i]


# ---- sides of the network ----


@routine
def widen(size, kind, bits, x):
    """The 16-bit floats of a side in float32."""
    if kind == _BFLOAT:
        for i in range(size):
            x[i] = from_bfloat(bits[i])
    else:
        for i in range(size):
            x[i] = from_half(bits[i])


@routine
def write(size, kind, x, floats, bits):
    """x, rounded to the side's format."""
    if kind == FLOAT:
        copy(size, x, floats)
    elif kind == _BFLOAT:
        for i in range(size):
            bits[i] = to_bfloat(x[i])
    else:
        for i in range(size):
            bits[i] = to_half(x[i])


# ---- prefetching: to read, into the L2 cache ----


@intrinsic
def prefetch(typingctx, start, stop, arrays):
    """Ask for ``[start:stop]`` of a tuple of arrays ahead of its use; what lies behind an array's end is let be."""

    def codegen(context, builder, signature, args):
        for kind, array in zip(signature.args[2], cgutils.unpack_tuple(builder, args[2]), strict=True):
            struct = context.make_array(kind)(context, builder, array)
            end = builder.select(builder.icmp_signed("<", args[1], struct.nitems), args[1], struct.nitems)
            step = ir.Constant(end.type, _per_line(kind))
            with cgutils.for_range_slice(builder, args[0], end, step) as (index, _):
                _prefetch_line(builder, builder.gep(struct.data, [index]))
        return context.get_dummy_value()

    return types.none(types.intp, types.intp, arrays), codegen


def prefetch_some(context, builder, kinds, arrays, start, count):
    """Within an intrinsic: ask for so many elements of a tuple of arrays, but of empty ones."""
    for kind, array in zip(kinds, cgutils.unpack_tuple(builder, arrays), strict=True):
        struct = context.make_array(kind)(context, builder, array)
        with builder.if_then(builder.icmp_signed(">", struct.nitems, ir.Constant(struct.nitems.type, 0))):
            for i in range(0, count, _per_line(kind)):  # behind the end there is nothing to be had, and no harm
                _prefetch_line(builder, builder.gep(struct.data, [builder.add(start, ir.Constant(start.type, i))]))


def _per_line(kind):
    return _LINE * 8 // kind.dtype.bitwidth


def _prefetch_line(builder, pointer):
    i32, data = ir.IntType(32), ir.IntType(8).as_pointer()
    function = ir.FunctionType(ir.VoidType(), [data, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(pointer, data), i32(0), i32(2), i32(1)])
