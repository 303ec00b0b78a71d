"""Operations of isotropic rotation, on directions."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.ops.checks import (
    OUTPUT_DTYPES,
    check_dtype,
    check_like,
    check_state,
    check_step,
    check_stream,
    flat,
    flat_arrays,
)
from fastmsgm.ops.dispatch import kernels
from fastmsgm.ops.operation import operation
from fastmsgm.reference import ROTATION_COLUMNS


@operation("rotation_perturb_", mutates_args=("u_t", "model_input", "target"))
def rotation_perturb_(
    u0: Tensor,
    coefficients: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    u_t: Tensor | None,
    model_input: Tensor | None,
    target: Tensor | None,
) -> None:
    """Perturb directions by the heat kernel of the sphere, as ``reference.rotation_perturb``.

    Args:
        u0: (n, ...) float32 with at least two features; divided by its norms first.
        coefficients: (n, 4) float32, fractional row of the table, spread, scale of the target and
            c_in of each sample.
        table: (2, NB, NZ) float32, V and g.
        stream: (3,) int64, the noise stream (``rng.stream``).
        step: The step, counted from the stream's first.
        u_t: Like u0, or None; receives the perturbed directions.
        model_input: Like u0 in the network's dtype, or None; receives c_in u_t.
        target: Like u0, or None; receives the target of denoising score matching.

    Raises:
        TypeError: The dtype of an array is wrong.
        ValueError: Another property of an argument is wrong.
    """
    check_state("u0", u0, least_features=2)
    if coefficients.shape != (u0.shape[0], 4):
        raise ValueError(
            f"coefficients must have shape ({u0.shape[0]}, 4), got {tuple(coefficients.shape)}"
        )
    check_dtype("coefficients", coefficients)
    _check_angles("table", table, (2, "NB", "NZ"), u0)
    check_stream(stream, u0)
    for name, tensor in (("u_t", u_t), ("target", target)):
        check_like(name, tensor, "u0", u0)
    check_like("model_input", model_input, "u0", u0, OUTPUT_DTYPES)
    outputs = (None if t is None else flat(t) for t in (u_t, model_input, target))
    kernels(u0, "rotation").rotation_perturb(
        flat(u0), coefficients.contiguous(), table, stream, step, *outputs
    )


@operation(
    "rotation_step_",
    mutates_args=("u", "first_nonfinite_step", "prev_denoised", "model_input"),
)
def rotation_step_(
    u: Tensor,
    model_output: Tensor,
    table: Tensor,
    angles: Tensor | None,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    geodesic: bool,
) -> None:
    """Take one reverse step of isotropic rotation, in place.

    Arguments as of ``reference.rotation_step``, with arrays of shape (n, ...) and u as ``out``.

    Raises:
        TypeError: The dtype of an array is wrong.
        ValueError: Another property of an argument is wrong.
    """
    _step(
        u,
        model_output,
        table,
        angles,
        stream,
        step,
        first_nonfinite_step,
        u,
        prev_denoised,
        model_input,
        geodesic,
    )


@operation("rotation_step", mutates_args=("first_nonfinite_step", "prev_denoised", "model_input"))
def rotation_step(
    u: Tensor,
    model_output: Tensor,
    table: Tensor,
    angles: Tensor | None,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    geodesic: bool,
) -> Tensor:
    """``rotation_step_`` out of place: return the new directions and leave u unchanged."""
    out = torch.empty_like(u)
    _step(
        u,
        model_output,
        table,
        angles,
        stream,
        step,
        first_nonfinite_step,
        out,
        prev_denoised,
        model_input,
        geodesic,
    )
    return out


def _step(
    u: Tensor,
    model_output: Tensor,
    table: Tensor,
    angles: Tensor | None,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    out: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    geodesic: bool,
) -> None:
    _check(
        u,
        model_output,
        table,
        angles,
        stream,
        step,
        first_nonfinite_step,
        prev_denoised,
        model_input,
        geodesic,
    )
    u, model_output, prev_denoised, model_input = flat_arrays(
        u, model_output, prev_denoised, model_input
    )
    kernels(u, "rotation").rotation_step(
        u,
        model_output,
        table,
        angles,
        stream,
        step,
        first_nonfinite_step,
        flat(out),
        prev_denoised,
        model_input,
        geodesic,
    )


def _check(
    u: Tensor,
    model_output: Tensor,
    table: Tensor,
    angles: Tensor | None,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    geodesic: bool,
) -> None:
    check_state("u", u, least_features=2)
    check_step(
        "u",
        u,
        model_output,
        table,
        ROTATION_COLUMNS,
        stream,
        step,
        first_nonfinite_step,
        ("prev_denoised", prev_denoised),
        model_input,
    )
    if angles is not None:
        _check_angles("angles", angles, (table.shape[0], "NZ"), u)
        if geodesic:
            raise ValueError(
                "angles are for heat-kernel noise, which a geodesic step does not use: give "
                "angles=None"
            )


def _check_angles(name: str, table: Tensor, shape: tuple[int | str, ...], u: Tensor) -> None:
    """Check a table over the angle's normal.

    Args:
        name: Name of the table, for errors.
        table: float32.
        shape: Sizes of its axes; a name stands for any size of at least 2.
        u: The directions, for their device.

    Raises:
        ValueError: The table is of another shape, dtype or device, or not contiguous.
    """
    fits = len(table.shape) == len(shape) and all(
        size >= 2 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(table.shape, shape, strict=True)
    )
    if (
        not fits
        or table.dtype != torch.float32
        or not table.is_contiguous()
        or table.device != u.device
    ):
        sizes = ", ".join(map(str, shape))
        raise ValueError(
            f"{name} must be float32 of shape ({sizes}), contiguous on {u.device}, with at least 2 "
            f"nodes an axis, got {table.dtype} {tuple(table.shape)} with strides {table.stride()} "
            f"on {table.device}"
        )
