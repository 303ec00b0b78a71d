"""log_likelihood: the log-density of data under a model, by its probability flow.

The network that samples also defines a deterministic flow (``fastmsgm/flow.py``), along which the
density changes by the divergence of the velocity. The flow starts at the smallest noise level of
training, so the density is that of data with so much noise. The bias is small where the data's
density is smooth at that scale:

    GBM          s = 0.002 in log x for denoisers, 0.025 for the paper's score networks
    VP           sqrt(B) = 0.01 standard deviations
    EDM          sigma_min, 0.002 standard deviations of the transformed data
    rotations    an angle of about sqrt(B) = 0.01, 0.01 / sqrt(d - 1) along each tangent direction

These are the defaults; ``settings["smallest_noise_level"]`` has the model's own s or B. Data on a
thin set, such as images with a constant background, have no density without that noise, and the
value depends on it.

The network computes in float32, whatever the model's precision, as the rounding of bfloat16 is
noise in the flow. States and densities are float64. Tolerances below 1e-6 are beyond float32.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmsgm.checks import check_int, positive
from fastmsgm.evaluation.density_job import Batch, DensityJob
from fastmsgm.evaluation.divergence import EXACT, rademacher, with_divergence
from fastmsgm.evaluation.ode import FIXED, adaptive_steps, fixed_steps
from fastmsgm.flow import ProbabilityFlow
from fastmsgm.model import ScoreModel

SOLVERS = ("dopri5", *FIXED)
STEPS = 64  # of the methods with fixed steps, where none are asked for
TOLERANCE = 1e-5  # of adaptive steps: for states of unit scale, and for nats per feature


@dataclass(frozen=True, repr=False)
class LogLikelihood:
    """Log-densities of samples in nats, with respect to the data's own range.

    Args:
        values: (n,) float64 on the CPU, log p(x) of each sample, or a bound of it.
        settings: How they were computed, as JSON can hold it.
    """

    values: Tensor
    settings: dict[str, Any]

    @property
    def mean(self) -> float:
        """The mean over the samples."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean; NaN for one sample. The probes' noise is part of it."""
        n = len(self.values)
        return float(self.values.std()) / math.sqrt(n) if n > 1 else math.nan

    def __repr__(self) -> str:
        return (
            f"LogLikelihood(mean={self.mean:.6g}, standard_error={self.standard_error:.2g}, "
            f"n={len(self.values)})"
        )


def log_likelihood(
    model: ScoreModel | str | os.PathLike[str],
    x: Tensor,
    *,
    label: int | Sequence[int] | Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
    solver: str = "dopri5",
    steps: int | None = None,
    rtol: float = TOLERANCE,
    atol: float = TOLERANCE,
    probes: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> LogLikelihood:
    """Return log p(x) of samples, by the probability flow of the model's network.

    Every sample is computed by itself, with steps and probes of its own, so that values depend on
    the batch by rounding alone.

    Args:
        model: A ScoreModel, also wrapped, the name of a shipped model, or the folder of a
            checkpoint.
        x: (n, ...) samples in the data's own range, float; uint8 images are divided by 255. The
            likelihood of 8-bit images is ``bits_per_dimension``'s.
        label: Of a class-conditional model: one class for all samples, or n classes; the density
            is that given the class. (That of all classes is ``torch.logsumexp`` of the classes'
            values plus the logarithms of their shares.)
        condition: What else the network is conditioned on: tensors (n, ...) by name.
        solver: "dopri5", with adaptive steps, or "rk4" or "heun" with fixed steps in the logarithm
            of the noise level.
        steps: Of "rk4" (4 network calls each) and "heun" (2); None is 64.
        rtol: Relative tolerance of "dopri5" in each step.
        atol: Its absolute tolerance.
        probes: Rademacher probes of Hutchinson's estimate of the divergence, for each sample; None
            is the exact divergence for at most 64 features, at one backward pass for each, and one
            probe beyond. The estimate is unbiased.
        seed: Of the probes, 0 .. 2^64 - 1.
        batch_size: Samples at a time; None is 2^16 / d, between 16 and 4096.
        progress: Show a progress bar.

    Returns:
        The values with their mean and standard error.

    Raises:
        TypeError: An argument of the wrong type; the message names it.
        ValueError: An argument out of range, or samples where the model has no density.
        RuntimeError: The network has no derivative, or the flow cannot be followed.

    Example:
        >>> x = fastmsgm.sample("cauchy-rotation", n=20, progress=False)
        >>> result = log_likelihood("cauchy-rotation", x, progress=False)
        >>> result.values.shape, result.standard_error > 0
        (torch.Size([20]), True)
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if steps is not None and solver == "dopri5":
        raise ValueError(
            f'steps must be None for "dopri5", which chooses its own, got {steps!r}: give rtol '
            'and atol, or solver="rk4"'
        )
    steps = STEPS if steps is None else check_int("steps", steps, 1)
    rtol, atol = positive("rtol", rtol), positive("atol", atol)
    job = DensityJob(model, x, label, condition, seed, batch_size)
    d = math.prod(job.model.shape)
    probes = None if probes is None else check_int("probes", probes, 1)
    estimated = (0 if d <= EXACT else 1) if probes is None else probes

    def density(flow: ProbabilityFlow, batch: Batch) -> tuple[Tensor, Tensor]:
        probes = rademacher(len(batch.data), d, estimated, batch.stream) if estimated else None
        return flow_log_density(
            flow,
            batch.data,
            batch.condition,
            probes,
            solver=solver,
            steps=steps,
            rtol=rtol,
            atol=atol,
        )

    values, calls = job.run(density, progress, "log-likelihood")
    settings = {
        "solver": solver,
        **({"rtol": rtol, "atol": atol} if solver == "dopri5" else {"steps": steps}),
        "network_calls": float(calls.double().mean()),
        "divergence": f"{estimated} Rademacher probes" if estimated else "exact",
        **job.settings(),
    }
    return LogLikelihood(values, settings)


def flow_log_density(
    flow: ProbabilityFlow,
    data: Tensor,
    condition: Mapping[str, Tensor],
    probes: Tensor | None = None,
    *,
    solver: str = "dopri5",
    steps: int = STEPS,
    rtol: float = TOLERANCE,
    atol: float = TOLERANCE,
) -> tuple[Tensor, Tensor]:
    """Return the log-density of data under any probability flow.

    Args:
        flow: The flow.
        data: (n, ...) in the data's own range.
        condition: What the network is conditioned on, each (n, ...).
        probes: (k, n, d) float64 of Hutchinson's estimate, or None for the exact divergence.
        solver: One of ``SOLVERS``.
        steps: Of the methods with fixed steps.
        rtol: Of "dopri5".
        atol: Of "dopri5".

    Returns:
        (n,) float64, and (n,) int64, the network calls for each sample.
    """
    start = flow.start(data, condition)
    n, d = start.state.shape
    given = None if probes is None else probes.to(start.state.device)

    def derivative(time: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """Of the state and of the integral of the divergence per feature."""
        own = {name: value[rows] for name, value in start.condition.items()}
        velocity, divergence = with_divergence(
            lambda state: flow.velocity(state, torch.exp(time), own),
            z[:, :d],
            None if given is None else given[:, rows],
        )
        return torch.cat((velocity, divergence[:, None] / d), 1)

    z = torch.cat((start.state, torch.zeros_like(start.state[:, :1])), 1)
    low, high = map(math.log, flow.noise_levels)
    if solver == "dopri5":
        z, calls = adaptive_steps(derivative, z, low, high, rtol, atol)
    else:
        method = FIXED[solver]
        z = fixed_steps(derivative, z, low, high, method, steps)
        calls = torch.full((n,), steps * len(method.nodes), dtype=torch.int64, device="cpu")
    log_prior = flow.log_prior(z[:, :d], start.condition)
    return start.log_factor + d * z[:, d] + log_prior, calls
