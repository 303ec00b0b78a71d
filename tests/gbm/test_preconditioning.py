"""GBMPreconditioning: what a network's output means at every noise level, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastmsgm import ops, rng
from fastmsgm.gbm import GBM, GBMModel, GBMPreconditioning
from fastmsgm.nets import MLP
from tests.gbm.exact import MEAN, VARIANCE, exact_model, log_normal_data


@pytest.mark.parametrize("s", [0.002, 0.1, 1.0, 10.0])
def test_input_and_target_of_a_denoiser_have_unit_variance(s: float) -> None:
    """On Gaussian log-data: the input c_in y, and the target (y_0 - c_skip y) / c_out."""
    torch.manual_seed(0)
    x0 = torch.exp(0.4 * torch.randn(4000, 5) + torch.arange(5))
    model = GBMModel.for_data(MLP(5), GBM(12.0), x0)
    states = model.to_state(x0)
    k0, k1, k2, c_in = model.preconditioning.coefficients(np.array([s]))[0]
    model_input, z = torch.empty_like(states), torch.empty_like(states)
    coefficients = torch.tensor([[0.0, s, float(c_in)]]).expand(len(states), 3)
    ops.gbm_perturb_(
        states,
        coefficients,
        rng.stream(1),
        rng.Purpose.TRAINING_NOISE,
        0,
        x_t=None,
        model_input=model_input,
        z=z,
    )
    y0 = torch.log(states).double()
    y = y0 + s * z.double()
    target = (y0 - k0 * y - k2) / k1
    error = 4.5 * math.sqrt(2 / states.numel())
    assert float(model_input.double().square().mean()) == pytest.approx(1, abs=error)
    assert float(target.square().mean()) == pytest.approx(1, abs=error)
    # The best linear guess of the target from the input is 0.
    assert abs(float((target * model_input).mean())) < error


@pytest.mark.parametrize(
    ("prediction", "mu"),
    [("denoiser", None), ("hyvarinen", None), ("hyvarinen", 0.1), ("score", None), ("score", 0.1)],
)
def test_the_exact_network_gives_the_posterior_mean(prediction: str, mu: float | None) -> None:
    model = exact_model(prediction, mu=mu)
    s = np.array([0.01, 0.3, 0.8])
    k = torch.from_numpy(model.preconditioning.coefficients(s))
    c_noise = torch.from_numpy(model.preconditioning.c_noise(s)).float()
    variance, times = VARIANCE.double(), (s / 0.8) ** 2
    for row, c, sigma, time in zip(k, c_noise, s, times, strict=True):
        x = log_normal_data(50, seed=1) / model.scale
        y = torch.log(x).double()
        x_in = (row[3] * y).float() if prediction == "denoiser" else x
        f = model(x_in, c.expand(50)).detach().double()
        denoised = row[0] * y + row[1] * (x * f if prediction == "score" else f) + row[2]
        mean = (MEAN - torch.log(model.scale[0])).double()
        centred = y - model.process.log_drift * time
        expected = (variance * centred + sigma**2 * mean) / (variance + sigma**2)
        torch.testing.assert_close(denoised, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
def test_at_noise_level_zero_the_row_gives_the_score_plus_one(prediction: str) -> None:
    preconditioning = exact_model(prediction, mu=0.7).preconditioning
    assert preconditioning.coefficients(np.zeros(1)).tolist() == [[1, 1, 1, 1]]


def test_c_noise() -> None:
    s, process = np.array([0.2, 0.8]), GBM(0.8)
    denoiser = GBMPreconditioning(process, "denoiser", 0.3)
    np.testing.assert_allclose(denoiser.c_noise(s), np.log(s) / 4)
    score = GBMPreconditioning(process, "score", 0.3)
    np.testing.assert_allclose(score.c_noise(s), [1 / 16, 1])


def test_sigma_min_is_the_smallest_noise_level_of_training() -> None:
    """For score networks that of the paper's first of 1000 times."""
    process = GBM(2.0, T=0.25)
    assert GBMPreconditioning(process, "denoiser", 0.3).sigma_min == 0.002
    expected = float(process.marginal_std(torch.tensor(0.25 / 1000)))
    assert GBMPreconditioning(process, "score", 0.3).sigma_min == pytest.approx(expected)


# ---- errors ----


def test_the_preconditioning_refuses_another_process() -> None:
    with pytest.raises(TypeError, match=r"process must be a GBM, got float: give GBM\(sigma=\.\."):
        GBMPreconditioning(0.8, "score", 0.3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("process", "prediction", "log_std", "message"),
    [
        (GBM(0.8), "noise", 0.3, "prediction must be one of denoiser, hyvarinen, score, got 'nois"),
        (
            GBM(0.8, mu=0.0),
            "denoiser",
            0.3,
            r"a denoiser needs mu = sigma\^2 / 2, got GBM\(sigma=0\.8, mu=0\.0, T=1\.0\)",
        ),
        (GBM(0.8), "denoiser", 0.0, r"log_std must be positive, got 0\.0"),
        (GBM(0.8), "denoiser", math.nan, "log_std must be positive, got nan"),
        (GBM(0.001), "denoiser", 0.3, r"sigma sqrt\(T\) must be above 0\.002"),
    ],
)
def test_the_preconditioning_refuses(
    process: GBM, prediction: str, log_std: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GBMPreconditioning(process, prediction, log_std)


def test_a_score_network_needs_no_spread_and_no_largest_sigma() -> None:
    assert GBMPreconditioning(GBM(0.001, mu=0.1), "score", 0.0).prediction == "score"
