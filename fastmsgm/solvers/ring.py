"""Splitting solver of the reversed ring rotation as a coefficient table, for ``ring_step``; levels are clocks B.

With s the score of the direction u, the probability flow of a clock dB turns every pair k by the angle

    phi_k = dB / 4 (u_{k+1} s_k - u_k s_{k+1}),    s = rho f / sqrt(d), f the network's output,

and ring noise of a clock dB turns it by sqrt(dB / 2) xi_k. A step from B to B' follows the flow to an earlier clock
B_mid = B' (B' / B)^eta, and noise of the clock B' - B_mid brings it back: eta = 0 is the flow, 1 to leading order the
reversed SDE. Flow and noise both keep the marginals, so only their own errors count:

    midpoint    the flow by the midpoint rule, the middle clock the square of the mean of sqrt(B) and sqrt(B_mid),
                which is exact at small clocks where f stays the same; weak order 2; two network calls a step
    Euler       the flow with f held, as it stays near a data point; order 1; one call a step

The step to B = 0 is twice the flow, without noise: u + B G G^T s is where noise of a small clock came from.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastmsgm.model import ScoreModel
from fastmsgm.rotation_model import CLOCK_MIN, RotationModel
from fastmsgm.solvers.base import Plan, Solver
from fastmsgm.solvers.gbm import karras_levels


@dataclass(frozen=True)
class RingPlan(Plan):
    """What sampling does: one network call and one ``ring_step`` per row.

    Args:
        levels: (R,) the clock of each network call.
        table: (R, 3) the rows of ``reference.RING_COLUMNS``.
        restart: whether each row starts from where the row before did: the second row of a midpoint step.
        noisy: whether each row has noise.
    """

    restart: tuple[bool, ...]
    noisy: tuple[bool, ...]


@dataclass(frozen=True)
class RingSplitting(Solver):
    """Rotations of neighbouring features in turn, from uniform directions at the process's largest clock to 0.

    Args:
        midpoint: the midpoint rule, 2 steps - 1 network calls; else Euler's, ``steps``.
        eta: 0 is the probability flow, 1 the reversed SDE to leading order.

    Raises:
        ValueError: eta is out of range.
    """

    midpoint: bool = True
    eta: float = 0.0

    default_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1] (0 the ODE, 1 the SDE), got {self.eta!r}")

    def plan(self, model: ScoreModel, steps: int) -> RingPlan:
        if not isinstance(model, RotationModel):
            raise TypeError(f"solver {self!r} is for rotations, got a {type(model).__name__}")
        if model.process.noise != "ring":
            raise ValueError(f"solver {self!r} needs ring noise, got {model.process}: leave solver out for its own")
        clocks = karras_levels(steps, CLOCK_MIN, model.process.clock_max)
        levels, lengths, noises, restart = [], [], [], []  # lengths: of the flow, as a clock at the row's own score
        for before, after in itertools.pairwise(clocks):
            end = after * (after / before) ** self.eta
            root, gap = math.sqrt(before), math.sqrt(before) - math.sqrt(end)
            noise = math.sqrt((after - end) / 2)
            if after == 0 or not self.midpoint:
                levels.append(before)
                lengths.append(2 * root * gap)
                noises.append(noise)
                restart.append(False)
                continue
            levels += [before, (root - gap / 2) ** 2]
            lengths += [root * gap, before - end]
            noises += [0.0, noise]
            restart += [False, True]
        drift = np.array(lengths) / 4 * model.coefficients(np.array(levels))[:, 2]
        half_turns = np.stack((drift, noises)) / math.pi
        table = np.stack((*half_turns, np.full(len(levels), model.input_scale)), axis=1)
        return RingPlan(np.array(levels), table, tuple(restart), tuple(noise > 0 for noise in noises))
