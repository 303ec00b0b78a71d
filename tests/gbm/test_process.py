"""GBM: the distribution of the noised data, the range of its arguments, and its errors."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fastmsgm import GBM

N, D = 4000, 10


def normal_p(y: Tensor, mean: float, std: float) -> float:
    return float(stats.kstest(((y.double() - mean) / std).flatten().numpy(), "norm").pvalue)


@pytest.mark.parametrize(
    ("process", "t"),
    [
        (GBM(0.8), 1.0),
        (GBM(0.8), 0.3),
        (GBM(0.8, mu=0.0), 0.5),
        (GBM(2.0, mu=5.0, T=0.5), 0.5),
        (GBM(12.0), 1.0),
    ],
)
def test_perturb_marginals_are_log_normal(process: GBM, t: float) -> None:
    x0 = torch.tensor([1.5, -0.3, 40.0, -1.0, 1e-3]).repeat(N, 2)
    x_t = process.perturb(x0, torch.full((N,), t), seed=1)
    y = torch.log(x_t.abs().double()) - torch.log(x0.abs().double())
    mu = process.sigma**2 / 2 if process.mu is None else process.mu
    shift, s = (mu - process.sigma**2 / 2) * t, process.sigma * math.sqrt(t)
    assert normal_p(y, shift, s) >= 1e-5
    assert abs(float(y.mean()) - shift) < 4.5 * s / math.sqrt(y.numel())
    assert torch.equal(x_t.sign(), x0.sign())


def test_every_sample_has_its_own_noise_level() -> None:
    t = torch.linspace(0, 1, N)
    process = GBM(3.0, mu=1.0)
    y = torch.log(process.perturb(torch.ones(N, D), t, seed=2).double())
    assert float(y[0].abs().max()) == 0
    z = ((y - process.log_drift * t[:, None]) / process.marginal_std(t)[:, None])[1:]
    assert normal_p(z, 0, 1) >= 1e-5


def test_perturb_composes() -> None:
    """Noise for t and then for u has the distribution of noise for t + u."""
    process = GBM(1.2, mu=0.3)
    first = process.perturb(torch.ones(N, D), torch.full((N,), 0.25), seed=3)
    second = process.perturb(first, torch.full((N,), 0.5), seed=4)
    assert normal_p(torch.log(second), process.log_drift * 0.75, 1.2 * math.sqrt(0.75)) >= 1e-5


def test_start_is_an_index_of_the_stream() -> None:
    process, x0 = GBM(1.0), torch.rand(20, 3, 2) + 1
    t = torch.rand(20)
    whole = process.perturb(x0, t, seed=7, start=5)
    assert torch.equal(whole[12:], process.perturb(x0[12:], t[12:], seed=7, start=17))
    assert not torch.equal(whole, process.perturb(x0, t, seed=8, start=5))


def test_time_and_noise_level_are_inverse() -> None:
    process, t = GBM(3.0, T=2.0), torch.tensor([0.0, 0.1, 2.0])
    torch.testing.assert_close(process.time(process.marginal_std(t)), t)
    assert process.sigma_max == pytest.approx(3 * math.sqrt(2))
    assert float(process.marginal_std(t)[-1]) == pytest.approx(process.sigma_max)


def test_drift_is_zero_by_default() -> None:
    assert GBM(3.0).log_drift == 0
    assert GBM(2.0, mu=2.0).log_drift == 0
    assert GBM(2.0, mu=0.5).log_drift == -1.5


@pytest.mark.parametrize("T", [1.0, 0.25])
@pytest.mark.parametrize("variance", [0.0, 0.06, 1.0, 17.3, 100.0])
def test_overflow_names_the_largest_sigma(variance: float, T: float) -> None:
    """The limit in the message, lowered by a ten-thousandth, passes; a sigma above it does not."""
    edge = math.sqrt((86 / 6.77) ** 2 - variance) / math.sqrt(T)
    GBM(0.99995 * edge, T=T).check_range(variance)
    with pytest.raises(ValueError, match="lower sigma") as caught:
        GBM(1.00005 * edge, T=T).check_range(variance)
    found = re.search(r"sigma sqrt\(T\) must be below ([\d.]+)", str(caught.value))
    assert found is not None
    allowed = float(found[1])
    assert allowed > 0.98 * edge * math.sqrt(T)
    GBM(0.9999 * allowed / math.sqrt(T), T=T).check_range(variance)


def test_the_largest_noise_stays_finite() -> None:
    process = GBM(12.7)
    assert math.isfinite(float(torch.exp(torch.tensor(6.77 * process.sigma_max))))
    assert bool(torch.isfinite(process.perturb(torch.ones(N, D), torch.ones(N))).all())


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["sigma", "T"])
def test_sigma_and_time_must_be_positive(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got {bad!r}"):
        GBM(**{"sigma": 1.0, "T": 1.0, name: bad})


def test_numpy_numbers_become_floats() -> None:
    numbers: dict[str, Any] = {"sigma": np.float32(0.5), "mu": np.float64(0.25), "T": np.int64(2)}
    process = GBM(**numbers)
    assert process == GBM(0.5, 0.25, 2.0)
    assert all(type(value) is float for value in vars(process).values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, True])
def test_mu_must_be_finite(bad: float) -> None:
    with pytest.raises(
        ValueError, match=r"mu must be a finite number or None \(sigma\^2 / 2\), got"
    ):
        GBM(1.0, mu=bad)


@pytest.mark.parametrize("name", ["sigma", "mu", "T"])
def test_a_string_is_not_a_number(name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        GBM(**{"sigma": 1.0, name: "2"})


@pytest.mark.parametrize(
    ("x0", "error", "message"),
    [
        (torch.zeros(3, 2), ValueError, r"x0 must have no zeros, got 100\.00%: .* offset=1\.0"),
        (torch.tensor([[1.0, 2.0], [3.0, 0.0]]), ValueError, r"x0 must have no zeros, got 25\.00%"),
        (
            torch.tensor([[1.0, math.nan]]),
            ValueError,
            r"x0 must be finite, got NaN or infinity in 1 entries",
        ),
        (
            torch.tensor([[math.inf, -math.inf]]),
            ValueError,
            r"x0 must be finite, got NaN or infinity in 2 entries",
        ),
        (
            torch.ones(2, 2, dtype=torch.uint8),
            TypeError,
            r"x0 must be floating point, got torch\.uint8: .*255",
        ),
        (
            torch.ones(2, 2, dtype=torch.float64),
            TypeError,
            r"x0 must be float32, got torch\.float64",
        ),
        (
            torch.ones(2),
            ValueError,
            r"x0 must have shape \(n, \.\.\.\) with n >= 1 and features, got \(2,\)",
        ),
        (
            torch.ones(0, 2),
            ValueError,
            r"x0 must have shape \(n, \.\.\.\) with n >= 1 and features, got \(0, 2\)",
        ),
    ],
)
def test_perturb_refuses_data(x0: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GBM(1.0).perturb(x0, torch.ones(len(x0)))


@pytest.mark.parametrize(
    ("t", "got"),
    [
        (torch.ones(3), r"\(3,\)"),
        (torch.tensor(1.0), r"\(\)"),
        (torch.ones(2, 1), r"\(2, 1\)"),
        (torch.tensor([0.5, 1.5]), r"1\.5"),
        (torch.tensor([-0.25, 0.5]), r"-0\.25"),
        (torch.tensor([math.nan, 0.5]), "nan"),
    ],
)
def test_perturb_refuses_times(t: Tensor, got: str) -> None:
    """The message shows what was given: the shape where that is wrong, else the value."""
    with pytest.raises(
        ValueError, match=rf"t must have shape \(2,\) and values in \[0, 1\], got .*{got}"
    ):
        GBM(1.0).perturb(torch.ones(2, 3), t)


@pytest.mark.parametrize("sigma", [1e200, True])
def test_a_sigma_that_overflows(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        GBM(sigma)


def test_a_drift_that_overflows() -> None:
    with pytest.raises(ValueError, match=r"mu must keep .* got mu=1000000\.0"):
        GBM(0.8, mu=1e6)


@pytest.mark.parametrize("name", ["seed", "start"])
def test_places_in_the_stream_are_integers(name: str) -> None:
    """A bool and a float are refused, NumPy's integers are taken."""
    process, x0, t = GBM(1.0), torch.ones(2, 3), torch.ones(2)
    for wrong in (1.0, True, "1"):
        options: dict[str, Any] = {name: wrong}
        with pytest.raises(TypeError, match=f"{name} must be an int, got {wrong!r}"):
            process.perturb(x0, t, **options)
    options = {name: np.int64(7)}
    assert torch.equal(process.perturb(x0, t, **options), process.perturb(x0, t, **{name: 7}))
