"""Arrays at the boundary of the CPU kernels: tensors as flat arrays, the network's number formats, copies, prefetching.

An optional array that is absent is empty. What a network writes or reads is a side of it, (format, floats, bits): a
float32 array, or the bits of 16-bit floats, so that one compiled kernel serves all formats.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from torch import Tensor

from .scalar import from_bfloat, from_half, intrinsic, to_bfloat, to_half

_ABSENT, _FLOAT, _BFLOAT, _HALF = range(4)  # formats
_FORMATS = {torch.float32: _FLOAT, torch.bfloat16: _BFLOAT, torch.float16: _HALF}
_NO_FLOATS, _NO_BITS = np.empty(0, np.float32), np.empty(0, np.uint16)
_LINE = 64  # bytes of a cache line


def flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy().reshape(-1)


def optional(tensor: Tensor | None) -> np.ndarray:
    return _NO_FLOATS if tensor is None else flat(tensor)


def network_side(tensor: Tensor | None) -> tuple[int, np.ndarray, np.ndarray]:
    if tensor is None:
        return _ABSENT, _NO_FLOATS, _NO_BITS
    if tensor.dtype == torch.float32:
        return _FLOAT, flat(tensor), _NO_BITS
    return _FORMATS[tensor.dtype], _NO_FLOATS, flat(tensor.detach().view(torch.uint16))


def step_arrays(
    x: Tensor, f: Tensor, bad: Tensor, out: Tensor, history: Tensor | None, net_in: Tensor | None
) -> tuple[np.ndarray | tuple[int, np.ndarray, np.ndarray], ...]:
    """What every step works on, in the order in which its kernel takes them."""
    return flat(x), network_side(f), bad.numpy(), flat(out), optional(history), network_side(net_in)


@njit(nogil=True, cache=True)
def copy(size, x, out):
    for i in range(size):
        out[i] = x[i]


# ---- sides of the network ----


@njit(nogil=True, cache=True)
def present(side):
    return side[0] != _ABSENT


@njit(nogil=True, cache=True)
def read(side, start, stop, room):
    """``side[start:stop]`` in float32: the array itself where it holds that, else ``room``."""
    kind, floats, bits = side
    if kind == _FLOAT:
        return floats[start:stop]
    _widen(stop - start, kind, bits[start:stop], room)
    return room


@njit(nogil=True, cache=True)
def _widen(size, kind, bits, x):
    if kind == _BFLOAT:
        for i in range(size):
            x[i] = from_bfloat(bits[i])
    else:
        for i in range(size):
            x[i] = from_half(bits[i])


@njit(nogil=True, cache=True)
def write(side, start, stop, x):
    """``side[start:stop]`` = x, rounded to its format."""
    kind, floats, bits = side
    _narrow(stop - start, kind, x, floats[start:stop], bits[start:stop])


@njit(nogil=True, cache=True)
def _narrow(size, kind, x, floats, bits):
    if kind == _FLOAT:
        copy(size, x, floats)
    elif kind == _BFLOAT:
        for i in range(size):
            bits[i] = to_bfloat(x[i])
    else:
        for i in range(size):
            bits[i] = to_half(x[i])


# ---- prefetching ----


@njit(nogil=True, cache=True)
def prefetch_step(start, stop, x, f, history):
    """What a step reads comes from memory while the noise, which needs none of it, is computed."""
    prefetch(x, start, stop)
    prefetch(f[1], start, stop)
    prefetch(f[2], start, stop)
    prefetch(history, start, stop)


@njit(nogil=True, cache=True)
def prefetch(array, start, stop):
    """Ask for ``array[start:stop]`` ahead of its use; an empty array is let be."""
    for i in range(start, min(stop, len(array)), _LINE // array.itemsize):
        _prefetch_line(array, i)


@intrinsic
def _prefetch_line(typingctx, array, index):
    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [address, i32(0), i32(2), i32(1)])  # to read, into the L2 cache, data
        return context.get_dummy_value()

    return types.none(array, types.intp), codegen
