# pyright: reportArgumentType=false, reportCallIssue=false
"""Triton kernel of the exponentiated gradient: ``egd_step`` as in ``fastmsgm.reference``, one pass over flat arrays.

A program owns BLOCK neighbouring weights. Their number is no constant of the kernel, so that parameters of all sizes
share one compiled kernel; whole quads of weights are accessed 16 bytes at a time, the up to three after them alone.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import device
from .maths import LOG2_E, flip

BLOCK = 4096  # a program's weights
_TINY, _HUGE = tl.constexpr(2.0**-126), tl.constexpr(2.0**128 - 2.0**104)
_LARGEST = tl.constexpr(80 / 0.6931471805599453)  # exponent of 2, as ``reference.egd_step`` has it


@triton.jit(do_not_specialize=["n"])
def _egd_step_kernel(w_ptr, g_ptr, lr_ptr, n, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    w_ptr += first
    g_ptr += first
    minus_lr = tl.load(lr_ptr) * -LOG2_E
    count = tl.minimum(n - first, BLOCK).to(tl.int32)
    whole = count // 4 * 4  # the compiler sees a multiple of 4: one mask for a quad keeps the accesses 16 bytes wide
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
    # On floats: tests on the bits of all weights wait for their updates packed into a register, two instructions each.
    normal = (size >= _TINY) & (size <= _HUGE)
    tl.store(w_ptrs, tl.where(normal, flip(new, sign), w), mask=mask)


def egd_step(w: Tensor, g: Tensor, lr: Tensor) -> None:
    """One step of the exponentiated gradient, in place; the arguments are those of ``reference.egd_step``."""
    n = w.numel()
    with device(w):
        _egd_step_kernel[(triton.cdiv(n, BLOCK),)](w, g, lr, n, BLOCK)
