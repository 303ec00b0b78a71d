# pyright: reportArgumentType=false, reportCallIssue=false
"""Triton kernel of the exponentiated gradient: ``egd_step`` as in ``fastmsgm.reference``.

It makes one pass over flat arrays. A program owns BLOCK neighbouring weights. The number of weights
is not a compile-time constant, so parameters of all sizes share one compiled kernel. Whole quads of
weights are accessed 16 bytes at a time, and the last one to three weights separately.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastmsgm import constants

from .launch import device
from .maths import LOG2_E, flip

BLOCK = 4096  # weights of a program
_TINY, _HUGE = tl.constexpr(constants.TINY), tl.constexpr(constants.HUGE)
_LARGEST = tl.constexpr(constants.LARGEST_EXPONENT / constants.LN2)  # as an exponent of 2


@triton.jit(do_not_specialize=["n"])
def _egd_step_kernel(w_ptr, g_ptr, lr_ptr, n, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    w_ptr += first
    g_ptr += first
    minus_lr = tl.load(lr_ptr) * -LOG2_E
    count = tl.minimum(n - first, BLOCK).to(tl.int32)
    # The compiler sees a multiple of 4. One mask per quad keeps the accesses 16 bytes wide.
    whole = count // 4 * 4
    lane = tl.arange(0, BLOCK)
    _update(w_ptr + lane, g_ptr + lane, minus_lr, lane < whole)
    lane = whole + tl.arange(0, 4)
    _update(w_ptr + lane, g_ptr + lane, minus_lr, lane < count)


@triton.jit
def _update(w_ptrs, g_ptrs, minus_lr, mask):
    w = tl.load(w_ptrs, mask=mask)
    sign = w.to(tl.uint32, bitcast=True)
    exponent = flip(minus_lr * tl.load(g_ptrs, mask=mask), sign)
    new = w * tl.exp2(tl.clamp(exponent, -_LARGEST, _LARGEST, propagate_nan=tl.PropagateNan.ALL))
    new = tl.clamp(tl.abs(new), _TINY, _HUGE, propagate_nan=tl.PropagateNan.ALL)
    size = tl.abs(w)
    # Compare floats, not bits: the results of tests on the bits would be packed into a register
    # until the updates are done, at two instructions each.
    normal = (size >= _TINY) & (size <= _HUGE)
    tl.store(w_ptrs, tl.where(normal, flip(new, sign), w), mask=mask)


def egd_step(w: Tensor, g: Tensor, lr: Tensor) -> None:
    """Take one step of the exponentiated gradient, in place, as ``reference.egd_step``."""
    n = w.numel()
    with device(w):
        _egd_step_kernel[(triton.cdiv(n, BLOCK),)](w, g, lr, n, BLOCK)
