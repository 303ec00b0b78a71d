"""The heat kernel of the sphere against series in high precision, closed moments, and its own tables against it."""

from __future__ import annotations

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import betainc
from scipy.stats import beta, chi2, norm

from fastmsgm import heat_kernel
from fastmsgm.heat_kernel import AngleLaw, AngleTable, Array, angle_table, log_kernel


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[int, AngleTable]:
    """Tables that were written and read in an empty cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTMSGM_DATA", str(tmp_path_factory.mktemp("cache")))
        heat_kernel._angle_table.cache_clear()
        return {d: angle_table(d) for d in (3, 16, 1024)}


def gegenbauer_series(theta: float, tau: float, d: int, digits: int) -> tuple[float, float]:
    """log k and W by k = sum_l (l + lam) / lam C_l^lam(x) e^{-l (l + 2 lam) tau / 2}, W = (dk/dx) / k, x = cos theta.

    For d = 2, k = 1 + 2 sum_l T_l(x) e^{-l^2 tau / 2}.
    """
    with mpmath.workdps(digits):
        x, t, lam = mpmath.cos(mpmath.mpf(theta)), mpmath.mpf(tau), mpmath.mpf(d - 2) / 2
        before, value = (mpmath.mpf(1), x) if d == 2 else (mpmath.mpf(1), 2 * lam * x)
        slope_before, slope = mpmath.mpf(0), mpmath.mpf(1) if d == 2 else 2 * lam
        k, dk, size, l = mpmath.mpf(1), mpmath.mpf(0), mpmath.mpf(1), 1
        while True:
            weight = (2 if d == 2 else (l + lam) / lam) * mpmath.exp(-l * (l + 2 * lam) * t / 2)
            k, dk = k + weight * value, dk + weight * slope
            largest = weight * (abs(value) + abs(slope))
            size = max(size, largest)
            if l * (l + 2 * lam) * t > 4 and largest < size * mpmath.mpf(10) ** (5 - digits):
                return float(mpmath.log(k)), float(dk / k)
            l += 1
            a, b = (2, 1) if d == 2 else (2 * (l + lam - 1) / l, (l + 2 * lam - 2) / l)
            before, value, slope_before, slope = (
                value, a * x * value - b * before, slope, a * (value + x * slope) - b * slope_before
            )  # fmt: skip


# ---- the clock ----


def test_clock_functions_agree_with_their_definitions() -> None:
    b = np.geomspace(0.01, 30, 50)
    assert heat_kernel.alpha(b) == pytest.approx(np.exp(-b / 2))
    assert heat_kernel.sigma(b) == pytest.approx(np.sqrt(1 - np.exp(-b)))
    assert heat_kernel.kappa(b, 7) == pytest.approx(6 / (2 * np.sinh(b / 2)))
    assert heat_kernel.rho(b, 7) == pytest.approx(6 / np.sqrt(np.exp(b) - 1))
    assert heat_kernel.Lam(b) == pytest.approx(-0.5 * np.log(np.tanh(b / 4)))


def test_clock_functions_are_stable_at_both_ends() -> None:
    assert heat_kernel.sigma(1e-20) == pytest.approx(1e-10, rel=1e-14, abs=0)
    assert heat_kernel.rho(1e-20, 3) == pytest.approx(2e10, rel=1e-14)
    assert heat_kernel.kappa(1e-20, 3) == pytest.approx(2e20, rel=1e-14)
    assert heat_kernel.kappa(2000.0, 3) == 0
    assert heat_kernel.Lam(80.0) == pytest.approx(math.exp(-40), rel=1e-14, abs=0)
    assert heat_kernel.Lam(1e-20) == pytest.approx(math.log(4e20) / 2, rel=1e-14)
    assert np.isinf([heat_kernel.Lam(0.0), heat_kernel.kappa(0.0, 3), heat_kernel.rho(0.0, 3)]).all()


def test_inverse_Lam() -> None:
    b = np.geomspace(1e-12, 60, 100)
    assert heat_kernel.inverse_Lam(heat_kernel.Lam(b)) == pytest.approx(b, rel=1e-13, abs=0)
    assert heat_kernel.inverse_Lam(0.0) == math.inf


# ---- the heat kernel ----


@pytest.mark.parametrize(
    ("d", "clock", "digits"),
    [
        (2, 0.1, 30), (2, 0.29, 30), (2, 0.31, 30), (2, 2.0, 30), (2, 20.0, 30),
        (3, 1e-3, 40), (3, 0.5, 40), (3, 20.0, 30), (4, 1e-2, 40), (4, 10.0, 30), (16, 0.1, 60), (16, 5.0, 30),
        (64, 0.5, 80), (256, 1.0, 160), (1024, 2.0, 250), (4096, 4.0, 330),
    ],
)  # fmt: skip
def test_log_kernel_equals_its_series(d: int, clock: float, digits: int) -> None:
    tau = clock / (d - 1)
    theta = AngleLaw(d, clock).quantile(np.array([-4.0, 0.0, 4.0]))
    log_k, w = log_kernel(theta, tau, d)
    exact = np.array([gegenbauer_series(angle, tau, d, digits) for angle in theta])
    assert np.abs(log_k - exact[:, 0]).max() < 3e-11
    assert np.abs(w / exact[:, 1] - 1).max() < 1e-10


@pytest.mark.parametrize("d", [2, 3, 16])
def test_log_kernel_at_the_ends(d: int) -> None:
    tau = 0.2
    ends = np.array([0.0, math.pi])
    exact = np.array([gegenbauer_series(angle, tau, d, 40) for angle in ends])
    log_k, w = log_kernel(ends, tau, d)
    assert log_k == pytest.approx(exact[:, 0], abs=1e-10)
    assert w == pytest.approx(exact[:, 1], rel=1e-9)


@pytest.mark.parametrize("d", [3, 64, 1024, 4096, 16384])
def test_log_kernel_at_small_times(d: int) -> None:
    """Minakshisundaram-Pleijel, to second order in tau: its relative error at B = 0.01 is about 1e-9."""
    clock = 0.01
    tau, m = clock / (d - 1), d - 2
    with mpmath.workdps(30):
        theta = mpmath.mpf(float(AngleLaw(d, clock).quantile(0.0)))
        correction = mpmath.diff(lambda x: mpmath.cot(x) / x - 1 / x**2, theta)
        slope = -theta / tau + m * (1 / theta - mpmath.cot(theta)) / 2 + tau * m * (m - 2) * correction / 8
        expected = float(-slope / mpmath.sin(theta))
    assert log_kernel(float(theta), tau, d)[1] == pytest.approx(expected, rel=3e-9)


def test_log_kernel_broadcasts() -> None:
    log_k, w = log_kernel(np.full((3, 1), 0.5), np.array([0.1, 0.2]), 5)
    assert log_k.shape == w.shape == (3, 2)
    assert log_k[2, 1] == log_kernel(0.5, 0.2, 5)[0]


# ---- the angle law ----


@pytest.mark.parametrize("clock", [1e-5, 1e-4, 1e-2, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("d", [2, 3, 4, 16, 64, 256, 1024, 4096, 16384])
def test_angle_law_has_mass_one_and_the_moments_of_brownian_motion(d: int, clock: float) -> None:
    """E cos = e^{-B/2}, E cos^2 = 1/d + (1 - 1/d) e^{-d tau}, and no mass beyond [low, high]."""
    law = AngleLaw(d, clock)
    assert law.mass == pytest.approx(1, abs=3e-11)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    half = (law.high - law.low) / 2
    theta = law.low + half * (1 + nodes)
    mass = half * weights * law.density(theta)
    v = 2 * np.sin(theta / 2) ** 2
    mean = -math.expm1(-clock / 2)
    assert mass @ v == pytest.approx(mean, rel=1e-10)
    variance = -2 * math.expm1(-clock / 2) + (1 - 1 / d) * math.expm1(-d * law.tau) - mean**2
    assert mass @ (v - mean) ** 2 == pytest.approx(variance, rel=1e-6 if clock < 1e-2 else 1e-9)  # rounding, of both


def test_angle_law_is_the_wright_fisher_mixture() -> None:
    """(1 - cos theta) / 2 ~ sum_m q_m Beta((d-1)/2, (d-1)/2 + m), q_m the law of Kingman's block count."""
    d, clock = 16, 0.5
    law = AngleLaw(d, clock)
    theta = law.quantile(np.linspace(-4, 4, 9))
    x, a = np.sin(theta / 2) ** 2, (d - 1) / 2
    cdf, density, mean = np.zeros(9), np.zeros(9), np.zeros(9)
    with mpmath.workdps(80):
        decay = [mpmath.exp(-k * (k + d - 2) * mpmath.mpf(law.tau) / 2) for k in range(160)]
        for m in range(120):
            terms = [
                (-1) ** (k - m) * (d + 2 * k - 2) * mpmath.rf(d - 1 + m, k - 1) * decay[k] / mpmath.factorial(k - m)
                for k in range(max(m, 1), 160)
            ]
            q = float(mpmath.fsum(terms) / mpmath.factorial(m)) + (m == 0)
            part = q * beta.pdf(x, a, a + m)
            cdf, density, mean = cdf + q * beta.cdf(x, a, a + m), density + part, mean + m * part
    assert law.cdf(theta) == pytest.approx(cdf, abs=1e-10)
    assert law.density(theta) == pytest.approx(density * np.sin(theta) / 2, rel=1e-9)
    assert log_kernel(theta, law.tau, d)[1] == pytest.approx(mean / density / (2 * (1 - x)), rel=1e-9)


@pytest.mark.parametrize(("d", "clock"), [(2, 1e-3), (2, 8.0), (3, 0.8), (16, 1e-4), (1024, 3.0)])
def test_angle_law_quantile_inverts_the_cdf(d: int, clock: float) -> None:
    law = AngleLaw(d, clock)
    z = np.linspace(-6, 6, 61)
    theta = law.quantile(z)
    assert (np.diff(theta) > 0).all()
    assert law.cdf(theta) == pytest.approx(norm.cdf(z), abs=1e-14, rel=1e-12)
    assert 1 - law.cdf(theta[z > 0]) == pytest.approx(norm.sf(z[z > 0]), abs=1e-14, rel=1e-12)


# ---- the tables ----


def look_up(table: AngleTable, clock: float, z: Array) -> tuple[Array, Array, Array]:
    """theta, g sin(theta) in the float32 arithmetic of a kernel, widened; and F(theta)."""
    rows, columns = table.table.shape[1:]
    position = np.float32(table.row(clock))
    i = min(int(position), rows - 2)
    column = (z.astype(np.float32) + np.float32(6)) * np.float32((columns - 1) / 12)
    j = np.minimum(column.astype(np.int64), columns - 2)
    near, part = table.table[:, i : i + 2].numpy(), column - j.astype(np.float32)
    low, high = (near[:, k, j] + part * (near[:, k, j + 1] - near[:, k, j]) for k in (0, 1))
    v, g = low + (position - np.float32(i)) * (high - low)
    v = np.clip(np.float32(-np.expm1(-clock / 2)) * v, np.float32(0), np.float32(2))
    sine = np.sqrt(v * (2 - v))
    assert sine.dtype == g.dtype == np.float32
    theta = 2 * np.arctan2(np.sqrt(v.astype(np.float64)), np.sqrt(2 - v.astype(np.float64)))
    return theta, (g * sine).astype(np.float64), AngleLaw(table.d, clock).cdf(theta)


@pytest.mark.parametrize("d", [3, 16, 1024])
def test_angle_table_gives_score_and_law(tables: dict[int, AngleTable], d: int) -> None:
    """Between rows and columns: score error / rms <= 1e-3 for |z| <= 4 at the looked-up angle, KS <= 1e-4."""
    z = np.linspace(-6, 6, 1777)
    inner = np.abs(z) <= 4
    for clock in (1.1e-4, 1.3e-3, 0.021, 0.17, 0.52, 0.803, 1.21, 2.9, 5.5, 13.4, 29.0):
        theta, product, cdf = look_up(tables[d], clock, z)
        exact = log_kernel(theta, clock / (d - 1), d)[1] * np.sin(theta)
        error = np.abs(heat_kernel.kappa(clock, d) * product - exact) / heat_kernel.rho(clock, d)
        assert error[inner].max() < 1e-3
        assert np.abs(cdf - norm.cdf(z)).max() < 1e-4


def test_angle_table_of_the_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarse one, with the wrapped normal's own sums over images: float32 leaves 3e-4 of the law at the antipode."""
    monkeypatch.setattr(heat_kernel, "_shape", lambda d: (385, 321))
    table = AngleTable(2, heat_kernel._build(2))
    z = np.linspace(-5, 5, 501)
    turns = 2 * math.pi * np.arange(-6, 7)
    for clock in (1e-4, 0.01, 0.4, 3.0, 12.0, 30.0):
        theta, product, _ = look_up(table, clock, z)
        images = theta[:, None] + turns
        below = norm.cdf(images / math.sqrt(clock)) - norm.cdf((turns - theta[:, None]) / math.sqrt(clock))
        assert np.abs(below.sum(1) - norm.cdf(z)).max() < 3e-4
        weight = norm.pdf(images / math.sqrt(clock))
        score = (weight * images).sum(1) / weight.sum(1) / clock
        error = np.abs(heat_kernel.kappa(clock, 2) * product - score) / heat_kernel.rho(clock, 2)
        assert error[np.abs(z) <= 4].max() < 2e-2
        assert error[np.abs(z) <= 2].max() < 2e-3


@pytest.mark.parametrize("d", [3, 16, 1024])
def test_angle_table_has_the_limits_of_short_and_long_times(tables: dict[int, AngleTable], d: int) -> None:
    z = np.linspace(-6, 6, tables[d].table.shape[2])
    v, g = tables[d].table.double().numpy()
    small = np.where(z < 0, chi2.ppf(norm.cdf(z), d - 1), chi2.isf(norm.sf(z), d - 1)) / (d - 1)
    assert v[0] == pytest.approx(small, rel=5e-4)
    assert g[0] == pytest.approx(np.ones_like(z), rel=5e-4)
    half = betainc((d - 1) / 2, (d - 1) / 2, np.minimum(v[-1] / 2, 1))  # the uniform law of (1 - cos) / 2
    assert half == pytest.approx(norm.cdf(z), abs=2e-6)
    assert g[-1] == pytest.approx(np.full_like(z, d / (d - 1)), rel=1e-4)


def test_angle_table_rows(tables: dict[int, AngleTable]) -> None:
    table = tables[16]
    clocks = np.geomspace(1e-4, 30, 1000)
    rows = table.row(clocks)
    assert rows.dtype == np.float64
    assert (np.diff(rows) > 0).all()
    assert rows[0] == pytest.approx(0, abs=1e-6)
    assert rows[-1] == pytest.approx(256, abs=1e-6)
    assert table.row([0.0, 1e-9, 31.0, 1e9]).tolist() == [0, 0, 256, 256]
    assert table.row(1.0).shape == ()


def test_angle_table_spread(tables: dict[int, AngleTable]) -> None:
    """V at any clock, also outside the table, where 1 - cos theta follows from the limits."""
    table = tables[3]
    clocks = np.array([1e-7, 3e-5, 0.01, 0.77, 6.0, 40.0])
    spread = table.spread(clocks)
    assert spread.shape == (6, 513)
    assert spread.dtype == torch.float32
    z = np.linspace(-6, 6, 513)
    for clock, v in zip(clocks, spread.double().numpy(), strict=True):
        law = AngleLaw(3, float(clock))
        theta = 2 * np.arcsin(np.sqrt(np.clip(-np.expm1(-clock / 2) * v / 2, 0, 1)))
        assert np.abs(law.cdf(theta) - norm.cdf(z)).max() < 3e-5
    assert table.spread([0.0]).equal(table.table[0, :1])


# ---- the cache ----


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty cache folder, small tables, and the list of dimensions that were built."""
    built: list[int] = []
    build = heat_kernel._build

    def counted(d: int) -> torch.Tensor:
        built.append(d)
        return build(d)

    monkeypatch.setenv("FASTMSGM_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(heat_kernel, "_shape", lambda d: (17, 33))
    monkeypatch.setattr(heat_kernel, "_build", counted)
    heat_kernel._angle_table.cache_clear()
    return built


def fresh(d: int) -> AngleTable:
    heat_kernel._angle_table.cache_clear()  # as a new process would
    return angle_table(d)


def test_cache_is_read_by_the_next_process(builds: list[int], tmp_path: Path) -> None:
    first = angle_table(5)
    assert angle_table(5) is first
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["angle-table-v1-d5.safetensors"]
    assert fresh(5).table.equal(first.table)
    assert builds == [5]


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "shape"])
def test_cache_is_built_anew_where_damaged(
    builds: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    first = angle_table(5)
    path = tmp_path / "cache" / "angle-table-v1-d5.safetensors"
    good = path.read_bytes()
    if damage == "shape":
        monkeypatch.setattr(heat_kernel, "_shape", lambda d: (17, 65))
    else:
        path.write_bytes({"cut": good[:-50], "empty": b"", "zeros": good[:-50] + bytes(50)}[damage])
    second = fresh(5)
    assert builds == [5, 5]
    assert second.table.equal(first.table) == (damage != "shape")
    assert fresh(5).table.equal(second.table)
    assert builds == [5, 5]


def test_cache_that_cannot_be_written_costs_the_build_alone(
    builds: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTMSGM_DATA", str(tmp_path / "file" / "folder"))
    assert fresh(5).table.equal(fresh(5).table)
    assert builds == [5, 5]


# ---- bad input ----


@pytest.mark.parametrize("d", [3.0, "3", True, None])
def test_dimension_must_be_an_int(d: object) -> None:
    with pytest.raises(TypeError, match="d must be an int, got"):
        angle_table(d)  # type: ignore[arg-type]


def test_dimension_must_be_at_least_two() -> None:
    for call in (angle_table, lambda d: AngleLaw(d, 1.0), lambda d: log_kernel(0.5, 0.1, d)):
        with pytest.raises(ValueError, match="d must be at least 2, got 1"):
            call(1)


@pytest.mark.parametrize("clock", [-1e-9, math.nan, math.inf])
def test_clocks_must_be_in_range(tables: dict[int, AngleTable], clock: float) -> None:
    for call in (tables[16].row, tables[16].spread, heat_kernel.alpha, heat_kernel.Lam):
        with pytest.raises(ValueError, match=r"clock must be in \[0, inf\), got"):
            call([1.0, clock])
    with pytest.raises(ValueError, match="clock must be positive and finite, got"):
        AngleLaw(3, clock)


def test_angles_times_and_normals_must_be_in_range() -> None:
    with pytest.raises(ValueError, match=r"theta must be in \[0, pi\], got 3.2"):
        log_kernel([0.1, 3.2], 0.1, 3)
    with pytest.raises(ValueError, match="tau must be positive and finite, got nan"):
        log_kernel(0.1, math.nan, 3)
    with pytest.raises(ValueError, match=r"z must be in \[-6, 6\], got 6.5"):
        AngleLaw(3, 1.0).quantile([0.0, 6.5])
    with pytest.raises(ValueError, match=r"Lam must be at least 0, got -0\.5"):
        heat_kernel.inverse_Lam(-0.5)
