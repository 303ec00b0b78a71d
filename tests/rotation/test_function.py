"""sample(f) for Rotation: von Mises-Fisher directions on S^2, known exactly at every noise level.

p_t(u) is the sum of (2l + 1) / (4 pi) A_l e^{-l (l + 1) tau / 2} P_l(c) with c = mean.u,
tau = B / 2 and A_l = I_{l+1/2}(kappa) / I_{1/2}(kappa); so E c = A_1 and E c^2 = (1 + 2 A_2) / 3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.special import ive
from torch import Tensor

from fastmsgm import RadialPrior, Rotation, sample
from fastmsgm.adapter import PREDICTIONS, TIMES
from fastmsgm.rotation.function import FunctionRotation
from fastmsgm.solvers import Solver, SphericalMultistep

from .exact import TiltedNet, unit, z_scores

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

N = 10_000
KAPPA, DEGREES = 4.0, 16  # A_15 = 2e-9
A = [float(ive(l + 0.5, KAPPA) / ive(0.5, KAPPA)) for l in range(DEGREES)]
MEAN = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), dim=0)
PROCESS = Rotation()
NORMS = torch.tensor([0.2, 1.0, 7.0])
PRIOR = RadialPrior(torch.log(NORMS))


def integrated_beta(process: Rotation, time: str, value: Tensor) -> Tensor:
    """Return B, given what a function gets of it."""
    value = value.double()
    if time in ("sigma", "log_sigma"):
        return -torch.log1p(-(value if time == "sigma" else torch.exp(value)).square())
    t = value if time == "t" else value / 1000
    return process.beta_min * t + (process.beta_max - process.beta_min) * t**2 / 2


def log_density_slope(c: Tensor, B: float) -> Tensor:
    """Return d log p_t / dc at c (n,), by the recurrences of Legendre polynomials."""
    weights = [(2 * l + 1) * a * math.exp(-l * (l + 1) * B / 4) for l, a in enumerate(A)]
    before, now = torch.ones_like(c), c
    slope_before, slope = torch.zeros_like(c), torch.ones_like(c)
    density, total = weights[0] + weights[1] * c, weights[1] * slope
    for l in range(1, DEGREES - 1):
        after = ((2 * l + 1) * c * now - l * before) / (l + 1)
        slope_before, slope = slope, slope_before + (2 * l + 1) * now
        before, now = now, after
        density, total = density + weights[l + 1] * now, total + weights[l + 1] * slope
    return total / density


def exact(process: Rotation, prediction: str, time: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the exact function, of samples at one noise level.

    Its score has a part along x, as that of a distribution with norms, which must not matter.
    """

    def f(x: Tensor, value: Tensor) -> Tensor:
        B = float(integrated_beta(process, time, value)[0])
        r = x.norm(dim=1, keepdim=True).double()
        u = x / r
        c = u @ MEAN
        tangent = log_density_slope(c, B)[:, None] * (MEAN - c[:, None] * u)  # score of u
        score = (tangent - 0.7 * u) / r
        alpha, sigma = math.exp(-B / 2), math.sqrt(-math.expm1(-B))
        clean = alpha * x + r * sigma * tangent / (2 / math.sqrt(math.expm1(B)))  # rho, d = 3
        return {
            "score": score,
            "hyvarinen": x * score,
            "denoised": clean,
            "epsilon": (x - alpha * clean) / sigma,
            "v": (alpha * x - clean) / sigma,
        }[prediction].float()

    return f


def samples(
    prediction: str, time: str, n: int = N, *, solver: Solver | None = None, steps: int = 20
) -> Tensor:
    return sample(
        exact(PROCESS, prediction, time),
        n,
        steps=steps,
        solver=solver,
        process=PROCESS,
        shape=(3,),
        prediction=prediction,
        time=time,
        prior=PRIOR,
        progress=False,
    )


def check_moments(x: Tensor) -> None:
    """Check E c and E c^2 to five standard errors."""
    c = unit(x) @ MEAN
    assert abs(float(z_scores(c, A[1]))) < 5
    assert abs(float(z_scores(c**2, (1 + 2 * A[2]) / 3))) < 5


def test_the_moments_are_those_in_closed_form() -> None:
    assert A[1] == pytest.approx(1 / math.tanh(KAPPA) - 1 / KAPPA, rel=1e-12)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_default_solver_reaches_the_data(prediction: str, time: str) -> None:
    check_moments(samples(prediction, time))


def test_noise_reaches_the_data() -> None:
    check_moments(samples("score", "t", solver=SphericalMultistep(eta=0.3), steps=40))


@functools.cache
def reference() -> Tensor:
    return samples("score", "t", 1000)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_and_times_agree_sample_by_sample(prediction: str, time: str) -> None:
    difference = (samples(prediction, time, 1000) - reference()).norm(dim=1)
    assert float((difference / reference().norm(dim=1)).max()) < 1e-4


def test_samples_have_the_norms_of_the_prior() -> None:
    norms = reference().norm(dim=1)
    nearest = (norms[:, None] - NORMS).abs().argmin(dim=1)
    torch.testing.assert_close(norms, NORMS[nearest], rtol=1e-5, atol=0)
    assert torch.bincount(nearest).min() > 250


def test_the_default_norm_is_one() -> None:
    options: Any = {"process": PROCESS, "shape": (3,), "prediction": "v", "time": "t"}
    x = sample(lambda x, t: -x, 10, steps=3, progress=False, **options)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(10))


def test_a_function_sees_the_norms() -> None:
    seen = []

    def f(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.norm(dim=1))
        return torch.zeros_like(x)

    options: Any = {"process": PROCESS, "shape": (3,), "prediction": "v", "time": "t"}
    x = sample(f, 100, steps=3, prior=PRIOR, progress=False, **options)
    for norms in seen:
        torch.testing.assert_close(norms, x.norm(dim=1))


@pytest.mark.parametrize("time", TIMES)
def test_a_function_is_asked_from_the_end_of_the_process_to_the_smallest_noise(time: str) -> None:
    seen: list[float] = []

    def f(x: Tensor, value: Tensor) -> Tensor:
        assert bool((value == value[0]).all())
        seen.append(float(integrated_beta(process, time, value)[0]))
        return torch.zeros_like(x)

    process = Rotation(beta_max=4.0)
    options: Any = {"process": process, "shape": (3,), "prediction": "v", "time": time}
    sample(f, 2, steps=5, progress=False, **options)
    assert seen[0] == pytest.approx(process.B_max, rel=1e-5)
    assert seen[-1] == pytest.approx(1e-4, rel=1e-4)


def test_a_falling_beta_is_inverted_in_time() -> None:
    seen: list[float] = []

    def f(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    options: Any = {"process": Rotation(beta_min=20.0, beta_max=0.001), "shape": (3,)}
    sample(f, 2, steps=5, prediction="v", time="t", progress=False, **options)
    assert seen == sorted(seen, reverse=True)
    assert 0.99 < seen[0] <= 1


@pytest.mark.parametrize("noise", ["ring", "dense"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_the_score_of_the_direction(prediction: str, noise: str) -> None:
    """The formulas hold for all noises: the network's output is sqrt(d) times D's tangent part."""
    process = Rotation(noise, beta_max=60.0)
    model = FunctionRotation(
        exact(process, prediction, "t"), process, PRIOR, shape=(3,), prediction=prediction, time="t"
    )
    x = samples("score", "t", 100)
    u, B = unit(x), process.integrated_beta(0.3)
    c_noise = torch.full((100,), float(model.preconditioning.c_noise(B)))
    output = model(math.sqrt(3) * u.float(), c_noise, **model.condition_of(x.norm(dim=1)))
    score = model.preconditioning.score(output, B[None]).double()
    score = score - (score * u).sum(1, keepdim=True) * u
    c = u @ MEAN
    expected = log_density_slope(c, float(B))[:, None] * (MEAN - c[:, None] * u)
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", ["ring", "dense"])
def test_other_noises_reach_the_data(noise: str) -> None:
    """The density 1 + tilt.u on the sphere in three dimensions has the mean tilt / 3."""
    process, tilt = Rotation(noise), torch.tensor([0.6, -0.3, 0.5])
    decay = TiltedNet(process, tilt)

    def f(x: Tensor, t: Tensor) -> Tensor:
        r = x.norm(dim=1, keepdim=True)
        B = integrated_beta(process, "t", t)[:, None]
        now = (torch.exp(B * decay.rates) * (decay.tilt @ decay.axes)) @ decay.axes.T
        return now.float() / (1 + (now * x / r).sum(1, keepdim=True)) / r

    options: Any = {"process": process, "shape": (3,), "prediction": "score", "time": "t"}
    x = sample(f, 4000, steps=20, prior=PRIOR, progress=False, **options)
    assert float(z_scores(unit(x), tilt / 3).abs().max()) < 5


def test_a_hyvarinen_score_is_zero_where_x_is() -> None:
    model = FunctionRotation(
        lambda x, t: x, PROCESS, PRIOR, shape=(3,), prediction="hyvarinen", time="t"
    )
    x = torch.tensor([[math.sqrt(3), 0.0, 0.0]])
    output = model(x, torch.zeros(1), log_norm=torch.zeros(1))
    assert bool((output[0, 1:] == 0).all())


def test_a_long_process_leaves_nothing_non_finite() -> None:
    """At B = 700 neither e^{B/2} nor a score is a float32 number."""
    process = Rotation(beta_max=1399.0)
    options: Any = {"process": process, "shape": (3,), "prediction": "score", "time": "t"}
    x = sample(lambda x, t: torch.zeros_like(x), 10, steps=5, progress=False, **options)
    assert bool(torch.isfinite(x).all())


def test_epsilon_needs_digits_of_the_data() -> None:
    with pytest.raises(ValueError, match=r"prediction must not be \"epsilon\".*above 31\.9.*v$"):
        FunctionRotation(
            lambda x, t: x,
            Rotation(beta_max=70.0),
            None,
            shape=(3,),
            prediction="epsilon",
            time="t",
        )
