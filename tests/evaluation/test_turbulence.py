"""Spectra and flatness, compared with fields and distributions where they are known."""

from __future__ import annotations

import math

import pytest
import torch

from fastmsgm.evaluation.metrics import flatness, spectrum


@pytest.mark.parametrize("size", [15, 16])
def test_spectrum_of_waves(size: int) -> None:
    """A wave a cos(q.x + phase) has the energy a^2 / (4 |q|^2)."""
    y = torch.arange(size, dtype=torch.float64)[:, None] * 2 * math.pi / size
    x = y.T
    waves = [(1.0, 1, 0), (2.0, 0, 2), (3.0, 2, 2), (1.5, -4, 3), (0.5, 5, 5), (0.7, 7, 7)]
    fields = torch.full((3, 1, size, size), 9.0, dtype=torch.float64)
    for phase, plane in enumerate(fields[:, 0]):
        for a, p, q in waves:
            plane += a * torch.cos(p * x + q * y + phase + a)
    expected = torch.zeros(7, dtype=torch.float64)
    for a, p, q in waves[:-1]:  # the last is in a corner, beyond the complete shells
        expected[round(math.hypot(p, q)) - 1] += a**2 / (4 * (p**2 + q**2))
    k, energy = spectrum(fields)
    assert k.tolist() == [1, 2, 3, 4, 5, 6, 7]
    torch.testing.assert_close(energy, expected, rtol=1e-12, atol=1e-13)
    # Of samples and of channels it is the mean.
    half = torch.cat([fields, torch.zeros_like(fields)])
    torch.testing.assert_close(spectrum(half)[1], expected / 2, rtol=1e-12, atol=1e-13)
    channels = torch.cat([fields, torch.zeros_like(fields)], dim=1).float()
    torch.testing.assert_close(spectrum(channels)[1], expected / 2, rtol=1e-5, atol=1e-6)


def test_spectrum_of_white_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode q has the mean energy 1 / (2 |q|^2 size^2); blocks change nothing."""
    noise = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    energy = spectrum(noise)[1]
    modes = [(p, q) for p in range(-4, 4) for q in range(-4, 4)]
    for k in (1, 2, 3):
        shell = [p**2 + q**2 for p, q in modes if k - 0.5 <= math.hypot(p, q) < k + 0.5]
        expected = sum(1 / (128 * s) for s in shell)
        assert energy[k - 1] == pytest.approx(expected, rel=5 / (400 * len(shell) / 2) ** 0.5)
    monkeypatch.setattr("fastmsgm.evaluation.metrics.memory._HELD", 640)
    torch.testing.assert_close(spectrum(noise)[1], energy, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 1, 8, 6), (4, 1, 3, 3), (4, 64)])
def test_spectrum_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"fields must have shape \(n, channels, size, size\)"):
        spectrum(torch.ones(shape))


def test_flatness_of_known_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(100_000, 2, dtype=torch.float64, generator=generator)
    normal = torch.special.ndtri(u)
    assert flatness(normal) == pytest.approx(3, abs=4 * (24 / normal.numel()) ** 0.5)
    assert flatness(5 + u) == pytest.approx(1.8, abs=0.02)
    assert flatness(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])) == 1
    assert flatness(torch.tensor([[1.0], [0.0], [0.0], [0.0], [-1.0]])) == pytest.approx(2.5)
    whole = flatness(normal)
    monkeypatch.setattr("fastmsgm.evaluation.metrics.memory._HELD", 999)
    assert flatness(normal) == pytest.approx(whole, rel=1e-12)


def test_flatness_refuses_equal_values() -> None:
    with pytest.raises(ValueError, match=r"x must have values that differ, got 2\.0 everywhere"):
        flatness(torch.full((3, 4), 2.0))


def test_metrics_of_turbulence_refuse_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="fields must be finite, got 1 NaN"):
        spectrum(torch.tensor([1.0] * 15 + [math.nan]).view(1, 1, 4, 4))
    with pytest.raises(TypeError, match="x must be floating point"):
        flatness(torch.ones(3, 4, dtype=torch.int64))
