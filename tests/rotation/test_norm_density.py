"""The density of the norms: against its formula, its integral, and the samples of the prior."""

from __future__ import annotations

import math

import pytest
import torch

from fastmsgm import rng
from fastmsgm.rotation import RadialPrior
from fastmsgm.rotation.norm_density import silverman


def prior(m: int = 300, **options: float) -> RadialPrior:
    z = torch.randn(m, generator=torch.Generator().manual_seed(0)).sort().values
    return RadialPrior(z, **options)  # pyright: ignore[reportArgumentType]


def test_it_is_the_kde_of_log_norms_over_r_far_away_too() -> None:
    p = prior(bandwidth=0.2)
    r = torch.exp(torch.tensor([-30.0, -4.0, -1.0, 0.3, 2.0, 9.0, 40.0], dtype=torch.float64))
    z = (torch.log(r)[:, None] - p.log_norms.double()) / 0.2
    kernels = torch.logsumexp(-z.square() / 2, 1) - math.log(300 * 0.2 * math.sqrt(2 * math.pi))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(p.log_density(r[order]), (kernels - torch.log(r))[order])


@pytest.mark.parametrize("tail", [0, 30])
def test_it_integrates_to_one(tail: int) -> None:
    logs = torch.linspace(-8, 40, 40_001, dtype=torch.float64)
    density = torch.exp(prior(bandwidth=0.1, tail=tail).log_density(torch.exp(logs)) + logs)
    assert float(torch.trapezoid(density, logs)) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("tail", [0, 30])
def test_it_is_the_density_of_the_samples(tail: int) -> None:
    p = prior(bandwidth=0.1, tail=tail)
    samples = torch.log(p.sample(200_000, rng.stream(1)).double())
    for low, high in ((-1.0, 0.0), (0.5, 1.0), (1.5, 2.5), (2.5, 8.0)):
        logs = torch.linspace(low, high, 2001, dtype=torch.float64)
        share = torch.trapezoid(torch.exp(p.log_density(torch.exp(logs)) + logs), logs)
        found = ((samples > low) & (samples < high)).double().mean()
        assert abs(float(found - share)) < 4 * math.sqrt(float(share) / 200_000) + 1e-5


def test_without_a_bandwidth_it_takes_silvermans() -> None:
    p = prior()
    assert p.bandwidth == 0
    assert p.density_bandwidth == pytest.approx(silverman(p.log_norms.double()))
    r = torch.tensor([0.5, 2.0])
    smooth = RadialPrior(p.log_norms, p.density_bandwidth)
    assert torch.equal(p.log_density(r), smooth.log_density(r))


def test_norms_without_a_density() -> None:
    with pytest.raises(ValueError, match="the norms do not vary"):
        RadialPrior(torch.zeros(4)).log_density(torch.ones(2))
    flat = torch.tensor([-1.0, 0.0, 1.0, 2.0, 2.0, 2.0])
    with pytest.raises(ValueError, match="the norms do not vary"):
        RadialPrior(flat, 0.1, tail=2).log_density(torch.ones(2))
