"""Angle tables against the distribution that they hold, their limits, and their files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import betainc
from scipy.stats import chi2, norm

from fastmsgm.rotation import angle_table as module
from fastmsgm.rotation import heat_kernel
from fastmsgm.rotation.angle_distribution import AngleDistribution
from fastmsgm.rotation.angle_table import AngleTable, angle_table
from fastmsgm.rotation.heat_kernel import log_kernel
from fastmsgm.types import Array

DIMENSIONS = (3, 4, 16, 64, 256, 1024, 4096)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[int, AngleTable]:
    """Tables that were written and read in an empty cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTMSGM_CACHE", str(tmp_path_factory.mktemp("cache")))
        module._angle_table.cache_clear()
        return {d: angle_table(d) for d in DIMENSIONS}


# ---- the tables ----


def look_up(table: AngleTable, B: float, z: Array) -> tuple[Array, Array, Array]:
    """Return theta and g sin(theta), in the float32 arithmetic of a kernel, and F(theta)."""
    rows, columns = table.table.shape[1:]
    position = np.float32(table.row(B))
    i = min(int(position), rows - 2)
    column = (z.astype(np.float32) + np.float32(6)) * np.float32((columns - 1) / 12)
    j = np.minimum(column.astype(np.int64), columns - 2)
    near, part = table.table[:, i : i + 2].numpy(), column - j.astype(np.float32)
    low, high = (near[:, k, j] + part * (near[:, k, j + 1] - near[:, k, j]) for k in (0, 1))
    v, g = low + (position - np.float32(i)) * (high - low)
    v = np.clip(np.float32(-np.expm1(-B / 2)) * v, np.float32(0), np.float32(2))
    sine = np.sqrt(v * (2 - v))
    assert sine.dtype == g.dtype == np.float32
    theta = 2 * np.arctan2(np.sqrt(v.astype(np.float64)), np.sqrt(2 - v.astype(np.float64)))
    return theta, (g * sine).astype(np.float64), AngleDistribution(table.d, B).cdf(theta)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_table_gives_score_and_distribution(tables: dict[int, AngleTable], d: int) -> None:
    """Between rows and columns, at the looked-up angle.

    The error of the score is below 1e-3 of its root mean square for |z| <= 4; the
    Kolmogorov-Smirnov distance is below 1e-4.
    """
    z = np.linspace(-6, 6, 1777)
    inner = np.abs(z) <= 4
    for B in (1.1e-4, 1.3e-3, 0.021, 0.17, 0.52, 0.803, 1.21, 2.9, 5.5, 13.4, 29.0):
        theta, product, cdf = look_up(tables[d], B, z)
        exact = log_kernel(theta, B / (d - 1), d)[1] * np.sin(theta)
        error = np.abs(heat_kernel.kappa(B, d) * product - exact) / heat_kernel.rho(B, d)
        assert error[inner].max() < 1e-3
        assert np.abs(cdf - norm.cdf(z)).max() < 1e-4


def test_the_table_of_the_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarse one against sums over the images of the wrapped normal.

    At the antipode float32 leaves an error of 3e-4.
    """
    monkeypatch.setattr(module, "_shape", lambda d: (385, 321))
    table = AngleTable(2, module._build(2))
    z = np.linspace(-5, 5, 501)
    turns = 2 * math.pi * np.arange(-6, 7)
    for B in (1e-4, 0.01, 0.4, 3.0, 12.0, 30.0):
        theta, product, _ = look_up(table, B, z)
        images = theta[:, None] + turns
        below = norm.cdf(images / math.sqrt(B)) - norm.cdf((turns - theta[:, None]) / math.sqrt(B))
        assert np.abs(below.sum(1) - norm.cdf(z)).max() < 3e-4
        weight = norm.pdf(images / math.sqrt(B))
        score = (weight * images).sum(1) / weight.sum(1) / B
        error = np.abs(heat_kernel.kappa(B, 2) * product - score) / heat_kernel.rho(B, 2)
        assert error[np.abs(z) <= 4].max() < 2e-2
        assert error[np.abs(z) <= 2].max() < 2e-3


@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_table_has_the_limits_of_short_and_long_times(
    tables: dict[int, AngleTable], d: int
) -> None:
    z = np.linspace(-6, 6, tables[d].table.shape[2])
    v, g = tables[d].table.double().numpy()
    small = np.where(z < 0, chi2.ppf(norm.cdf(z), d - 1), chi2.isf(norm.sf(z), d - 1)) / (d - 1)
    assert v[0] == pytest.approx(small, rel=5e-4)
    assert g[0] == pytest.approx(np.ones_like(z), rel=5e-4)
    # For a uniform direction (1 - cos) / 2 has a beta distribution.
    half = betainc((d - 1) / 2, (d - 1) / 2, np.minimum(v[-1] / 2, 1))
    assert half == pytest.approx(norm.cdf(z), abs=2e-6)
    assert g[-1] == pytest.approx(np.full_like(z, d / (d - 1)), rel=1e-4)


def test_the_row_grows_with_the_integrated_beta(tables: dict[int, AngleTable]) -> None:
    table = tables[16]
    rows = table.row(np.geomspace(1e-4, 30, 1000))
    assert rows.dtype == np.float64
    assert (np.diff(rows) > 0).all()
    assert rows[0] == pytest.approx(0, abs=1e-6)
    assert rows[-1] == pytest.approx(256, abs=1e-6)
    assert table.row([0.0, 1e-9, 31.0, 1e9]).tolist() == [0, 0, 256, 256]
    assert table.row(1.0).shape == ()


def test_the_spread_of_any_integrated_beta(tables: dict[int, AngleTable]) -> None:
    """V also outside the table, where 1 - cos theta follows from the limits."""
    table = tables[3]
    betas = np.array([1e-7, 3e-5, 0.01, 0.77, 6.0, 40.0])
    spread = table.spread(betas)
    assert spread.shape == (6, 513)
    assert spread.dtype == torch.float32
    z = np.linspace(-6, 6, 513)
    for B, v in zip(betas, spread.double().numpy(), strict=True):
        distribution = AngleDistribution(3, float(B))
        theta = 2 * np.arcsin(np.sqrt(np.clip(-np.expm1(-B / 2) * v / 2, 0, 1)))
        assert np.abs(distribution.cdf(theta) - norm.cdf(z)).max() < 3e-5
    assert table.spread([0.0]).equal(table.table[0, :1])


def test_the_table_is_copied_to_a_device_once(tables: dict[int, AngleTable]) -> None:
    table = tables[16]
    assert table.on(torch.device("cpu")) is table.table
    copy = table.on(torch.device("meta"))
    assert copy.is_meta
    assert table.on(torch.device("meta")) is copy


# ---- the cache ----


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty cache folder and small tables; the list of dimensions that were built."""
    built: list[int] = []
    build = module._build

    def counted(d: int) -> torch.Tensor:
        built.append(d)
        return build(d)

    monkeypatch.setenv("FASTMSGM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_shape", lambda d: (17, 33))
    monkeypatch.setattr(module, "_build", counted)
    module._angle_table.cache_clear()
    return built


def fresh(d: int) -> AngleTable:
    module._angle_table.cache_clear()  # as a new process would
    return angle_table(d)


def test_the_next_process_reads_the_file(builds: list[int], tmp_path: Path) -> None:
    first = angle_table(5)
    assert angle_table(5) is first
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["angle-table-v1-d5.safetensors"]
    assert fresh(5).table.equal(first.table)
    assert builds == [5]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda good: good[:-50],
    "empty": lambda good: b"",
    "bit of the last number": lambda good: good[:-4] + bytes([good[-4] ^ 1]) + good[-3:],
    "header": lambda good: b"9" * 20 + good[20:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_built_anew(
    builds: list[int], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = angle_table(5)
    path = tmp_path / "cache" / "angle-table-v1-d5.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    second = fresh(5)
    assert builds == [5, 5]
    assert second.table.equal(first.table)
    assert fresh(5).table.equal(second.table)
    assert builds == [5, 5]
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("building the angle table of d = 5, which takes seconds: ")
    assert f"{str(path)!r} is damaged" in message


def test_a_file_of_another_table_is_built_anew(
    builds: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    angle_table(5)
    monkeypatch.setattr(module, "_shape", lambda d: (17, 65))
    second = fresh(5)
    assert fresh(5).table.equal(second.table)
    assert builds == [5, 5]
    (record,) = caplog.records
    assert "holds no angle table of d = 5" in record.getMessage()


def test_a_table_stays_when_its_file_is_changed(builds: list[int], tmp_path: Path) -> None:
    angle_table(5)
    read = fresh(5)
    before = read.table.clone()
    path = tmp_path / "cache" / "angle-table-v1-d5.safetensors"
    with open(path, "r+b") as file:  # the same file, where a new one would leave a mapping alone
        file.write(bytes(path.stat().st_size))
    assert read.table.equal(before)
    assert builds == [5]


def test_a_folder_that_cannot_be_written_is_no_error(
    builds: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTMSGM_CACHE", str(tmp_path / "file" / "folder"))
    assert fresh(5).table.equal(fresh(5).table)
    assert builds == [5, 5]
    first, second = (record.getMessage() for record in caplog.records)
    assert first == second
    assert first.startswith("cannot keep the angle table of d = 5: ")


# ---- errors ----


@pytest.mark.parametrize("d", [3.0, "3", True, None])
def test_the_dimension_must_be_an_integer(d: Any) -> None:
    with pytest.raises(TypeError, match="d must be an int, got"):
        angle_table(d)


def test_the_dimension_must_be_at_least_two() -> None:
    with pytest.raises(ValueError, match="d must be at least 2, got 1"):
        angle_table(1)


@pytest.mark.parametrize("B", [-1e-9, math.nan, math.inf])
def test_an_integrated_beta_must_be_in_range(tables: dict[int, AngleTable], B: float) -> None:
    for call in (tables[16].row, tables[16].spread):
        with pytest.raises(
            ValueError, match=rf"the integrated beta must be in \[0, inf\), got {B}"
        ):
            call([1.0, B])
