"""LinearBetaSchedule: the integrated beta, its inverse, and the shares of signal and noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastmsgm.rotation import Rotation
from fastmsgm.sde import VP, LinearBetaSchedule
from fastmsgm.sde.beta_schedule import alpha, check_integrated_beta, sigma


@pytest.mark.parametrize("kind", [LinearBetaSchedule, Rotation, VP])
@pytest.mark.parametrize("betas", [(0.1, 20.0), (3.0, 3.0), (5.0, 0.5)])
def test_the_integrated_beta_is_the_integral_of_beta(
    kind: type[LinearBetaSchedule], betas: tuple[float, float]
) -> None:
    schedule, t = kind(beta_min=betas[0], beta_max=betas[1]), np.linspace(0, 1, 2001)
    rates = schedule.beta(t)
    assert rates[[0, -1]] == pytest.approx(betas)
    integral = np.append(0, np.cumsum((rates[1:] + rates[:-1]) / 2) * (t[1] - t[0]))
    assert schedule.integrated_beta(t) == pytest.approx(integral)
    assert schedule.time(schedule.integrated_beta(t)) == pytest.approx(t)
    assert schedule.B_max == pytest.approx(schedule.integrated_beta(1.0))


def test_alpha_and_sigma_agree_with_their_definitions() -> None:
    B = np.geomspace(0.01, 30, 50)
    assert alpha(B) == pytest.approx(np.exp(-B / 2))
    assert sigma(B) == pytest.approx(np.sqrt(1 - np.exp(-B)))
    assert alpha(B) ** 2 + sigma(B) ** 2 == pytest.approx(np.ones(50))
    assert sigma(1e-20) == pytest.approx(1e-10, rel=1e-14, abs=0)


@pytest.mark.parametrize("B", [-1e-9, math.nan, math.inf])
def test_an_integrated_beta_must_be_in_range(B: float) -> None:
    for call in (alpha, sigma, check_integrated_beta):
        with pytest.raises(
            ValueError, match=rf"the integrated beta must be in \[0, inf\), got {B}"
        ):
            call([1.0, B])


@pytest.mark.parametrize("kind", [LinearBetaSchedule, Rotation, VP])
@pytest.mark.parametrize("name", ["beta_min", "beta_max"])
@pytest.mark.parametrize("value", [0.0, -1, math.inf, math.nan, "20", True, None])
def test_betas_must_be_positive(kind: type[LinearBetaSchedule], name: str, value: object) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"{name} must be a positive number, got {value!r}"):
        kind(**options)


def test_numpy_numbers_become_floats() -> None:
    betas: dict[str, Any] = {"beta_min": np.float32(0.5), "beta_max": np.int64(2)}
    schedule = LinearBetaSchedule(**betas)
    assert schedule == LinearBetaSchedule(beta_min=0.5, beta_max=2.0)
    assert all(type(value) is float for value in vars(schedule).values())
