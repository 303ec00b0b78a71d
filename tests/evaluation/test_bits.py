"""Bits per dimension, against the exact probabilities of the levels of 8-bit images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastmsgm.evaluation.bits import bits_per_dimension
from fastmsgm.gbm import GBM, GBMModel, LogNormalPrior
from tests.evaluation import exact

SHAPE, CENTRE, SPREAD = (1, 1, 2), math.log(1.5), 0.08


class Pixels(exact.LogNormals):
    """The exact denoiser of independent log-normal pixels, for images."""

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        return super().forward(x.flatten(1), c, label).view_as(x)


def model() -> GBMModel:
    """Images whose pixels plus 1 are log-normal."""
    means = torch.full((1, 2), CENTRE)
    mixture = exact.Gaussians(means, torch.tensor([SPREAD**2]), torch.ones(1))
    prior = LogNormalPrior(torch.full((1, *SHAPE), 1.5), SPREAD**2)
    return GBMModel(
        Pixels(mixture, 0.1),
        GBM(4.0),
        prior,
        prediction="denoiser",
        scale=torch.ones(1, *SHAPE),
        log_std=0.1,
        offset=1.0,
        bounds=(0.0, 1.0),
    ).eval()


def levels(n: int) -> Tensor:
    """Return (n, 1, 1, 2) uint8 images of the model."""
    z = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    return (255 * (torch.exp(CENTRE + SPREAD * z) - 1)).round().clamp(0, 255).to(torch.uint8)


def test_the_bits_are_those_of_the_cells() -> None:
    images = levels(16)
    edges = torch.log(1 + (images.double().flatten(1)[..., None] + torch.tensor([-0.5, 0.5])) / 255)
    spread = math.hypot(SPREAD, 0.002)  # with the smallest noise level
    cdf = torch.special.ndtr((edges - CENTRE) / spread)
    truth = -torch.log2(cdf[..., 1] - cdf[..., 0]).mean(1)
    result = bits_per_dimension(model(), images, draws=8, solver="rk4", steps=24, progress=False)
    torch.testing.assert_close(result.values, truth, rtol=0, atol=0.05)  # of dequantisation
    assert result.noise_error < 0.003
    assert abs(result.mean - float(truth.mean())) < 3 * result.noise_error + 1e-3
    assert result.standard_error == pytest.approx(float(result.values.std()) / 4)
    assert result.settings["dequantisation"] == "uniform"


def test_floats_with_the_levels_are_the_same_images() -> None:
    images = levels(5)
    bits = bits_per_dimension(model(), images, solver="rk4", steps=8, progress=False)
    floats = bits_per_dimension(
        model(), images.float() / 255, solver="rk4", steps=8, progress=False
    )
    assert torch.equal(bits.draws, floats.draws)


def test_one_image_or_one_sample_has_no_error(recwarn: pytest.WarningsRecorder) -> None:
    one = bits_per_dimension(model(), levels(1), solver="rk4", steps=2, progress=False)
    assert math.isnan(one.standard_error)
    assert math.isnan(one.noise_error)
    assert not recwarn.list


def test_a_model_of_other_bounds() -> None:
    other = model()
    other.bounds = (-1.0, 1.0)
    message = r"model must have the bounds \(0, 1\) or None, got \(-1.0, 1.0\)"
    with pytest.raises(ValueError, match=message):
        bits_per_dimension(other, levels(2), progress=False)


def test_images_that_are_not_of_8_bits() -> None:
    with pytest.raises(ValueError, match="images must have the levels k / 255"):
        bits_per_dimension(model(), torch.full((1, *SHAPE), 0.123), progress=False)
    with pytest.raises(ValueError, match="images must have the levels k / 255"):
        bits_per_dimension(model(), torch.full((1, *SHAPE), 2.0), progress=False)
    with pytest.raises(TypeError, match="images must be uint8 or floating point"):
        bits_per_dimension(model(), torch.zeros(1, *SHAPE, dtype=torch.int64), progress=False)
