"""Turbulence: the equation term by term, its budget of energy, and the statistics of the fields."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm import data
from fastmsgm.data.philox import Set, Words
from fastmsgm.data.turbulence import Flow, field, sampled
from fastmsgm.evaluation.metrics import flatness, spectrum

# The package's attribute of this name is the function.
module: Any = importlib.import_module("fastmsgm.data.turbulence")
GRID, STEP, POWER, DRAG = module.GRID, module.STEP, module.POWER, module.DRAG
CUT = GRID / 3


def wavenumbers(size: int) -> tuple[Tensor, Tensor]:
    """Return ky (size, 1) and kx (size // 2 + 1,) of real transforms."""
    k = torch.arange(size, dtype=torch.float64)
    return (k - size * (k > size // 2))[:, None], k[: size // 2 + 1]


def square(size: int = GRID) -> Tensor:
    ky, kx = wavenumbers(size)
    return ky**2 + kx**2


def random_vorticity(n: int, seed: int) -> Tensor:
    """Return coefficients (n, 64, 33) of random fields without the modes that are removed."""
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randn(n, GRID, GRID, dtype=torch.float64, generator=generator)
    kept = (square() > 0) & (square() < CUT**2)
    return torch.fft.rfft2(fields) * kept / (1 + square())


def refined(coefficients: Tensor) -> Tensor:
    """Return the coefficients of the same fields on 128 x 128 points, where products have room."""
    fine = coefficients.new_zeros(*coefficients.shape[:-2], 2 * GRID, GRID + 1)
    fine[..., : GRID // 2, : GRID // 2] = coefficients[..., : GRID // 2, : GRID // 2]
    fine[..., 1 - GRID // 2 :, : GRID // 2] = coefficients[..., 1 - GRID // 2 :, : GRID // 2]
    return 4 * fine


def energy(vorticity: Tensor) -> Tensor:
    """Return the kinetic energy <|u|^2> / 2 of each field, from the velocity."""
    ky, kx = wavenumbers(GRID)
    psi = torch.where(square() > 0, vorticity / square(), 0)
    return (field(1j * ky * psi) ** 2 + field(-1j * kx * psi) ** 2).mean((-2, -1)) / 2


def test_the_nonlinear_term_is_advection() -> None:
    """Compared with u . grad w on a grid of twice the points, which has no aliases."""
    w = random_vorticity(2, seed=0)
    ky, kx = wavenumbers(2 * GRID)
    fine = refined(w)
    psi = torch.where(square(2 * GRID) > 0, fine / square(2 * GRID), 0)
    u, v, w_x, w_y = (
        torch.fft.irfft2(x) for x in (1j * ky * psi, -1j * kx * psi, 1j * kx * fine, 1j * ky * fine)
    )
    expected = torch.fft.rfft2(-(u * w_x + v * w_y))
    difference = refined(Flow(dtype=torch.float64).nonlinear(w)) - expected
    within = (square(2 * GRID) < CUT**2).expand_as(expected)
    assert difference[within].abs().max() < 1e-12 * expected.abs().max()
    assert not expected[~within].abs().max() < 1e-3 * expected.abs().max()  # what is removed


def test_the_nonlinear_term_conserves_energy_and_enstrophy() -> None:
    w = random_vorticity(3, seed=1)
    change = Flow(dtype=torch.float64).nonlinear(w)
    psi = torch.where(square() > 0, w / square(), 0)
    for factor in (w, psi):
        product = field(factor) * field(change)
        assert (product.mean((1, 2)).abs() < 1e-14 * product.abs().mean((1, 2))).all()


def test_steps_without_drag_and_viscosity_have_order_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what changes energy and enstrophy is the error of the steps alone."""
    start = random_vorticity(2, seed=2)
    start = start / energy(start)[:, None, None].sqrt()

    def after_half_a_unit(steps: int) -> Tensor:
        monkeypatch.setattr(module, "STEP", 0.5 / steps)
        flow, w = Flow(drag=0.0, viscosity=0.0, dtype=torch.float64), start
        for _ in range(steps):
            w = flow.step(w)
        return w

    coarse, middle, fine = (after_half_a_unit(steps) for steps in (20, 40, 80))
    assert (fine - start).abs().max() > 0.1 * start.abs().max()
    ratio = ((coarse - fine).norm() / (middle - fine).norm()).item()
    # The errors are 1, 1/16 and 1/256.
    assert math.log2(ratio) == pytest.approx(math.log2((1 - 1 / 256) / (1 / 16 - 1 / 256)), abs=0.4)
    for quantity in (energy, lambda w: field(w).square().mean((1, 2))):
        drifts = [(quantity(w) - quantity(start)).abs() for w in (coarse, fine)]
        assert (drifts[1] < drifts[0] / 200).all()


def test_modes_of_one_wavenumber_decay_exactly() -> None:
    """They are a steady flow of Euler's equation, so linear terms act alone."""
    y, x = (torch.arange(GRID, dtype=torch.float64) * 2 * math.pi / GRID for _ in range(2))
    modes = torch.cos(4 * x[None] + 3 * y[:, None]) + 2 * torch.sin(5 * y)[:, None]
    w = torch.fft.rfft2(modes[None])
    flow = Flow(drag=0.3, viscosity=5.0, dtype=torch.float64)
    for _ in range(40):
        w = flow.step(w)
    rate = 0.3 + 5 * (25 / CUT**2) ** 4
    torch.testing.assert_close(field(w)[0], modes * math.exp(-40 * STEP * rate), rtol=0, atol=1e-12)


def test_the_forcing_has_its_power_in_its_band() -> None:
    flow, words = Flow(dtype=torch.float64), Words(7, Set.TURBULENCE)
    zero = torch.zeros(200, GRID, GRID // 2 + 1, dtype=torch.complex128)
    forced = torch.cat([flow.force(zero, words) for _ in range(2)])
    added = energy(forced)
    assert abs(added.mean() - POWER * STEP) < 4 * added.std() / len(added) ** 0.5
    outside = (square() < 9) | (square() >= 25)
    assert not forced[:, outside].any()
    # Every mode has the same energy, and a real field stores no mode twice.
    torch.testing.assert_close(torch.fft.rfft2(field(forced)), forced, rtol=0, atol=1e-10)
    by_mode = (forced.abs().square() / square())[:, ~outside].mean(0)
    assert (by_mode / by_mode.mean() - 1).abs().max() < 5 / len(forced) ** 0.5
    # White in time and independent among trajectories.
    flat = torch.view_as_real(forced[:, ~outside]).flatten(1)
    flat = flat[:, :20] / flat[:, :20].std(0)
    for a, b in ((flat[:200], flat[200:]), (flat[:-1], flat[1:])):
        assert abs((a * b).mean()) < 4 / a.numel() ** 0.5
    assert torch.equal(flow.force(zero, Words(7, Set.TURBULENCE)), forced[:200])


@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_sampled_evaluates_the_low_wavenumbers(size: int) -> None:
    def trigonometric(points: int, high: float) -> Tensor:
        y = torch.arange(points, dtype=torch.float64)[:, None] * 2 * math.pi / points
        x = y.T
        low = torch.cos(15 * x - 2 * y) + 0.5 * torch.sin(3 * x + 15 * y) + 0.25 * torch.cos(7 * y)
        return low + high * (torch.cos(16 * x) + torch.sin(20 * y) + torch.cos(2 * x - 16 * y))

    values = sampled(torch.fft.rfft2(trigonometric(GRID, 1.0)), size)
    torch.testing.assert_close(values, trigonometric(size, 0.0), rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def early() -> Tensor:
    """Fields of 16 trajectories at 4 times from 20 on, (4, 16, 1, 32, 32)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TRANSIENT", 800)
        return data.turbulence(4 * 16, size=32, seed=5).unflatten(0, (4, 16))


def test_the_budget_of_energy(early: Tensor) -> None:
    """d<E>/dt = power - 2 drag <E> - viscous losses, from rest, at every time of the ensemble."""
    spectra = torch.stack(
        [torch.stack([spectrum(x[None] * module.UNIT)[1] for x in row]) for row in early]
    )
    k = torch.arange(1, 16, dtype=torch.float64)
    losses = (2 * module.VISCOSITY * (k / CUT) ** 8 * spectra).sum(2).mean()
    assert 0 < losses < 0.05 * POWER
    times = 20 + 2 * torch.arange(4, dtype=torch.float64)
    grown = 1 - (-2 * DRAG * times).exp()
    ratios = (spectra.sum(2) / grown[:, None]).mean(0) / ((POWER - losses) / (2 * DRAG))
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / 4
    assert ratios.std() < 0.4


def test_the_statistics_are_those_of_the_enstrophy_cascade(early: Tensor) -> None:
    fields = early.flatten(0, 1)
    k, energies = (x.numpy() for x in spectrum(fields))
    slope = np.polyfit(np.log(k[5:13]), np.log(energies[5:13]), 1)[0]  # k = 6 .. 13
    assert -5 < slope < -3
    assert 3.3 < flatness(fields) < 4.5
    assert fields.std().item() == pytest.approx(1, abs=0.1)
    means = fields.mean((2, 3))  # of a vorticity
    torch.testing.assert_close(means, torch.zeros_like(means), rtol=0, atol=1e-5)
    # Isotropic: the two directions have one spectrum.
    power = torch.fft.fft2(fields[:, 0].double()).abs().square().mean(0)
    ratios = (power / power.T)[:5, :5]
    assert (ratios - 1).abs().max() < 5 * (2 * 2 / 64) ** 0.5


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of the flow before the first field, too short for rounding to grow."""
    monkeypatch.setattr(module, "TRANSIENT", 40)
    monkeypatch.setattr(module, "SPACING", 2)


@pytest.mark.usefixtures("short")
def test_a_field_depends_on_its_index_and_the_seed_alone() -> None:
    many, few = data.turbulence(35, size=8, seed=1), data.turbulence(17, size=8, seed=1)
    assert many.shape == (35, 1, 8, 8)
    assert many.dtype == torch.float32
    assert many.is_contiguous()
    torch.testing.assert_close(many[:17], few, rtol=0, atol=1e-6)
    assert len(many.unique(dim=0)) == 35
    assert (many[:17] - data.turbulence(17, size=8, seed=2)).abs().mean() > 0.5 * many.abs().mean()
    fine = data.turbulence(17, size=16, seed=1)
    torch.testing.assert_close(fine[..., ::2, ::2], few, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("short")
def test_stored_values() -> None:
    """A number changed here is another data set."""
    values = data.turbulence(2, size=4, seed=3)[:, 0, 0]
    torch.testing.assert_close(values, torch.tensor(STORED), rtol=0, atol=1e-5)


STORED = [
    [0.3628179132938385, -0.05439023673534393, -0.17474684119224548, -0.12736044824123383],
    [0.9018452167510986, 0.6393005847930908, 0.528313934803009, 0.49788451194763184],
]


@pytest.mark.parametrize("size", [0, 5, 64])
def test_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"size must be (one of 4, 8, 16, 32|at least 1), got"):
        data.turbulence(1, size=size)


@pytest.mark.parametrize("name", ["n", "size", "seed"])
def test_integers(name: str) -> None:
    options: dict[str, Any] = {"n": 1, name: 4.0}
    with pytest.raises(TypeError, match=rf"{name} must be an int, got 4\.0"):
        data.turbulence(**options)


def test_negative_seeds_and_no_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seed must be in 0 \.\. 2\^64 - 1, got -1"):
        data.turbulence(1, seed=-1)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        data.turbulence(0)
