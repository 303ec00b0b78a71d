"""The EDM baseline: sampler, loss, noise and likelihood against formulas and exact densities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import fastmsgm
from fastmsgm import EDM, EDMModel, nets, rng
from fastmsgm.data.synthetic import correlated_cauchy
from fastmsgm.edm import EDMHeun, EDMLoss
from fastmsgm.evaluation.elbo import elbo
from fastmsgm.evaluation.likelihood import log_likelihood
from fastmsgm.solver import karras_sigmas
from tests.edm.exact import MEANS, STDS, exact_model, log_density, mixture


@pytest.fixture
def model() -> EDMModel:
    torch.manual_seed(0)
    x = correlated_cauchy(500, 4)
    return EDMModel.for_data(nets.MLP(4, 16, 2), EDM(0.01, 1e5, freedom=3), x, transform="median")


def test_samples_of_an_exact_denoiser_are_the_mixture() -> None:
    n = 4_000
    for solver in (EDMHeun(), EDMHeun(churn=0.2)):
        x = fastmsgm.sample(exact_model(), n, solver=solver, steps=60, progress=False).double()
        first = (x - MEANS[0]).norm(dim=1) < 0.6  # 6 standard deviations of the narrow mode
        assert abs(float(first.double().mean()) - 0.3) < 4 * math.sqrt(0.21 / n)
        for mode, part in enumerate((x[first], x[~first])):
            error = float(STDS[mode]) / math.sqrt(len(part))
            assert bool(((part.mean(0) - MEANS[mode]).abs() < 4 * error).all())
            assert bool((part.std(0) / STDS[mode] - 1).abs().max() < 0.06)


def test_the_solver_is_algorithm_2_of_karras_et_al() -> None:
    model, n, steps, churn = exact_model(), 50, 12, 0.3
    x = fastmsgm.sample(model, n, solver=EDMHeun(churn), steps=steps, seed=5, progress=False)
    stream, grid = rng.stream(5), karras_sigmas(steps, 0.002, 80.0)

    def slope(y: torch.Tensor, s: float) -> torch.Tensor:
        c_skip, c_out, c_in = model.preconditioning.coefficients(np.array(s))
        f = model.net((c_in * y).float(), torch.full((n,), math.log(s) / 4))
        return (y - c_skip * y - c_out * f.double()) / s

    y = grid[0] * rng.normals(n, 2, stream, rng.Purpose.PRIOR, 0).double()
    call = -1  # the number of the network call, by which the noise is counted
    for i in range(steps):
        s, after = float(grid[i]), float(grid[i + 1])
        hat = min(s * (1 + churn), 80.0)
        if i:
            z = rng.normals(n, 2, stream, rng.Purpose.STEP, call).double()
            y = y + math.sqrt(hat**2 - s**2) * z
        first = slope(y, hat)
        moved = y + (after - hat) * first
        if after:
            moved = y + (after - hat) * (first + slope(moved, after)) / 2
        y, call = moved, call + 2
    assert torch.allclose(x.double(), y, atol=2e-4)


def test_a_network_of_zeros_has_the_loss_of_the_target() -> None:
    zero = torch.nn.Module()
    zero.forward = lambda x, c_noise: torch.zeros_like(x)  # pyright: ignore[reportAttributeAccessIssue]
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    model = EDMModel.for_data(zero, EDM(), x)
    # Target and output have unit variance at every noise level.
    for loss in (EDMLoss(), EDMLoss(p_mean=None)):
        assert float(fastmsgm.Loss(model, loss=loss)(x)) == pytest.approx(1.0, abs=0.02)


def test_student_t_noise_has_its_distribution() -> None:
    process, purposes = EDM(freedom=3), (rng.Purpose.PRIOR, rng.Purpose.RADIUS)
    noise = process.noise(40_000, 2, rng.stream(3), *purposes, 0).double()
    along = (noise @ torch.tensor([0.6, 0.8], dtype=torch.float64)).numpy()
    assert stats.kstest(along, stats.t(3).cdf).pvalue > 0.01
    assert stats.kstest(noise.norm(dim=1).numpy() ** 2 / 2, stats.f(2, 3).cdf).pvalue > 0.01


def test_the_likelihood_is_that_of_the_mixture() -> None:
    x = mixture(50, 3)
    found, truth = log_likelihood(exact_model(), x, progress=False), log_density(x)
    assert found.mean == pytest.approx(float(truth.mean()), rel=0.01)


@pytest.mark.parametrize(("transform", "freedom"), [("median", 3), ("asinh", None)])
def test_densities_of_heavy_tails_integrate_to_one(transform: str, freedom: int | None) -> None:
    torch.manual_seed(0)
    x = correlated_cauchy(2_000, 2)
    levels, wider = ((0.01, 1e3), 1.0) if freedom else ((0.01, 80.0), 3.0)
    net, process = nets.MLP(2, 16, 1), EDM(*levels, freedom=freedom)
    model = EDMModel.for_data(net, process, x, transform=transform)
    # Importance sampling: E_q[p / q] = 1, with a Cauchy distribution as q.
    scale = wider * x.abs().median()
    q: Any = stats.multivariate_t(shape=np.eye(2) * float(scale) ** 2, df=1, seed=1)  # pyright: ignore[reportArgumentType]
    points = torch.from_numpy(q.rvs(400))
    found = log_likelihood(model, points, progress=False).values
    ratio = torch.exp(found - torch.from_numpy(q.logpdf(points.numpy())))
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(ratio.mean()) - 1) < 4 * error < 0.5


def test_a_model_trains_saves_and_samples_slices(model: EDMModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 6, "batch_size": 32, "progress": False}
    fastmsgm.fit(model, correlated_cauchy(500, 4), out=tmp_path, **options)
    again = fastmsgm.load(tmp_path)
    assert isinstance(again, EDMModel)
    assert again.preconditioning == model.preconditioning
    x = fastmsgm.sample(again, 60, seed=1, batch_size=20, progress=False)
    part = fastmsgm.sample(model, 10, seed=1, batch_size=20, start=30, progress=False)
    assert torch.equal(part, x[30:40])


def test_transforms_are_inverted() -> None:
    x = correlated_cauchy(300, 4)
    for transform in ("standard", "median", "asinh"):
        model = EDMModel.for_data(nets.MLP(4, 8, 1), EDM(), x, transform=transform)
        assert torch.allclose(model.to_data(model.to_state(x)), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EDM(sigma_min=2.0, sigma_max=1.0), ValueError, "sigma_max must be above"),
        (lambda: EDM(freedom=2), ValueError, "freedom must be at least 3"),
        (lambda: EDMHeun(churn=-1), ValueError, r"churn must be in \[0, 1\], got -1"),
        (lambda: EDMLoss(p_std=0), ValueError, "p_std"),
        (
            lambda: EDMModel.for_data(nets.MLP(2), EDM(), torch.ones(5, 2)),
            ValueError,
            "vary in every feature",
        ),
        (
            lambda: EDMModel.for_data(nets.MLP(2), EDM(), torch.randn(5, 2), transform="log"),
            ValueError,
            "transform must be one of standard, median, asinh, got 'log'",
        ),
    ],
)
def test_wrong_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_churn_is_refused_for_student_t_noise(model: EDMModel) -> None:
    with pytest.raises(ValueError, match="churn must be 0 for Student-t noise"):
        fastmsgm.sample(model, 2, solver=EDMHeun(churn=0.1), progress=False)


def test_the_lower_bound_of_an_exact_denoiser_is_tight() -> None:
    x = mixture(300, 3)
    gap = log_density(x) - elbo(exact_model(), x, draws=256, progress=False).values
    error = float(gap.std()) / math.sqrt(len(gap))
    assert abs(float(gap.mean())) < 4 * error < 0.3


def test_student_t_noise_has_no_lower_bound(model: EDMModel) -> None:
    with pytest.raises(ValueError, match="lower bound is for normal noise, got Student-t"):
        elbo(model, correlated_cauchy(5, 4), draws=1, progress=False)


def test_a_class_conditional_model_trains_and_takes_guidance() -> None:
    torch.manual_seed(0)
    x, labels = mixture(200, 1), torch.arange(200) % 3
    model = EDMModel.for_data(nets.MLP(2, 16, 1, classes=3), EDM(), x, classes=3)
    fastmsgm.fit(model, x, labels, steps=4, batch_size=20, drop=0.2, progress=False)
    plain, guided = (
        fastmsgm.sample(model, 6, label=1, guidance=w, steps=3, progress=False) for w in (1, 2)
    )
    assert bool(guided.isfinite().all())
    assert not torch.equal(plain, guided)


@pytest.mark.parametrize("transform", ["standard", "median", "asinh"])
def test_uint8_images_have_the_scale_of_their_floats(transform: str) -> None:
    images = torch.randint(1, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    bytes_, floats = images.to(torch.uint8), images / 255
    models = [
        EDMModel.for_data(nets.UNet(1, 8, 16, 1, 1), EDM(), x, transform=transform)
        for x in (bytes_, floats)
    ]
    assert torch.allclose(models[0].scale, models[1].scale)
    assert torch.allclose(models[0].centre, models[1].centre)


@pytest.mark.parametrize("transform", ["median", "asinh"])
def test_data_that_are_not_finite_or_integers_are_refused(transform: str) -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    x[3, 1] = torch.inf
    with pytest.raises(ValueError, match="data must be finite"):
        EDMModel.for_data(nets.MLP(2), EDM(), x, transform=transform)
    with pytest.raises(TypeError, match="must be floating point or uint8"):
        EDMModel.for_data(nets.MLP(2), EDM(), torch.ones(5, 2).long(), transform=transform)
