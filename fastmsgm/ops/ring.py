"""Operations of rotations around a ring."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.ops.checks import check_directions, check_step, rows, step_rows
from fastmsgm.ops.dispatch import kernels
from fastmsgm.reference import RING_COLUMNS


@torch.library.custom_op("fastmsgm::ring_step_", mutates_args=("x", "bad", "history", "net_in"))
def ring_step_(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, noisy: bool,
) -> None:  # fmt: skip
    """One reverse step of rotations around a ring, in place; the arguments are those of ``reference.ring_step``."""
    _step(x, f, table, stream, step, bad, x, history, net_in, restart, noisy)


@torch.library.custom_op("fastmsgm::ring_step", mutates_args=("bad", "history", "net_in"))
def ring_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, noisy: bool,
) -> Tensor:  # fmt: skip
    """``ring_step_`` out of place: x stays as it is and the new states are returned."""
    out = torch.empty_like(x)
    _step(x, f, table, stream, step, bad, out, history, net_in, restart, noisy)
    return out


def _step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, noisy: bool,
) -> None:  # fmt: skip
    _check(x, f, table, stream, step, bad, history, net_in, restart)
    x, f, history, net_in = step_rows(x, f, history, net_in)
    kernels(x, "ring").ring_step(x, f, table, stream, step, bad, rows(out), history, net_in, restart, noisy)


ring_step_.register_fake(lambda *_, **__: None)
ring_step.register_fake(lambda x, *_, **__: torch.empty_like(x))


def _check(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, history: Tensor | None,
    net_in: Tensor | None, restart: bool,
) -> None:  # fmt: skip
    check_directions("x", x)
    check_step("x", x, f, table, RING_COLUMNS, stream, step, bad, history, net_in)
    if restart and history is None:
        raise ValueError("restart starts from history, got None: give what the step without restart wrote to")
