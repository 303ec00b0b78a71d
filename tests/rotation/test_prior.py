"""RadialPrior and LogNorms: the eCDF, the KDE, the tail of the norms, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastmsgm import rng
from fastmsgm.evaluation.metrics import kolmogorov_smirnov
from fastmsgm.rotation import RadialPrior
from fastmsgm.rotation.prior import LogNorms, hill, is_heavy_tailed
from tests.rotation.exact import z_scores


def cauchy_norms(n: int, seed: int = 0) -> Tensor:
    """(n, 2) whose norms are of tail index 1: |C| with C Cauchy, in random directions."""
    u = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    radius, angle = torch.tan(math.pi / 2 * u[:, :1]), 2 * math.pi * u[:, 1:]
    return (radius * torch.cat((angle.cos(), angle.sin()), dim=1)).float()


def test_the_ecdf_samples_the_norms_of_the_data() -> None:
    x = cauchy_norms(3000)
    prior, norms = RadialPrior.fit(x), x.double().norm(dim=1)
    samples = prior.sample(20_000, rng.stream(0))
    assert samples.dtype == torch.float32
    samples = samples.double()
    assert kolmogorov_smirnov(samples, norms)[1] >= 1e-5
    # Every sample is a norm of the data, none is beyond the largest, and nearly all occur.
    nearest = norms.sort().values[
        torch.searchsorted(norms.sort().values, samples * (1 - 3e-6)).clamp(max=2999)
    ]
    assert float((samples / nearest - 1).abs().max()) < 3e-6
    assert len(nearest.unique()) > 2900


@pytest.mark.parametrize("smooth", [False, True])
def test_a_norm_depends_on_seed_and_index_alone(smooth: bool) -> None:
    prior = RadialPrior.fit(cauchy_norms(500), smooth=smooth, pareto=0.05)
    whole = prior.sample(100, rng.stream(4))
    assert torch.equal(whole[40:60], prior.sample(20, rng.stream(4, 40)))
    assert len(whole.unique()) > 80
    assert float(whole.min()) > 0


def test_the_kde_smooths_the_distribution_of_the_log_norm() -> None:
    """Its mean is that of the data, its variance the data's plus the squared bandwidth.

    The bandwidth is Silverman's, 0.9 sd n^-0.2.
    """
    z = torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = torch.exp(0.5 * z + 2) * torch.tensor([[0.6, -0.8]])
    prior, logs = RadialPrior.fit(data, smooth=True), data.norm(dim=1).log()
    quartiles = torch.quantile(logs, torch.tensor([0.25, 0.75]).double())
    spread = min(float(logs.std(correction=0)), float(quartiles[1] - quartiles[0]) / 1.34)
    assert prior.bandwidth == pytest.approx(0.9 * spread * 200**-0.2)
    samples = prior.sample(40_000, rng.stream(0)).double().log()
    assert abs(float(z_scores(samples, float(logs.mean())))) < 4.5
    variance = float(logs.var(correction=0)) + prior.bandwidth**2
    assert float(samples.var()) == pytest.approx(variance, rel=0.04)
    assert len(samples.unique()) > 30_000
    kernels = torch.special.ndtr((samples[:5000, None] - logs) / prior.bandwidth).mean(1)
    assert kolmogorov_smirnov(kernels, lambda p: p)[1] >= 1e-5


def test_the_pareto_tail_reaches_beyond_the_data() -> None:
    x = cauchy_norms(10_000)
    largest, n = float(x.norm(dim=1).max()), 200_000
    prior, plain = RadialPrior.fit(x, pareto=0.02), RadialPrior.fit(x)
    assert prior.tail == 200
    assert prior.tail_index == pytest.approx(1, abs=4 / math.sqrt(200))
    samples = prior.sample(n, rng.stream(1)).double()
    beyond = int((samples > largest).sum())
    threshold = float(torch.exp(prior.log_norms[-201].double()))
    expected = n * 0.02 * (largest / threshold) ** -prior.tail_index
    assert abs(beyond - expected) < 4.5 * math.sqrt(expected) + 1
    assert beyond > 3
    # Above the threshold log(r / threshold) is exponential; below it the eCDF stays as it is.
    excess = torch.log(samples[samples > threshold * (1 + 1e-6)] / threshold)
    assert len(excess) == pytest.approx(0.02 * n, abs=4.5 * math.sqrt(0.02 * n))
    assert kolmogorov_smirnov(excess, lambda e: -torch.expm1(-prior.tail_index * e))[1] >= 1e-5
    without = plain.sample(n, rng.stream(1)).double()
    assert float(without.max()) <= largest * (1 + 3e-6)
    body = samples <= threshold
    assert torch.equal(samples[body], without[body])


def test_a_prior_of_equal_norms() -> None:
    """For data on a sphere the bandwidth is zero and the tail constant."""
    x = 5 * torch.eye(4)
    prior = RadialPrior.fit(x, smooth=True, pareto=0.5)
    assert prior.tail_index == math.inf
    assert prior.sample(50, rng.stream(0)).tolist() == pytest.approx([5.0] * 50)


def test_no_norm_of_a_heavy_tail_overflows() -> None:
    prior = RadialPrior(torch.linspace(0, 60, 100), tail=50)
    assert torch.isfinite(prior.sample(100_000, rng.stream(0))).all()


def test_a_data_set_gives_the_prior_of_the_tensor() -> None:
    x = cauchy_norms(500)
    dataset = TensorDataset(x, torch.arange(500))
    for data in (dataset, DataLoader(dataset, 64, shuffle=True)):
        assert RadialPrior.fit(data, smooth=True, pareto=0.1) == RadialPrior.fit(
            x, smooth=True, pareto=0.1
        )


def test_the_norms_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = cauchy_norms(500)
    whole = RadialPrior.fit(x)
    monkeypatch.setattr("fastmsgm.data.blocks.BLOCK", 14)
    assert RadialPrior.fit(x) == whole


# ---- comparison ----


def test_priors_are_equal_by_value() -> None:
    one, two = (RadialPrior(torch.arange(3.0), 0.5, 1) for _ in range(2))
    assert one == two
    assert len({one, two}) == 1


@pytest.mark.parametrize(
    "other",
    [
        RadialPrior(torch.arange(3.0), 0.25, 1),
        RadialPrior(torch.arange(3.0), 0.5, 2),
        RadialPrior(torch.arange(4.0), 0.5, 1),
        RadialPrior(torch.arange(3.0) + 1, 0.5, 1),
        "a prior",
    ],
)
def test_priors_differ(other: object) -> None:
    assert RadialPrior(torch.arange(3.0), 0.5, 1) != other


def test_the_repr_is_short() -> None:
    prior = RadialPrior(torch.zeros(50_000), tail=500)
    assert repr(prior) == "RadialPrior(50000 norms, bandwidth=0, tail=500)"


# ---- errors ----


def test_an_error_says_which_samples_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmsgm.data.blocks.BLOCK", 20)
    x = torch.ones(100, 2)
    x[57] = 0
    with pytest.raises(ValueError, match=r"no zero vectors, got 1: .*\(in samples 50 to 59\)"):
        RadialPrior.fit(x)


@pytest.mark.parametrize("pareto", [-0.1, 0.6, math.nan, True])
def test_fit_refuses_a_share_out_of_range(pareto: float) -> None:
    with pytest.raises(ValueError, match=r"pareto must be a share in \[0, 0\.5\]"):
        RadialPrior.fit(torch.ones(3, 2), pareto=pareto)


def test_fit_refuses_a_share_that_rounds_to_no_norm() -> None:
    message = (
        r"pareto must be a share of at least one of the 40 norms, got 0\.01, .* "
        r"give at least 0\.025, or 0"
    )
    with pytest.raises(ValueError, match=message):
        RadialPrior.fit(torch.ones(40, 2), pareto=0.01)
    assert RadialPrior.fit(torch.ones(40, 2), pareto=0.025).tail == 1


def test_fit_refuses_zero_vectors() -> None:
    with pytest.raises(ValueError, match="x must have no zero vectors, got 3"):
        RadialPrior.fit(torch.zeros(3, 2))


# ---- heavy tails ----


def pareto_logs(alpha: float, n: int = 100_000) -> Tensor:
    """Ascending log-norms of index alpha, at the quantiles of their distribution."""
    return -torch.log((torch.arange(n, 0, -1) - 0.5).double() / n) / alpha


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0, 6.0])
def test_hills_estimate_is_the_index_of_a_pareto_distribution(alpha: float) -> None:
    assert hill(pareto_logs(alpha), 1000) == pytest.approx(alpha, rel=0.01)


def of_logs(logs: Tensor) -> Tensor:
    """Vectors (n, 2) of given log-norms."""
    return torch.exp(logs)[:, None] * torch.tensor([[0.6, -0.8]])


@pytest.mark.parametrize(
    ("data", "heavy"),
    [
        ("cauchy", True),
        ("index 3.5", True),
        ("index 4.5", False),
        ("gaussian", False),
        ("lognormal of deviation 1", True),  # its index there is about 3
        ("lognormal of deviation 0.3", False),
        ("of one norm", False),
        ("few cauchy", False),
    ],
)
def test_heavy_tails_by_hills_estimate(data: str, heavy: bool) -> None:
    z = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    x = {
        "cauchy": cauchy_norms(20_000),
        "index 3.5": of_logs(pareto_logs(3.5)),
        "index 4.5": of_logs(pareto_logs(4.5)),
        "gaussian": z,
        "lognormal of deviation 1": of_logs(z[:, 0]),
        "lognormal of deviation 0.3": of_logs(0.3 * z[:, 0]),
        "of one norm": torch.eye(4).repeat(500, 1),
        "few cauchy": cauchy_norms(900),
    }[data]
    assert is_heavy_tailed(LogNorms(x).ascending) == heavy


@pytest.mark.parametrize(("n", "k"), [(1, 1), (30, 1), (149, 1), (151, 2), (1000, 10)])
def test_the_largest_one_per_cent_are_at_least_one(n: int, k: int) -> None:
    x = cauchy_norms(n)
    expected = x.double().norm(dim=1).argsort()[-k:].sort().values
    assert torch.equal(LogNorms(x).top(), expected)
    assert torch.equal(LogNorms(TensorDataset(x)).top(), expected)


@pytest.mark.parametrize(("share", "larger"), [(0.01, 10), (0.5, 500), (1e-9, 1), (0.0004, 1)])
def test_a_share_of_the_norms_is_larger_than_the_saturation(share: float, larger: int) -> None:
    norms = LogNorms(cauchy_norms(1000))
    limit = norms.saturation(share)
    assert int((norms.values > limit).sum()) == larger


def test_heavy_tails_saturate_at_the_largest_thousandth_by_default() -> None:
    norms = LogNorms(cauchy_norms(20_000))
    limit = norms.saturation()
    assert int((norms.values > limit).sum()) == 20
    assert norms.saturation(0) == math.inf
    assert LogNorms(torch.randn(2000, 3)).saturation() == math.inf


@pytest.mark.parametrize("n", [1, 2])
def test_the_saturation_of_one_or_two_norms_is_the_smallest(n: int) -> None:
    norms = LogNorms(cauchy_norms(n))
    assert norms.saturation(0.5) == float(norms.values.min())


@pytest.mark.parametrize("share", [-0.1, 0.6, math.nan, "0.1", True])
def test_a_saturation_out_of_range(share: Any) -> None:
    with pytest.raises(ValueError, match=r"saturate must be a share of the norms in \[0, 0.5\]"):
        LogNorms(cauchy_norms(10)).saturation(share)


# ---- errors ----


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"log_norms": [0.0, 1.0]}, ValueError, "log_norms must be a tensor of shape"),
        ({"log_norms": torch.tensor([1.0, 0.0])}, ValueError, "log_norms must be in ascending"),
        ({"log_norms": torch.tensor([0.0, math.nan])}, ValueError, "log_norms must be a tensor of"),
        ({"log_norms": torch.empty(0)}, ValueError, "log_norms must be a tensor of shape"),
        ({"bandwidth": -1.0}, ValueError, "bandwidth must be at least 0"),
        ({"tail": 3}, ValueError, "tail must be from 0 to 2"),
        ({"tail": -1}, ValueError, "tail must be at least 0, got -1"),
        ({"tail": 1.0}, TypeError, r"tail must be an int, got 1\.0 \(float\)"),
        ({"tail": True}, TypeError, r"tail must be an int, got True \(bool\)"),
    ],
)
def test_the_prior_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"log_norms": torch.arange(3.0), **change}
    with pytest.raises(error, match=message):
        RadialPrior(**arguments)
