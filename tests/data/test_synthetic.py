"""Synthetic data sets: exact marginals, tails, invariants of the flows, and stored values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm.data.synthetic import (
    correlated_cauchy,
    gaussian,
    gaussian_cauchy,
    lorenz63,
    lorenz96,
    mixing,
    spirals,
    swiss_roll,
    uncorrelated_cauchy,
)
from fastmsgm.evaluation.metrics import kolmogorov_smirnov, survival

# The first two samples of a seed: a number changed here is another data set.
STORED: dict[str, tuple[Callable[[], Tensor], list[list[float]]]] = {
    "correlated_cauchy": (
        lambda: correlated_cauchy(2, 4, seed=3),
        [
            [
                -0.06542403995990753,
                -0.012927435338497162,
                -0.011073864065110683,
                0.08576188236474991,
            ],
            [0.10273397713899612, -0.4454088807106018, 0.20345205068588257, 0.11521538347005844],
        ],
    ),
    "correlated_cauchy of odd dimension and the last seed": (
        lambda: correlated_cauchy(2, 3, seed=2**64 - 1),
        [
            [0.01267598383128643, -0.02212793007493019, -0.04484545812010765],
            [-0.026885977014899254, 0.0249764546751976, 0.05294295400381088],
        ],
    ),
    "gaussian_cauchy": (
        lambda: gaussian_cauchy(2, 3, seed=3),
        [
            [0.022785544395446777, -0.0015102773904800415, -0.01729615032672882],
            [0.09274742752313614, -0.0045479414984583855, -0.13190139830112457],
        ],
    ),
    "swiss_roll": (
        lambda: swiss_roll(2, seed=3),
        [[2.4374966621398926, -0.32715433835983276], [1.3305370807647705, 0.38180142641067505]],
    ),
    "uncorrelated_cauchy": (
        lambda: uncorrelated_cauchy(2, 3, seed=3),
        [
            [-0.0587024986743927, -0.2603203058242798, 0.007363565266132355],
            [-0.02433106116950512, -0.017152918502688408, 0.009928547777235508],
        ],
    ),
    "gaussian": (
        lambda: gaussian(2, 3, seed=3),
        [
            [-0.027812520042061806, 1.9467320442199707, 1.6395635604858398],
            [0.6525338292121887, -0.8563023209571838, -0.39935410022735596],
        ],
    ),
    "spirals": (
        lambda: spirals(2, seed=3),
        [[2.1661434173583984, 1.7340993881225586], [4.457778453826904, 4.500187397003174]],
    ),
}
# Sums and products alone have the same bits everywhere, after thousands of chaotic steps.
STORED_FLOWS: dict[str, tuple[Callable[[], Tensor], list[list[float]]]] = {
    "lorenz63": (
        lambda: lorenz63(2, 3, seed=3),
        [
            [13.321200370788574, 6.516523361206055, 2.1610255241394043],
            [-13.353669166564941, -4.890201568603516, -0.43298351764678955],
        ],
    ),
    "lorenz96": (
        lambda: lorenz96(2, 4, seed=3),
        [
            [1.3750680685043335, -2.8790340423583984, 2.3705759048461914, 8.33641529083252],
            [4.530575752258301, 7.190845489501953, -1.1495784521102905, 2.64501953125],
        ],
    ),
}


def assert_mean(x: Tensor, expected: float) -> None:
    """Assert the mean of independent values within 4 standard errors."""
    x = x.double()
    assert abs(x.mean().item() - expected) < 4 * x.std().item() / len(x) ** 0.5


def cauchy_cdf(x: Tensor) -> Tensor:
    return 0.5 + x.arctan() / math.pi


@pytest.mark.parametrize("name", STORED)
def test_stored_values(name: str) -> None:
    sample, expected = STORED[name]
    torch.testing.assert_close(sample(), torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", STORED_FLOWS)
def test_stored_values_of_the_flows(name: str) -> None:
    sample, expected = STORED_FLOWS[name]
    assert torch.equal(sample(), torch.tensor(expected))


@pytest.mark.parametrize(
    "sample",
    [
        lambda n, seed: correlated_cauchy(n, 3, seed),
        lambda n, seed: gaussian_cauchy(n, 3, seed),
        lambda n, seed: uncorrelated_cauchy(n, 3, seed),
        lambda n, seed: gaussian(n, 3, seed),
        spirals,
        swiss_roll,
        lambda n, seed: lorenz63(n, 2, seed),
        lambda n, seed: lorenz96(n, 5, seed),
    ],
)
def test_a_sample_depends_on_its_index_and_the_seed_alone(
    sample: Callable[[int, int], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = sample(3, 1)
    # Five trajectories of Lorenz-63, or three of Lorenz-96, at a time.
    monkeypatch.setattr("fastmsgm.data.flows._BLOCK", 15)
    many = sample(7, 1)
    assert many.dtype == torch.float32
    assert many.is_contiguous()
    assert torch.equal(many[:3], few)
    assert len(many.unique(dim=0)) == 7
    assert not (sample(3, 2) == few).any()


def test_mixing_is_as_documented() -> None:
    conditions = [torch.linalg.cond(mixing(d)).item() for d in (2, 4, 8)]
    assert conditions == pytest.approx([3.2, 3.9, 9.1], abs=0.05)
    entries = mixing(100).flatten()
    assert kolmogorov_smirnov(entries, torch.special.ndtr)[1] > 1e-3


@pytest.mark.parametrize("d", [2, 4, 8])
def test_correlated_cauchy_projections(d: int) -> None:
    x = 50 * correlated_cauchy(20_000, d, seed=d).double()
    for u in torch.randn(8, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        scale = (u @ mixing(d)).abs().sum()
        assert kolmogorov_smirnov(x @ u / scale, cauchy_cdf)[1] > 1e-5
    c = x @ torch.linalg.inv(mixing(d)).mT  # which must be independent, in sign and in size
    for sides in (c.sign(), (c.abs() - 1).sign()):
        correlations = sides.mT @ sides / len(c) - torch.eye(d)
        assert correlations.abs().max() < 4.5 / len(c) ** 0.5


def test_correlated_cauchy_tail() -> None:
    x = correlated_cauchy(200_000, 4, seed=1).double()
    norms, columns = x.norm(dim=1), mixing(4).norm(dim=0)
    at = 20 * torch.logspace(-0.5, 0.5, 5)
    expected = 2 * columns.sum().item() / (50 * math.pi * at.double())
    tails = survival(norms, at)
    assert ((tails - expected).abs() < 4 * (expected / len(x)).sqrt()).all()
    # The farthest samples lie along a column of A, with a share that is its length.
    cosines = (x[norms > 20] @ (mixing(4) / columns)).abs() / norms[norms > 20, None]
    assert (cosines.max(1).values > 0.99).double().mean() > 0.9
    shares = cosines.argmax(1).bincount(minlength=4) / len(cosines)
    assert ((shares - columns / columns.sum()).abs() < 4 * 0.5 / len(cosines) ** 0.5).all()


@pytest.mark.parametrize("d", [2, 5])
def test_gaussian_cauchy(d: int) -> None:
    x = 50 * gaussian_cauchy(5_000, d, seed=1).double()
    # P(c z <= t) = E P(c <= t / |z|): over the midpoints of 400 quantiles of |z|.
    half = torch.special.ndtri(0.5 + (torch.arange(400, dtype=torch.float64) + 0.5) / 800)
    for u in torch.randn(3, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        scale = (mixing(d).mT @ u).norm()
        assert (
            kolmogorov_smirnov(x @ u / scale, lambda t: cauchy_cdf(t[:, None] / half).mean(1))[1]
            > 1e-5
        )
    # With one c a sample, directions are uniform in the coordinates of z, whatever the norm.
    z = x @ torch.linalg.inv(mixing(d)).mT
    norms = z.norm(dim=1)
    for part in (norms < norms.median(), norms > 10 * norms.median()):
        assert kolmogorov_smirnov(z[part, 0] / z[part, 1], cauchy_cdf)[1] > 1e-5
    assert kolmogorov_smirnov(norms, lambda r: chi_cauchy_cdf(r, d))[1] > 1e-5


def chi_cauchy_cdf(r: Tensor, d: int) -> Tensor:
    """Return P(|c| |z| <= r), z d normals and c one Cauchy variable, by quadrature over |z|."""
    s = torch.linspace(0, 12, 401, dtype=torch.float64)[1:]
    density = s ** (d - 1) * (-s.square() / 2).exp()
    return (2 / math.pi * (r[:, None] / s).arctan()) @ (density / density.sum())


def test_swiss_roll() -> None:
    spiral = 5 * swiss_roll(5_000, seed=1, noise=0.0).double()
    t = spiral.norm(dim=1)
    assert kolmogorov_smirnov(t, lambda r: ((r / math.pi - 1.5) / 3).clamp(0, 1))[1] > 1e-5
    torch.testing.assert_close(
        spiral / t[:, None], torch.stack([t.cos(), t.sin()], dim=1), rtol=0, atol=2e-5
    )
    noise = (5 * swiss_roll(5_000, seed=1, noise=0.8).double() - spiral) / 0.8
    for u in ((1.0, 0.0), (0.0, 1.0), (0.6, 0.8)):
        assert kolmogorov_smirnov(noise @ torch.tensor(u).double(), torch.special.ndtr)[1] > 1e-5


@pytest.mark.parametrize("d", [2, 5])
def test_sets_of_independent_coordinates(d: int) -> None:
    for x, cdf in (
        (50 * uncorrelated_cauchy(5_000, d, seed=d), cauchy_cdf),
        (gaussian(5_000, d, seed=d), torch.special.ndtr),
    ):
        x = x.double()
        for column in x.T:
            assert kolmogorov_smirnov(column, cdf)[1] > 1e-5
        for sides in (x.sign(), (x.abs() - x.abs().median()).sign()):
            correlations = sides.T @ sides / len(x) - torch.eye(d)
            assert correlations.abs().max() < 4.5 / len(x) ** 0.5


def test_spirals() -> None:
    exact = 3 * (spirals(5_000, seed=1, noise=0.0).double() - 4)
    t = exact.norm(dim=1)
    assert kolmogorov_smirnov(t, lambda r: (r / (3 * math.pi)).clamp(0, 1).square())[1] > 1e-5
    arms = torch.stack([-t.cos(), t.sin()], dim=1) * t[:, None]
    sign = (exact * arms).sum(1).sign()
    torch.testing.assert_close(exact, sign[:, None] * arms, rtol=0, atol=1e-4)
    assert_mean(sign, 0)
    noisy = spirals(5_000, seed=1)
    assert noisy.min() > 0
    noise = (noisy.double() - 4 - exact / 3) / 0.1
    for u in ((1.0, 0.0), (0.0, 1.0), (0.6, 0.8)):
        assert kolmogorov_smirnov(noise @ torch.tensor(u).double(), torch.special.ndtr)[1] > 1e-5


def test_lorenz63_invariants() -> None:
    x, y, z = (
        lorenz63(2_700, 3, seed=1, spacing=0.01, coordinate=name).double()
        for name in ("x", "y", "z")
    )
    # The equations, integrated over the window by Simpson's rule: slopes reach 400.
    for difference, slope in (
        (x[:, 2] - x[:, 0], 10 * (y - x)),
        (y[:, 2] - y[:, 0], x * (28 - z) - y),
        (z[:, 2] - z[:, 0], x * y - 8 / 3 * z),
    ):
        mean_slope = (slope[:, 0] + 4 * slope[:, 1] + slope[:, 2]) / 6
        assert (difference / 0.02 - mean_slope).abs().max() < 0.05
    x, y, z = x[:, 0], y[:, 0], z[:, 0]
    assert_mean(z, 23.55)
    assert_mean(x.square() - 8 / 3 * z, 0)
    assert_mean(x * y - 8 / 3 * z, 0)
    assert_mean(x * z, 0)
    assert kolmogorov_smirnov(x[::2], -x[1::2])[1] > 1e-5
    assert x.square().mean().sqrt().item() == pytest.approx(7.92, abs=0.25)


def test_lorenz63_windows_are_stationary() -> None:
    x = lorenz63(2_700, seed=2).double()
    assert x.shape == (2_700, 16)
    assert kolmogorov_smirnov(x[::2, 0], x[1::2, -1])[1] > 1e-5
    for lag in (1, 4):
        assert_mean(x[:, 0] * x[:, lag] - x[:, -1 - lag] * x[:, -1], 0)
    assert_mean(x[::2, 0] * x[1::2, 0], 0)  # neighbours in the set are not neighbours in time


@pytest.mark.parametrize(("d", "forcing", "mean"), [(16, 8.0, 2.34), (7, 20.0, None)])
def test_lorenz96_invariants(d: int, forcing: float, mean: float | None) -> None:
    x = lorenz96(1_500, d, seed=1, forcing=forcing).double()
    assert_mean((x.square() - forcing * x).mean(1), 0)
    assert_mean((x * x.roll(1, 1) - x * x.roll(2, 1) + x).mean(1), forcing)
    assert mean is None or x.mean().item() == pytest.approx(mean, abs=0.06)
    assert kolmogorov_smirnov(x[::2, 0], x[1::2, 3])[1] > 1e-5


@pytest.mark.parametrize(
    "sample",
    [
        *(correlated_cauchy, uncorrelated_cauchy, gaussian_cauchy, gaussian),
        *(swiss_roll, spirals, lorenz63, lorenz96),
    ],
)
def test_every_set_refuses(sample: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        sample(0)
    with pytest.raises(TypeError, match=r"n must be an int, got 10\.0 \(float\)"):
        sample(10.0)
    with pytest.raises(ValueError, match=r"seed must be in 0 \.\. 2\^64 - 1, got -1"):
        sample(1, seed=-1)
    with pytest.raises(TypeError, match=r"seed must be an int, got True \(bool\)"):
        sample(1, seed=True)


@pytest.mark.parametrize(
    ("sample", "names"),
    [
        (correlated_cauchy, ("n", "d", "seed")),
        (gaussian_cauchy, ("n", "d", "seed")),
        (uncorrelated_cauchy, ("n", "d", "seed")),
        (gaussian, ("n", "d", "seed")),
        (swiss_roll, ("n", "seed")),
        (spirals, ("n", "seed")),
        (lorenz63, ("n", "window", "seed")),
        (lorenz96, ("n", "d", "seed")),
    ],
)
def test_integers_of_every_set(sample: Callable[..., Tensor], names: tuple[str, ...]) -> None:
    """Bools and floats are refused, NumPy's integers are taken."""
    for name in names:
        for wrong in (5.0, True, "5"):
            options: dict[str, Any] = {"n": 2, name: wrong}
            with pytest.raises(TypeError, match=f"{name} must be an int, got {wrong!r}"):
                sample(**options)
    numpy_integers: dict[str, Any] = {name: np.int64(5) for name in names}
    assert torch.equal(sample(**numpy_integers), sample(**dict.fromkeys(names, 5)))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda: correlated_cauchy(1, 1), "d must be at least 2, got 1"),
        (lambda: gaussian_cauchy(1, 1), "d must be at least 2, got 1"),
        (lambda: uncorrelated_cauchy(1, 1), "d must be at least 2, got 1"),
        (lambda: gaussian(1, 1), "d must be at least 2, got 1"),
        (lambda: spirals(1, noise=0.2), r"noise must be in \[0, 0\.1\], got 0\.2"),
        (lambda: spirals(1, noise=math.nan), r"noise must be in \[0, 0\.1\], got nan"),
        (lambda: swiss_roll(1, noise=-0.1), "noise must be finite and at least 0, got -0.1"),
        (lambda: swiss_roll(1, noise=math.nan), "noise must be finite and at least 0, got nan"),
        (lambda: lorenz63(1, 0), "window must be at least 1, got 0"),
        (lambda: lorenz63(1, spacing=0.0), r"spacing must be a positive number, got 0\.0"),
        (lambda: lorenz63(1, coordinate="w"), 'coordinate must be "x", "y" or "z", got \'w\''),  # type: ignore[arg-type]
        (lambda: lorenz96(1, 3), "d must be at least 4, got 3"),
        (lambda: lorenz96(1, forcing=0.5), "forcing must be finite and above 8/9, got 0.5"),
    ],
)
def test_a_set_refuses(sample: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample()
