"""Explicit Runge-Kutta methods for many independent equations, each with steps of its own.

    heun      order 2, 2 stages
    rk4       order 4, 4 stages
    dopri5    order 5 with an error estimate of order 4, 7 stages of which the first is the last of
              the step before (Dormand and Prince, 1980)

Every row z of a batch is one equation. With adaptive steps it has its own step size, so its result
does not depend on the batch that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Called as f(time (k,), z (k, m), rows (k,)): the derivatives (k, m) of those rows of the batch.
Derivative = Callable[[Tensor, Tensor, Tensor], Tensor]
LARGEST_STEPS = 10_000  # of an equation, above which it is given up


class Method(NamedTuple):
    """The coefficients of an explicit method.

    Args:
        nodes: Where in the step the stages are.
        matrix: Weights of the earlier stages in each stage after the first.
        weights: Of the stages in the step.
    """

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


FIXED = {
    "heun": Method((0, 1), ((1,),), (1 / 2, 1 / 2)),
    "rk4": Method(
        (0, 1 / 2, 1 / 2, 1), ((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
}
DOPRI5 = Method(
    (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
)
# The weights of order 5 minus those of order 4.
DOPRI5_ERROR = (
    71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40,
)  # fmt: skip


def fixed_steps(
    f: Derivative, z: Tensor, start: float, end: float, method: Method, steps: int
) -> Tensor:
    """Integrate from ``start`` to ``end`` in equal steps.

    Args:
        f: The derivative.
        z: (n, m) float64, the values at ``start``.
        start: The first time.
        end: The last time.
        method: The method.
        steps: Number of steps.

    Returns:
        (n, m), the values at ``end``.
    """
    rows = torch.arange(len(z), dtype=torch.int64, device=z.device)
    h = torch.full((len(z),), (end - start) / steps, dtype=torch.float64, device="cpu")
    for step in range(steps):
        time = start + step * h
        stages = _stages(f, time, z, h, rows, method, f(time, z, rows))
        z = z + _combined(h, method.weights, stages)
    return z


def adaptive_steps(
    f: Derivative,
    z: Tensor,
    start: float,
    end: float,
    rtol: float,
    atol: float,
) -> tuple[Tensor, Tensor]:
    """Integrate from ``start`` to ``end`` by Dormand and Prince's method.

    A step is taken where the estimate of its error is below atol + rtol |z|: the root mean square
    over all columns but the last, and the last column by itself.

    Args:
        f: The derivative.
        z: (n, m) float64, m >= 2, the values at ``start``.
        start: The first time.
        end: The last time, larger.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Returns:
        (n, m), the values at ``end``, and (n,) int64, the calls of f for each row.

    Raises:
        RuntimeError: A row needs more than 10,000 steps, or its derivative is not finite.
    """
    n, length = len(z), end - start
    rows = torch.arange(n, dtype=torch.int64, device="cpu")
    result, calls = torch.empty_like(z), torch.ones_like(rows)
    time = torch.full((n,), start, dtype=torch.float64, device="cpu")
    h, error = torch.full_like(time, length / 32), torch.zeros_like(time)
    first = f(time, z, rows.to(z.device))
    for _ in range(LARGEST_STEPS):
        h = torch.minimum(h, end - time)
        stages = _stages(f, time, z, h, rows.to(z.device), DOPRI5, first)
        calls[rows] += len(stages) - 1
        after = z + _combined(h, DOPRI5.weights, stages)
        scale = atol + rtol * torch.maximum(z.abs(), after.abs())
        errors = (_combined(h, DOPRI5_ERROR, stages) / scale).square().cpu()
        error = torch.maximum(errors[:, :-1].mean(1), errors[:, -1]).sqrt()
        accepted = error <= 1  # False for NaN
        factor = (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0).nan_to_num(nan=0.2)
        last = end - time <= h
        time, h = torch.where(accepted, time + h, time), h * factor
        taken = accepted.to(z.device)[:, None]
        z, first = torch.where(taken, after, z), torch.where(taken, stages[-1], first)
        finished = accepted & last
        result[rows[finished].to(z.device)] = z[finished.to(z.device)]
        if bool(finished.all()):
            return result, calls
        rows, time, h, error = (each[~finished] for each in (rows, time, h, error))
        going = (~finished).to(z.device)
        z, first = z[going], first[going]
        if bool((h < 1e-9 * length).any()):
            break
    shortest = int(h.argmin())
    sample = f"the flow of sample {int(rows[shortest])} of a batch could not be followed"
    if not math.isfinite(float(error[shortest])):
        raise RuntimeError(
            f"{sample}: its velocity is not finite. The network returned NaN or infinity, or x is "
            "far outside the model's data"
        )
    raise RuntimeError(
        f"{sample}: its steps became {float(h[shortest]):.2g} long of {length:.3g}, or more than "
        f'{LARGEST_STEPS}. Raise rtol and atol, or take fixed steps (solver="rk4")'
    )


def _stages(
    f: Derivative, time: Tensor, z: Tensor, h: Tensor, rows: Tensor, method: Method, first: Tensor
) -> list[Tensor]:
    """Return the derivatives of all stages of one step, of which the first is given."""
    stages = [first]
    for node, weights in zip(method.nodes[1:], method.matrix, strict=True):
        stages.append(f(time + node * h, z + _combined(h, weights, stages), rows))
    return stages


def _combined(h: Tensor, weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    """Return h times the weighted sum of stages, (n, m)."""
    total = torch.zeros_like(stages[0])
    for weight, stage in zip(weights, stages, strict=True):
        if weight:
            total = total + weight * stage
    return h.to(total.device)[:, None] * total
