"""Splitting solver of the reversed ring rotation as a coefficient table, for ``ring_step``.

Noise levels are integrated betas B. With s the score of the direction u, the probability flow of an
interval dB rotates every pair k by the angle

    phi_k = dB / 4 (u_{k+1} s_k - u_k s_{k+1}),    s = rho f / sqrt(d), f the network's output,

and ring noise of an interval dB rotates it by sqrt(dB / 2) xi_k. A step from B to B' follows the
flow to a smaller B_mid = B' (B' / B)^eta, and noise of the interval B' - B_mid leads back to B':
eta = 0 is the flow, 1 to leading order the reversed SDE. Flow and noise both keep the marginals, so
only their own errors count:

    midpoint   the flow by the midpoint rule at the square of the mean of sqrt(B) and sqrt(B_mid);
               exact at small B where f is constant; weak order 2; two network calls a step
    Euler      the flow with f held, as it stays near a data point; order 1; one call a step

The step to B = 0 is twice the flow, without noise: u + B G G^T s is the denoised direction at
small B.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastmsgm.checks import check_eta, check_int
from fastmsgm.rotation.preconditioning import RotationPreconditioning
from fastmsgm.rotation.state import RingPlan, RingStepFlags
from fastmsgm.solver import Solver, karras_sigmas


@dataclass(frozen=True)
class RingSplitting(Solver):
    """Givens rotations of neighbouring features in turn, from uniform directions to B = 0.

    Args:
        midpoint: The midpoint rule, 2 steps - 1 network calls; else Euler's, ``steps`` calls.
        eta: 0 is the probability-flow ODE, 1 the reverse SDE to leading order.

    Raises:
        ValueError: eta is out of range.
    """

    midpoint: bool = True
    eta: float = 0.0

    default_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_eta(self.eta))

    def plan(self, preconditioning: RotationPreconditioning, steps: int) -> RingPlan:
        if not isinstance(preconditioning, RotationPreconditioning):
            raise TypeError(
                f"solver {self!r} is for rotations, got a {type(preconditioning).__name__}"
            )
        if preconditioning.process.noise != "ring":
            raise ValueError(
                f"solver {self!r} needs ring noise, got {preconditioning.process}: omit "
                "solver= to use its default"
            )
        steps = check_int("steps", steps, 1)
        grid = karras_sigmas(steps, preconditioning.B_min, preconditioning.process.B_max)
        B, lengths, noises, restart = [], [], [], []  # lengths: of the flow, in B at the row
        for before, after in itertools.pairwise(grid):
            end = after * (after / before) ** self.eta
            root, gap = math.sqrt(before), math.sqrt(before) - math.sqrt(end)
            noise = math.sqrt((after - end) / 2)
            if after == 0 or not self.midpoint:
                B.append(before)
                lengths.append(2 * root * gap)
                noises.append(noise)
                restart.append(False)
                continue
            B += [before, (root - gap / 2) ** 2]
            lengths += [root * gap, before - end]
            noises += [0.0, noise]
            restart += [False, True]
        noise_levels = np.array(B)
        drift = np.array(lengths) / 4 * preconditioning.coefficients(noise_levels)[:, 2]
        half_turns = np.stack((drift, noises)) / math.pi
        return RingPlan(
            noise_levels=noise_levels,
            table=np.stack((*half_turns, np.full(len(B), preconditioning.c_in)), axis=1),
            c_noise=preconditioning.c_noise(noise_levels),
            c_in=preconditioning.c_in,
            flags=tuple(RingStepFlags(r, s > 0) for r, s in zip(restart, noises, strict=True)),
        )


SOLVERS: dict[str, Callable[[], Solver]] = {
    "ring-splitting": RingSplitting,
    "sde-ring-splitting": lambda: RingSplitting(eta=1.0),
}
