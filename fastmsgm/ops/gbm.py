"""Operations of geometric Brownian motion, and the plain normals.

No argument of an operation has a default, here and in the other families: torch 2.11 loses trailing arguments with
defaults that are written to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.ops.checks import (
    OUTPUT_DTYPES,
    check_dtype,
    check_kind,
    check_like,
    check_state,
    check_step,
    check_stream,
    rows,
    step_rows,
)
from fastmsgm.ops.dispatch import kernels
from fastmsgm.reference import COLUMNS


@torch.library.custom_op("fastmsgm::fill_normal_", mutates_args=("out",))
def fill_normal_(out: Tensor, stream: Tensor, kind: int, step: int) -> None:
    """Fill ``out`` (n, ...) float32 with the normals of ``kind`` at ``step``; row 0 is sample ``stream[1]``."""
    check_state("out", out)
    check_stream(stream, out)
    check_kind(kind)
    kernels(out, "gbm").fill_normal(rows(out), stream, kind, step)


@torch.library.custom_op("fastmsgm::gbm_perturb_", mutates_args=("x_t", "net_in", "z"))
def gbm_perturb_(
    x0: Tensor, coefficients: Tensor, stream: Tensor, kind: int, step: int,
    x_t: Tensor | None, net_in: Tensor | None, z: Tensor | None,
) -> None:  # fmt: skip
    """Noise x0 once: x_t = x0 exp(shift + s z), the network's input c_in log|x_t|, and z, each where given.

    Args:
        x0: (n, ...) float32.
        coefficients: (n, 3) float32: shift, s, c_in of each sample.
        stream, kind, step: the noise's address (``fastmsgm.rng``).
        x_t, z: like x0.    net_in: like x0, in the network's dtype.
    """
    check_state("x0", x0)
    if coefficients.shape != (x0.shape[0], 3):
        raise ValueError(f"coefficients must have shape ({x0.shape[0]}, 3), got {tuple(coefficients.shape)}")
    check_dtype("coefficients", coefficients)
    check_stream(stream, x0)
    check_kind(kind)
    for name, tensor in (("x_t", x_t), ("z", z)):
        check_like(name, tensor, "x0", x0)
    check_like("net_in", net_in, "x0", x0, OUTPUT_DTYPES)
    outputs = (None if t is None else rows(t) for t in (x_t, net_in, z))
    kernels(x0, "gbm").gbm_perturb(rows(x0), coefficients.contiguous(), stream, kind, step, *outputs)


@torch.library.custom_op("fastmsgm::gbm_step_", mutates_args=("x", "bad", "history", "net_in"))
def gbm_step_(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, stein: bool, linear: bool, log_state: bool,
) -> None:  # fmt: skip
    """One reverse step of geometric Brownian motion, in place; the arguments are those of ``reference.gbm_step``."""
    _step(x, f, table, stream, step, bad, x, history, net_in, stein, linear, log_state)


@torch.library.custom_op("fastmsgm::gbm_step", mutates_args=("bad", "history", "net_in"))
def gbm_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, stein: bool, linear: bool, log_state: bool,
) -> Tensor:  # fmt: skip
    """``gbm_step_`` out of place: x stays as it is and the new state is returned."""
    out = torch.empty_like(x)
    _step(x, f, table, stream, step, bad, out, history, net_in, stein, linear, log_state)
    return out


def _step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, stein: bool, linear: bool, log_state: bool,
) -> None:  # fmt: skip
    _check(x, f, table, stream, step, bad, history, net_in, log_state)
    x, f, history, net_in = step_rows(x, f, history, net_in)
    kernels(x, "gbm").gbm_step(x, f, table, stream, step, bad, rows(out), history, net_in, stein, linear, log_state)


for _op in (fill_normal_, gbm_perturb_, gbm_step_):
    _op.register_fake(lambda *_, **__: None)
gbm_step.register_fake(lambda x, *_, **__: torch.empty_like(x))


def _check(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, history: Tensor | None,
    net_in: Tensor | None, log_state: bool,
) -> None:  # fmt: skip
    check_state("x", x)
    check_step("x", x, f, table, COLUMNS, stream, step, bad, history, net_in)
    if not log_state and not (history is None and net_in is None):
        raise ValueError("history and net_in need the logarithm of the state: give log_state=True")
