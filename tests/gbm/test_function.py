"""sample(f) for GBM: log-normal data, whose every prediction is known exactly.

With log|x_0| ~ N(mean, variance) and y = log|x| = log|x_0| + shift + s z,
q + 1 = -(y - shift - mean) / (variance + s^2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm import GBM, LogNormalPrior, sample
from fastmsgm.adapter import PREDICTIONS, TIMES
from fastmsgm.gbm.function import FunctionGBM
from fastmsgm.solvers import DaleLangevin, DPMSolverPP2M, Solver

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

N = 10_000
MEAN, STD, SIGNS = torch.tensor([0.5, -0.2]), 0.55, torch.tensor([1.0, -1.0])
PRIOR = LogNormalPrior((SIGNS * torch.exp(MEAN))[None], STD**2)
PROCESS = GBM(3.0)


def noise_level(process: GBM, time: str, value: Tensor) -> Tensor:
    """Return s, given what a function gets of it."""
    if time in ("sigma", "log_sigma"):
        return value if time == "sigma" else torch.exp(value)
    t = value if time == "t" else value * process.T / 1000
    return process.sigma * torch.sqrt(t)


def exact(process: GBM, prediction: str, time: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the exact function of the log-normal."""

    def f(x: Tensor, value: Tensor) -> Tensor:
        s = noise_level(process, time, value)[:, None].double()
        y = torch.log(x.abs().double()) - process.log_drift * (s / process.sigma) ** 2
        score = -(y - MEAN) / (STD**2 + s**2)  # of y
        denoised = y + s**2 * score
        z = -s * score
        return {
            "score": (score - 1) / x,
            "hyvarinen": score - 1,
            "denoised": torch.copysign(torch.exp(denoised), x),
            "epsilon": z,
            "v": (z - s * denoised) / torch.sqrt(1 + s**2),
        }[prediction].float()

    return f


def samples(
    prediction: str,
    time: str,
    n: int = N,
    *,
    solver: Solver | None = None,
    steps: int = 30,
    process: GBM = PROCESS,
    **options: Any,
) -> Tensor:
    return sample(
        exact(process, prediction, time),
        n,
        steps=steps,
        solver=solver,
        process=process,
        shape=(2,),
        prediction=prediction,
        time=time,
        progress=False,
        **{"prior": PRIOR, **options},
    )


def check_moments(x: Tensor) -> None:
    """Check signs, and mean and deviation of log|x|, to five standard errors."""
    assert bool((x.sign() == SIGNS).all())
    y = torch.log(x.abs()).double()
    error = STD / len(y) ** 0.5
    assert bool(((y.mean(0) - MEAN).abs() < 5 * error).all())
    assert bool(((y.std(0) - STD).abs() < 5 * error / 2**0.5).all())


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_flow_reaches_the_data(prediction: str, time: str) -> None:
    check_moments(samples(prediction, time, solver=DPMSolverPP2M()))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_default_solver_reaches_the_data(prediction: str) -> None:
    check_moments(samples(prediction, "t", steps=60))


def test_the_default_prior_is_around_1() -> None:
    """The data are around 1.6 and 0.8, which the default solver reaches all the same."""
    x = samples("score", "t", steps=60, process=GBM(10.0), prior=None)
    check_moments(x * SIGNS)


def test_the_default_solver_forgets_the_prior() -> None:
    """The probability flow keeps a tenth of the prior's error of 2.5, in units of the data's."""
    prior = LogNormalPrior(20 * SIGNS[None], 0.0)
    check_moments(samples("score", "t", steps=60, process=GBM(10.0), prior=prior))


@functools.cache
def reference() -> Tensor:
    return samples("score", "t", 1000)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_and_times_agree_sample_by_sample(prediction: str, time: str) -> None:
    torch.testing.assert_close(samples(prediction, time, 1000), reference(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("process", [GBM(3.0), GBM(0.8, mu=0.1, T=2.0)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_the_hyvarinen_score(prediction: str, process: GBM) -> None:
    model = FunctionGBM(
        exact(process, prediction, "t"), process, PRIOR, shape=(2,), prediction=prediction, time="t"
    )
    t = process.T * torch.tensor([1e-4, 0.1, 1.0]).repeat_interleave(100)
    x = process.perturb(PRIOR.means.expand(300, 2).contiguous(), t)
    expected = exact(process, "hyvarinen", "t")(x, t)
    s2 = process.sigma**2 * t[:, None]
    # q, weighted as in the denoised log-state, which it gives.
    torch.testing.assert_close(s2 * model(x, t), s2 * expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_process_with_a_drift_is_sampled_by_dale_langevin(prediction: str) -> None:
    process = GBM(0.8, mu=0.5)
    model = FunctionGBM(
        exact(process, prediction, "log_sigma"),
        process,
        PRIOR,
        shape=(2,),
        prediction=prediction,
        time="log_sigma",
    )
    assert model.default_solver == DaleLangevin()
    x = samples(prediction, "log_sigma", 200, steps=100, process=process)
    y = torch.log(samples("score", "t", 200, steps=100, process=process).abs())
    torch.testing.assert_close(torch.log(x.abs()), y, rtol=0, atol=1e-3)


@pytest.mark.parametrize("time", TIMES)
def test_a_function_is_asked_from_the_largest_noise_level_to_the_smallest(time: str) -> None:
    seen: list[float] = []

    def f(x: Tensor, value: Tensor) -> Tensor:
        assert bool((value == value[0]).all())
        seen.append(float(noise_level(process, time, value)[0]))
        return torch.zeros_like(x)

    process = GBM(3.0, T=2.0)
    options: Any = {"process": process, "shape": (2,), "prediction": "epsilon", "time": time}
    sample(f, 2, steps=5, progress=False, **options)
    assert seen[0] == pytest.approx(process.sigma_max, rel=1e-6)
    assert seen[-1] == pytest.approx(0.002, rel=1e-5)


def test_no_function_is_asked_without_noise() -> None:
    """The last step of Dale-Langevin is at t = 0, where log_sigma is infinite."""
    x = samples("v", "log_sigma", 50, solver=DaleLangevin(), steps=50)
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("T", [0.1, 0.3, 0.7, 1.1, 1.3])
def test_the_index_starts_at_1000(T: float) -> None:
    """Exactly, also where the final time is no float32 number."""
    seen: list[float] = []

    def f(x: Tensor, index: Tensor) -> Tensor:
        seen.append(float(index[0]))
        return torch.zeros_like(x)

    options: Any = {"process": GBM(2.3, T=T), "shape": (2,), "prediction": "v", "time": "index"}
    sample(f, 2, steps=2, progress=False, **options)
    assert seen[0] == 1000
