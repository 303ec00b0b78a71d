"""fit_solver: a solver of few network calls, fitted to many-call samples of the same network.

A solver is a table of numbers that one fused kernel applies. The numbers of a formula are right in
the limit of many steps. For few steps gradient descent finds better ones for a given network: noise
levels, the scale of the network's input, and how its outputs are combined (Bespoke solvers, Shaul
et al., 2024; S4S, Frankel et al., 2025). The teacher and the fitted solver are deterministic and
start from the same noise, so that the distance of their samples is a loss. Errors of single values
say little of an image: ``features`` adds the distance of features, and that of their means, which
few calls shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastmsgm.checks import check_int
from fastmsgm.condition import Conditions
from fastmsgm.constants import TINY
from fastmsgm.gbm.fitted import FittedSolver
from fastmsgm.gbm.model import GBMModel
from fastmsgm.gbm.solvers import DPMSolverPP2M
from fastmsgm.modes import evaluation
from fastmsgm.sampling import sample
from fastmsgm.step import Step
from fastmsgm.training.checks import check_model
from fastmsgm.training.trainable_table import TrainableTable

TEACHER = DPMSolverPP2M()
RATES = (0.03, 0.01)  # peak learning rates of log sigma and log c_in, and of the coefficients
BETAS = (0.9, 0.95)  # of Adam: runs are short


class Trajectories:
    """The ends of many-call trajectories: the noise of the prior, and the samples it becomes.

    Args:
        model: Is sampled.
        n: Number of samples.
        steps: Network calls of each.
        label: As of ``sample``.
        condition: As of ``sample``.
        seed: Of the noise stream.
        progress: Show a progress bar.

    Attributes:
        noise: (n, ...) standard normals.
        means: (n, ...) log of the prior's means.
        condition: What else the network is conditioned on, each (n, ...).
        samples: (n, ...) y = log(x / scale).
    """

    def __init__(
        self,
        model: GBMModel,
        n: int,
        steps: int,
        label: int | Sequence[int] | Tensor | None,
        condition: Mapping[str, Any] | None,
        seed: int,
        progress: bool,
    ) -> None:
        ends: dict[int, list[Tensor]] = {0: [], steps: []}

        def keep(step: Step) -> None:
            if step.index in ends:
                ends[step.index].append(torch.log(step.x / model.scale))

        sample(
            model,
            n,
            steps=steps,
            solver=TEACHER,
            label=label,
            condition=condition,
            seed=seed,
            progress=progress,
            callback=keep,
        )
        start, self.samples = (torch.cat(ends[k])[:n] for k in (0, steps))
        self.condition = Conditions(model, 0, n, label, condition).chunk(0, n)
        means = torch.log(model.prior.means / model.scale)
        index = self.condition.get("label", torch.arange(n, dtype=torch.int64, device=model.device))
        self.means = means[index % len(means)].expand_as(start)
        sigma = float(TEACHER.plan(model.preconditioning, steps).noise_levels[0])
        self.noise = (start - self.means) / model.prior.std(sigma)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
        """Return noise, means, condition and samples of some of the trajectories."""
        condition = {name: value[index] for name, value in self.condition.items()}
        return self.noise[index], self.means[index], condition, self.samples[index]


def fit_solver(
    model: GBMModel,
    steps: int = 5,
    *,
    teacher_steps: int = 24,
    features: Callable[[Tensor], Tensor | Sequence[Tensor]] | None = None,
    n: int = 400,
    iterations: int = 300,
    batch_size: int = 16,
    label: int | Sequence[int] | Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FittedSolver:
    """Fit a solver of few network calls to a model, and keep it in ``model.fitted``.

    ``sample(model, steps=steps)`` then uses it, without guidance, and ``model.save`` stores it with
    the weights. ``model.default_steps = steps`` makes it the default of ``sample(model)``. Training
    removes it, since it is of the network as it was.

    The loss is the mean absolute difference of log x between samples of the fitted solver and those
    of DPM-Solver++(2M) with ``teacher_steps`` calls, from the same noise; and, with ``features``,
    that of their features and the squared difference of the features' means, each relative to its
    value in the first batch. Adam starts at DPM-Solver++(2M) of ``steps`` calls. The same arguments
    give the same table on one machine.

    Args:
        model: A denoiser, on its own device; its weights stay as they are.
        steps: Network calls of the fitted solver.
        teacher_steps: Network calls of the teacher, more than ``steps``. Choose the teacher for its
            quality: the fitted solver seldom exceeds it.
        features: A differentiable function from samples (n, ...) in the data's own units, not
            clamped, to features (n, ...) or a sequence of them, such as layers of a classifier. A
            module is evaluated in evaluation mode.
        n: Number of the teacher's samples.
        iterations: Steps of Adam, with cosine decay.
        batch_size: Samples of each.
        label: Of a class-conditional model, as of ``sample``; None takes the classes in turn.
        condition: What else the network is conditioned on, as of ``sample``: (n, ...) by name.
        seed: Of the noise and the batches. The teacher's are samples 0 .. n - 1 of
            ``sample(model, seed=seed)``: judge a table with another seed.
        progress: Show progress bars.

    Returns:
        The fitted solver.

    Raises:
        TypeError: The model is not a ``GBMModel``, or an argument of the wrong type.
        ValueError: The model is not a denoiser, or an argument is out of range.
        FloatingPointError: The loss or its gradient became NaN or infinite.
        NonFiniteError: A sample of the teacher did.

    Example:
        >>> model = fastmsgm.load("fashion-gbm")
        >>> options = {"teacher_steps": 3, "n": 2, "iterations": 1, "batch_size": 2}
        >>> solver = fastmsgm.fit_solver(model, 2, **options, progress=False)
        >>> len(solver.table)
        2
    """
    check_model(model)
    if not isinstance(model, GBMModel):
        raise TypeError(
            f"model must be a GBMModel, got {type(model).__name__}: other families have the "
            "solvers of their formulas"
        )
    steps, n = check_int("steps", steps, 1), check_int("n", n, 1)
    teacher_steps = check_int("teacher_steps", teacher_steps, steps + 1)
    iterations = check_int("iterations", iterations, 1)
    batch_size = check_int("batch_size", batch_size, 1, n)
    seed = check_int("seed", seed, 0, 2**64 - 1)
    if features is not None and not callable(features):
        raise TypeError(
            f"features must be a function of samples, or None, got {type(features).__name__}"
        )
    with torch.inference_mode(False):
        table = TrainableTable(model, steps)
        teacher = Trajectories(model, n, teacher_steps, label, condition, seed, progress)
        _descend(table, teacher, features, iterations, batch_size, seed, progress)
    model.fitted[steps] = solver = table.solver()
    return solver


def _descend(
    table: TrainableTable,
    teacher: Trajectories,
    features: Callable[[Tensor], Tensor | Sequence[Tensor]] | None,
    iterations: int,
    batch_size: int,
    seed: int,
    progress: bool,
) -> None:
    """Fit the table by Adam; the learning rates decay to zero."""
    parameters = [table.log_inputs, table.coefficients]
    optimizer = torch.optim.Adam([{"params": [p]} for p in parameters], betas=BETAS)
    generator = torch.Generator("cpu").manual_seed(seed)
    held = [
        *table.model.modules(),
        *(features.modules() if isinstance(features, nn.Module) else ()),
    ]
    title = f"fitting {len(table.coefficients)} network calls"
    first: list[float] = []
    with tqdm(total=iterations, disable=not progress, desc=title, unit="step") as bar:
        for step in range(iterations):
            decay = (1 + math.cos(math.pi * step / iterations)) / 2
            for group, peak in zip(optimizer.param_groups, RATES, strict=True):
                group["lr"] = peak * decay
            n = len(teacher.samples)
            order = torch.randperm(n, generator=generator, dtype=torch.int64, device="cpu")
            index = order[:batch_size]
            noise, means, condition, samples = teacher.batch(index.to(teacher.samples.device))
            with evaluation(held), torch.enable_grad():
                distances = _distances(
                    table.model, table(noise, means, condition), samples, features
                )
                first = first or [max(d.item(), TINY) for d in distances]
                loss = torch.stack([d / f for d, f in zip(distances, first, strict=True)]).mean()
                gradients = torch.autograd.grad(loss, parameters)
            value = loss.item()
            if not all(math.isfinite(x) for x in (value, *(float(g.sum()) for g in gradients))):
                raise FloatingPointError(
                    f"the loss ({value}) or its gradient is not finite at iteration {step}: give "
                    "more steps, or features that are differentiable at every sample"
                )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            bar.update()
            bar.set_postfix(loss=f"{value:.4f}")


def _distances(
    model: GBMModel,
    y: Tensor,
    samples: Tensor,
    features: Callable[[Tensor], Tensor | Sequence[Tensor]] | None,
) -> list[Tensor]:
    """Return the terms of the loss.

    Args:
        model: Says what data are.
        y: (n, ...) log-states of the fitted solver.
        samples: (n, ...) those of the teacher.
        features: As of ``fit_solver``.
    """
    distances = [(y - samples).abs().mean()]
    if features is None:
        return distances
    ours, theirs = (
        _as_features(features(torch.exp(x) * model.scale - model.offset), len(x))
        for x in (y, samples)
    )
    for a, b in zip(ours, theirs, strict=True):
        difference = (a - b).flatten(1)
        distances += [difference.abs().mean(), difference.mean(0).square().mean()]
    return distances


def _as_features(found: object, n: int) -> list[Tensor]:
    """Return the features of n samples, checked."""
    several = list(found) if isinstance(found, (list, tuple)) else [found]
    tensors = [x for x in several if isinstance(x, Tensor) and x.ndim > 1 and len(x) == n]
    if not several or len(tensors) < len(several):
        raise TypeError(
            f"features must return a tensor ({n}, ...) or a sequence of them for {n} samples, got "
            f"{type(found).__name__}"
        )
    return tensors
