"""Operations of isotropic rotation, on directions."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.ops.checks import (
    OUTPUT_DTYPES,
    check_directions,
    check_dtype,
    check_like,
    check_step,
    check_stream,
    rows,
    step_rows,
)  # fmt: skip
from fastmsgm.ops.dispatch import kernels
from fastmsgm.reference import ROTATION_COLUMNS


@torch.library.custom_op("fastmsgm::rotation_perturb_", mutates_args=("u_t", "net_in", "target"))
def rotation_perturb_(
    u0: Tensor, coefficients: Tensor, table: Tensor, stream: Tensor, step: int,
    u_t: Tensor | None, net_in: Tensor | None, target: Tensor | None,
) -> None:  # fmt: skip
    """Noise directions once by the heat kernel of the sphere: u_t, the network's input c_in u_t, and the target of
    denoising score matching, each where given (``reference.rotation_perturb``).

    Args:
        u0: (n, ...) float32, at least two features; divided by its norm.
        coefficients: (n, 4) float32: fractional row of the table, spread, target's scale, c_in of each sample.
        table: (2, NB, NZ) float32: V and g.
        stream, step: the noise's address (``fastmsgm.rng``).
        u_t, target: like u0.    net_in: like u0, in the network's dtype.
    """
    check_directions("u0", u0)
    if coefficients.shape != (u0.shape[0], 4):
        raise ValueError(f"coefficients must have shape ({u0.shape[0]}, 4), got {tuple(coefficients.shape)}")
    check_dtype("coefficients", coefficients)
    _check_angles("table", table, (2, "NB", "NZ"), u0)
    check_stream(stream, u0)
    for name, tensor in (("u_t", u_t), ("target", target)):
        check_like(name, tensor, "u0", u0)
    check_like("net_in", net_in, "u0", u0, OUTPUT_DTYPES)
    outputs = (None if t is None else rows(t) for t in (u_t, net_in, target))
    kernels(u0, "rotation").rotation_perturb(rows(u0), coefficients.contiguous(), table, stream, step, *outputs)


@torch.library.custom_op("fastmsgm::rotation_step_", mutates_args=("u", "bad", "history", "net_in"))
def rotation_step_(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    """One reverse step of a rotation, in place; the arguments are those of ``reference.rotation_step``."""
    _step(u, f, table, angles, stream, step, bad, u, history, net_in, geodesic)


@torch.library.custom_op("fastmsgm::rotation_step", mutates_args=("bad", "history", "net_in"))
def rotation_step(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> Tensor:  # fmt: skip
    """``rotation_step_`` out of place: u stays as it is and the new directions are returned."""
    out = torch.empty_like(u)
    _step(u, f, table, angles, stream, step, bad, out, history, net_in, geodesic)
    return out


def _step(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    _check(u, f, table, angles, stream, step, bad, history, net_in, geodesic)
    u, f, history, net_in = step_rows(u, f, history, net_in)
    kernels(u, "rotation").rotation_step(u, f, table, angles, stream, step, bad, rows(out), history, net_in, geodesic)


for _op in (rotation_perturb_, rotation_step_):
    _op.register_fake(lambda *_, **__: None)
rotation_step.register_fake(lambda u, *_, **__: torch.empty_like(u))


def _check(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    check_directions("u", u)
    check_step("u", u, f, table, ROTATION_COLUMNS, stream, step, bad, history, net_in)
    if angles is not None:
        _check_angles("angles", angles, (table.shape[0], "NZ"), u)
        if geodesic:
            raise ValueError("angles are for heat-kernel noise, which a geodesic step has none of: give angles=None")


def _check_angles(name: str, table: Tensor, shape: tuple[int | str, ...], u: Tensor) -> None:
    """A table over the angle's normal, its sizes given or named; a named one is at least 2."""
    fits = len(table.shape) == len(shape) and all(
        size >= 2 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(table.shape, shape, strict=True)
    )
    if not fits or table.dtype != torch.float32 or not table.is_contiguous() or table.device != u.device:
        sizes = ", ".join(map(str, shape))
        raise ValueError(
            f"{name} must be float32 of shape ({sizes}), contiguous on {u.device}, with at least 2 nodes an axis, got "
            f"{table.dtype} {tuple(table.shape)} with strides {table.stride()} on {table.device}"
        )
