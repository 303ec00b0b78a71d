"""Arrays at the boundary of the CPU kernels: flat views of tensors, dtypes, copies, prefetching.

An absent optional array is empty. The arrays that a network writes or reads are passed as triples
(format, floats, bits): a float32 array, or the bits of 16-bit floats. So one compiled kernel serves
all dtypes.
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

ABSENT, FLOAT, _BFLOAT, _HALF = range(4)  # formats of a network's arrays
_FORMATS = {torch.float32: FLOAT, torch.bfloat16: _BFLOAT, torch.float16: _HALF}
_NO_FLOATS, _NO_BITS = np.empty(0, np.float32), np.empty(0, np.uint16)
_LINE = 64  # bytes of a cache line


def flat(tensor: Tensor) -> np.ndarray:
    """A flat view of a tensor."""
    return tensor.detach().numpy().reshape(-1)


def optional(tensor: Tensor | None) -> np.ndarray:
    """A flat view of a tensor, or an empty array for None."""
    return _NO_FLOATS if tensor is None else flat(tensor)


def network_side(tensor: Tensor | None) -> tuple[int, np.ndarray, np.ndarray]:
    """The triple (format, floats, bits) of a network's input or output."""
    if tensor is None:
        return ABSENT, _NO_FLOATS, _NO_BITS
    if tensor.dtype == torch.float32:
        return FLOAT, flat(tensor), _NO_BITS
    return _FORMATS[tensor.dtype], _NO_FLOATS, flat(tensor.detach().view(torch.uint16))


def step_arrays(
    x: Tensor,
    model_output: Tensor,
    first_nonfinite_step: Tensor,
    out: Tensor,
    memory: Tensor | None,
    model_input: Tensor | None,
) -> tuple[int | np.ndarray, ...]:
    """The arrays of a step, in the order of its kernel's arguments."""
    return (
        flat(x),
        *network_side(model_output),
        first_nonfinite_step.numpy(),
        flat(out),
        optional(memory),
        *network_side(model_input),
    )


def counter(stream: Tensor, step: int, rows: int | None = None) -> tuple[np.ndarray, int]:
    """Return the stream as an array, and the absolute step.

    Raises:
        ValueError: The step is not a row of a table of ``rows`` rows.
    """
    array = stream.numpy()
    step += int(array[2])
    if rows is not None and not 0 <= step < rows:
        raise ValueError(
            "step, counted from the stream's first step, must be a row of the table, "
            f"0 .. {rows - 1}, got {step}"
        )
    return array, step


@routine
def copy(size, x, out):
    for i in range(size):
        out[i] = x[i]


# ---- inputs and outputs of the network ----


@routine
def widen(size, dtype, bits, x):
    """Convert 16-bit floats to float32."""
    if dtype == _BFLOAT:
        for i in range(size):
            x[i] = from_bfloat(bits[i])
    else:
        for i in range(size):
            x[i] = from_half(bits[i])


@routine
def write(size, dtype, x, floats, bits):
    """Write x, rounded to the network's format."""
    if dtype == FLOAT:
        copy(size, x, floats)
    elif dtype == _BFLOAT:
        for i in range(size):
            bits[i] = to_bfloat(x[i])
    else:
        for i in range(size):
            bits[i] = to_half(x[i])


# ---- prefetching for reads, into the L2 cache ----


@intrinsic
def prefetch_range(typingctx, start, stop, arrays):
    """Prefetch ``[start:stop]`` of each array in a tuple; elements past its end are ignored."""

    def codegen(context, builder, signature, args):
        for array_type, array in zip(
            signature.args[2], cgutils.unpack_tuple(builder, args[2]), strict=True
        ):
            struct = context.make_array(array_type)(context, builder, array)
            end = builder.select(
                builder.icmp_signed("<", args[1], struct.nitems), args[1], struct.nitems
            )
            step = ir.Constant(end.type, _per_line(array_type))
            with cgutils.for_range_slice(builder, args[0], end, step) as (index, _):
                _prefetch_line(builder, builder.gep(struct.data, [index]))
        return context.get_dummy_value()

    return types.none(types.intp, types.intp, arrays), codegen


def prefetch_some(context, builder, array_types, arrays, start, count):
    """Emit, within an intrinsic, the prefetch of ``count`` elements of each non-empty array."""
    for array_type, array in zip(array_types, cgutils.unpack_tuple(builder, arrays), strict=True):
        struct = context.make_array(array_type)(context, builder, array)
        with builder.if_then(
            builder.icmp_signed(">", struct.nitems, ir.Constant(struct.nitems.type, 0))
        ):
            for i in range(0, count, _per_line(array_type)):
                # A prefetch past the end of an array has no effect.
                _prefetch_line(
                    builder,
                    builder.gep(struct.data, [builder.add(start, ir.Constant(start.type, i))]),
                )


def _per_line(array_type):
    """Elements of a cache line."""
    return _LINE * 8 // array_type.dtype.bitwidth


def _prefetch_line(builder, pointer):
    i32, data = ir.IntType(32), ir.IntType(8).as_pointer()
    function = ir.FunctionType(ir.VoidType(), [data, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(pointer, data), i32(0), i32(2), i32(1)])
