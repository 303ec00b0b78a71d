"""The rotation process: its generators, both forms of its drift, the laws of its forward noise; the radial prior."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from fastmsgm import RadialPrior, Rotation, heat_kernel, ops, rng, rotation
from fastmsgm.metrics import kolmogorov_smirnov
from fastmsgm.rotation import NOISES

LEVI_CIVITA = torch.zeros(3, 3, 3, dtype=torch.float64)
for _i, _j, _k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
    LEVI_CIVITA[_i, _j, _k], LEVI_CIVITA[_j, _i, _k] = 1, -1


def vectors(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(process: Rotation, d: int) -> Tensor:
    """(d, d, m): G^k = [:, :, k], written out."""
    matrices = []
    for i in range(d):
        pairs = [(i, (i + 1) % d)] if process.noise == "ring" else [(i, j) for j in range(i + 1, d)]
        for first, second in pairs:
            g = torch.zeros(d, d, dtype=torch.float64)
            g[first, second] += 1
            g[second, first] -= 1
            matrices.append(g)
    if process.noise == "dense":
        return rotation._dense_generators(d, process.seed, torch.float64, torch.device("cpu"))
    return torch.stack(matrices, dim=2) / math.sqrt(2 if process.noise == "ring" else d - 1)


def simulated(process: Rotation, clock: float, n: int, d: int, steps: int = 64, dtype: torch.dtype = torch.float32,
              seed: int = 0) -> Tensor:  # fmt: skip
    """Directions (n, d) that started at the first axis."""
    start = torch.eye(d, dtype=dtype)[:1].expand(n, d)
    return process.simulate(start, np.full(n, clock), rng.stream(seed), 0, steps)


def one_shot(clock: float, n: int, d: int, process: Rotation | None = None, seed: int = 0) -> Tensor:
    process = process or Rotation()
    t = torch.full((n,), float(process.time(clock)), dtype=torch.float64)
    return process.perturb(torch.eye(d)[:1].expand(n, d), t, seed=seed)


def z_scores(x: Tensor, mean: Tensor | float) -> Tensor:
    """How many standard errors the sample mean of x (n, ...) is from the mean."""
    x = x.double()
    return (x.mean(0) - mean) / (x.std(0) / len(x) ** 0.5)


# ---- the clock ----


@pytest.mark.parametrize("betas", [(0.1, 20.0), (3.0, 3.0), (5.0, 0.5)])
def test_the_clock_is_the_integral_of_beta(betas: tuple[float, float]) -> None:
    process, t = Rotation(beta_min=betas[0], beta_max=betas[1]), np.linspace(0, 1, 2001)
    rates = process.beta(t)
    assert rates[[0, -1]] == pytest.approx(betas)
    integral = np.append(0, np.cumsum((rates[1:] + rates[:-1]) / 2) * (t[1] - t[0]))
    assert process.clock(t) == pytest.approx(integral)
    assert process.time(process.clock(t)) == pytest.approx(t)
    assert process.clock_max == pytest.approx(process.clock(1.0))


# ---- the generators ----


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("d", [2, 3, 4, 7])
def test_the_noise_is_that_of_its_generators(noise: str, d: int) -> None:
    process = Rotation(noise, seed=5)
    g, x, v = generators(process, d), vectors(9, d), vectors(9, d, seed=1)
    assert torch.equal(g, -g.transpose(0, 1))
    assert float((g * g).sum()) == pytest.approx(d)  # tr L = -d / 2
    field = torch.einsum("ijk,nj->nik", g, x)
    torch.testing.assert_close(process.covariance(x, v), torch.einsum("nik,njk,nj->ni", field, field, v))
    torch.testing.assert_close(process.ito_drift(x), x @ torch.einsum("ijk,jlk->il", g, g).T / 2)
    if noise != "isotropic":  # which takes other normals, of the same law
        torch.testing.assert_close(process.turn(x, v), torch.einsum("nik,nk->ni", field, v))
        torch.testing.assert_close(process.turn_transposed(x, v), torch.einsum("nik,ni->nk", field, v))
    w = vectors(9, d, seed=2)
    torch.testing.assert_close((process.turn(x, w) * v).sum(1), (w * process.turn_transposed(x, v)).sum(1))
    assert float((process.turn(x, w) * x).sum(1).abs().max()) < 1e-13


def test_dense_generators_are_skew_normals_of_their_seed() -> None:
    d = 6
    z = rng.normals(d, d * d, rng.stream(3), rng.Kind.PRIOR, 2**32 - 1, torch.float64).view(d, d, d)
    expected = (z - z.transpose(0, 1)) * (d**0.5 / (z - z.transpose(0, 1)).norm())
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        g = rotation._dense_generators(d, 3, dtype, torch.device("cpu"))
        assert g.dtype == dtype
        torch.testing.assert_close(g.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_drawn_in_pieces(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the path or a row of the tensor at a time, so that memory does not grow with the steps; every piece
    has an address of its own."""
    drawn, normals, fill_normal_ = [], rng.normals, ops.fill_normal_

    def draw(n: int, d: int, stream: Tensor, kind: int, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
        drawn.append((n * d, kind, step, int(stream[1])))
        return normals(n, d, stream, kind, step, dtype)

    def fill(out: Tensor, stream: Tensor, kind: int, step: int) -> None:
        drawn.append((out.numel(), kind, step, int(stream[1])))
        fill_normal_(out, stream, kind, step)

    monkeypatch.setattr(rng, "normals", draw)
    monkeypatch.setattr(ops, "fill_normal_", fill)
    process, steps = Rotation(noise, seed=77), 9
    for step in range(3):
        process.simulate(vectors(4, 5), np.ones(4), rng.stream(0), step, steps)
    assert max(size for size, *_ in drawn) <= 25
    assert len(set(drawn)) == len(drawn) == 3 * steps + 5 * (noise == "dense")


def test_dense_generators_are_seeded() -> None:
    first, again, other = (generators(Rotation("dense", seed=s), 5) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first * other).sum().abs()) < 3  # of squared norm 5 each


@pytest.mark.parametrize("noise", NOISES)
def test_ito_and_stratonovich_forms_agree(noise: str) -> None:
    """The Ito drift is the Stratonovich one and sum_k (D G_k) G_k / 2, with G_k the noise of the k-th normal."""
    process, d = Rotation(noise), 5
    x, score = vectors(6, d), vectors(6, d, seed=1)
    correction = torch.zeros_like(x)
    for k in range(d):
        w = torch.eye(d, dtype=torch.float64)[k].expand_as(x)
        _, slope = torch.autograd.functional.jvp(lambda y, w=w: process.turn(y, w), x, process.turn(x, w))
        correction += slope / 2
    for lambda_ in (0.0, 0.5, 1.0):
        ito, plain = (process.reverse_drift(x, score, lambda_, ito) for ito in (True, False))
        torch.testing.assert_close(ito - plain, (1 - lambda_) * correction)
        torch.testing.assert_close(plain, (1 - lambda_ / 2) * process.covariance(x, score))


@pytest.mark.parametrize("noise", NOISES)
def test_the_ito_drift_is_half_the_divergence_of_the_covariance(noise: str) -> None:
    process, d = Rotation(noise), 4
    x = vectors(1, d)

    def covariance(y: Tensor) -> Tensor:
        return process.covariance(y.expand(d, d), torch.eye(d, dtype=torch.float64))  # row j: column j of G G^T

    jacobian = torch.autograd.functional.jacobian(covariance, x)[:, :, 0]
    torch.testing.assert_close(torch.einsum("jij->i", jacobian)[None] / 2, process.ito_drift(x))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_no_score_leaves_uniform_directions_uniform(noise: str, lambda_: float) -> None:
    """d E[u u^T] = 0 in Ito form: the second moments of a uniform direction are those of the d axes, one in d each."""
    process, d = Rotation(noise), 4
    x = torch.eye(d, dtype=torch.float64)
    drift = process.reverse_drift(x, torch.zeros_like(x), lambda_, ito=True)
    noises = torch.stack([process.covariance(x, e.expand_as(x)) for e in x])  # [j, n]: G G^T e_j at x_n
    change = drift.T @ x + x.T @ drift + (1 - lambda_) * noises.sum(1)
    assert float(change.abs().max()) < 1e-14


# ---- norms ----


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_norms_are_kept_by_1000_steps(noise: str, dtype: torch.dtype, bound: float) -> None:
    x0 = vectors(6, 5, dtype=dtype) * torch.logspace(-3, 6, 6, dtype=dtype)[:, None]
    x = Rotation(noise).simulate(x0, np.full(6, 5.0), rng.stream(0), 0, 1000)
    assert x.dtype == dtype
    assert float((x.double().norm(dim=1) / x0.double().norm(dim=1) - 1).abs().max()) < bound
    assert float((x - x0).norm(dim=1).min()) > 0


def test_norms_are_kept_in_one_shot() -> None:
    x0 = vectors(4000, 3, dtype=torch.float32) * 100
    x = Rotation().perturb(x0, torch.rand(4000, generator=torch.Generator().manual_seed(0)))
    assert float((x.double().norm(dim=1) / x0.double().norm(dim=1) - 1).abs().max()) < 1e-6


# ---- forward laws ----


@pytest.mark.parametrize("d", [2, 3, 16])
@pytest.mark.parametrize("clock", [1e-3, 0.1, 1.0, 4.0])
def test_the_angle_decays_by_half_the_clock(d: int, clock: float) -> None:
    """E cos = e^{-B/2} and E cos^2 = 1/d + (1 - 1/d) e^{-d tau}, one shot; around u_0 there is no other direction."""
    u = one_shot(clock, 20_000, d)
    cos = u[:, 0]
    square = 1 / d + (1 - 1 / d) * math.exp(-d * clock / (d - 1))
    assert abs(float(z_scores(cos, math.exp(-clock / 2)))) < 4
    assert abs(float(z_scores(cos.double().square(), square))) < 4
    assert float(z_scores(u[:, 1:], 0.0).abs().max()) < 4.5
    assert float(z_scores(u[:, 1:].double().square(), (1 - square) / (d - 1)).abs().max()) < 4.5


@pytest.mark.parametrize(("d", "clock"), [(3, 0.5), (3, 3.0), (16, 1.0)])
def test_one_shot_and_simulated_noise_agree_in_law(d: int, clock: float) -> None:
    n = 24_000 // d
    steps = simulated(Rotation(), clock, n, d)
    assert abs(float(z_scores(steps[:, 0], math.exp(-clock / 2)))) < 4
    at_once = one_shot(clock, n, d, seed=1)
    for axis in (0, 1):
        assert kolmogorov_smirnov(steps[:, axis], at_once[:, axis])[1] >= 1e-5


@pytest.mark.parametrize(("noise", "d"), [("isotropic", 3), ("isotropic", 16), ("ring", 3), ("ring", 4)])
def test_directions_are_uniform_in_the_end(noise: str, d: int) -> None:
    n = 20_000 if noise == "isotropic" else 5000
    x0 = vectors(1, d, dtype=torch.float32).expand(n, d)
    u = Rotation(noise).perturb(x0, torch.ones(n), seed=2, steps=64) / x0.norm(dim=1, keepdim=True)
    law = beta((d - 1) / 2, (d - 1) / 2, loc=-1, scale=2)
    for axis in range(d):
        assert kolmogorov_smirnov(u[:, axis], lambda x: torch.from_numpy(law.cdf(x.numpy())))[1] >= 1e-5
    pairs = (u[:, :, None] * u[:, None]).flatten(1)
    assert float(z_scores(pairs, torch.eye(d).double().flatten() / d).abs().max()) < 4.5


@pytest.mark.parametrize(("noise", "d"), [("ring", 5), ("ring", 16), ("dense", 4)])
@pytest.mark.parametrize("clock", [0.3, 4.0])
def test_the_mean_decays_as_the_generators_say(noise: str, d: int, clock: float) -> None:
    process, n = Rotation(noise), 40_000
    x0 = vectors(1, d)
    g = generators(process, d)
    drift = torch.einsum("ijk,jlk->il", g, g) / 2
    mean = torch.linalg.matrix_exp(clock * drift) @ x0[0]
    t = torch.full((n,), float(process.time(clock)), dtype=torch.float64)
    x = process.perturb(x0.float().expand(n, d), t, steps=64)
    assert float(z_scores(x, mean).abs().max()) < 4
    if noise == "dense":  # whose mean does not only shrink
        assert float(z_scores(x, math.exp(-clock / 2) * x0[0]).abs().max()) > 4


def levi_civita(d: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (LEVI_CIVITA / math.sqrt(2)).to(device, dtype)


def test_in_three_dimensions_all_noises_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Levi-Civita tensor, dense noise is x cross w / sqrt 2: the ring's, of shifted normals."""
    monkeypatch.setattr(rotation, "_dense_generators", levi_civita)
    isotropic, ring, dense = (Rotation(noise) for noise in NOISES)
    x, v = vectors(8, 3), vectors(8, 3, seed=1)
    for process in (ring, dense):
        torch.testing.assert_close(process.covariance(x, v), isotropic.covariance(x, v))
        torch.testing.assert_close(process.ito_drift(x), -x / 2)
    torch.testing.assert_close(ring.turn(x, v), dense.turn(x, v.roll(-1, 1)))
    clock, n = 0.7, 6000
    laws = [simulated(process, clock, n, 3, seed=i) for i, process in enumerate((isotropic, ring, dense))]
    laws.append(one_shot(clock, n, 3, seed=3))
    for i, first in enumerate(laws):
        for second in laws[i + 1 :]:
            for axis in range(3):
                assert kolmogorov_smirnov(first[:, axis], second[:, axis])[1] >= 1e-5


@pytest.mark.parametrize("d", [2, 3, 16])
@pytest.mark.parametrize("clock", [1e-3, 0.1, 1.0, 4.0])
def test_steins_identity(d: int, clock: float) -> None:
    """E[score . u_0] = (d - 1) e^{-B/2}, with the score that the table and the kernel give."""
    n = 20_000
    clocks, u0 = np.full(n, clock), torch.eye(d)[:1].repeat(n, 1)
    score = torch.empty_like(u0)
    Rotation().one_shot(u0, clocks, rng.stream(0), 0, target=score, scale=heat_kernel.kappa(clocks, d))
    assert abs(float(z_scores((score * u0).sum(1), (d - 1) * math.exp(-clock / 2)))) < 4


def test_one_shot_in_the_plane_is_the_wrapped_normal() -> None:
    """Every angle is sqrt(B) z, also at the antipode and after many turns; the score is the heat kernel's own."""
    n, clocks = 3000, np.geomspace(1e-6, 40, 3000)
    clocks[0] = 0
    x0 = vectors(n, 2, dtype=torch.float32).view(n, 1, 2)
    u0 = x0.flatten(1).double() / x0.flatten(1).double().norm(dim=1, keepdim=True)
    net_in, target = torch.empty_like(x0, dtype=torch.bfloat16), torch.empty_like(x0)
    sigma = heat_kernel.sigma(np.maximum(clocks, 1e-12))
    outputs = {"net_in": net_in, "c_in": 3.0, "target": target, "scale": 1 / sigma}
    u_t = Rotation().one_shot(x0, clocks, rng.stream(4, 9), 6, **outputs)
    assert u_t.shape == target.shape == x0.shape
    assert torch.equal(net_in, (3 * u_t).bfloat16())
    z = rng.normals(n, 1, rng.stream(4, 9), rng.Kind.TRAINING_ANGLE, 6, torch.float64)[:, 0]
    angle = torch.from_numpy(clocks).sqrt() * z
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    side = torch.stack((-u0[:, 1], u0[:, 0]), dim=1)
    assert float((u_t.flatten(1) - (cos * u0 + sin * side)).abs().max()) < 3e-7
    theta = np.arccos(np.clip(cos[:, 0].numpy(), -1, 1))
    _, w = heat_kernel.log_kernel(theta[1:], clocks[1:], 2)
    strength = torch.from_numpy(np.append(0, w / heat_kernel.kappa(clocks[1:], 2) / sigma[1:]))[:, None]
    expected = strength * sin * (sin * u0 - cos * side)
    torch.testing.assert_close(target.flatten(1).double(), expected, rtol=0, atol=2e-6)
    assert float(target.abs().max()) > 1


# ---- perturb ----


@pytest.mark.parametrize("noise", NOISES)
def test_perturb_of_images_and_parts_of_the_stream(noise: str) -> None:
    process, x0 = Rotation(noise), vectors(20, 16, dtype=torch.float32).view(20, 1, 4, 4)
    t = torch.linspace(0, 1, 20)
    x = process.perturb(x0, t, seed=3, start=7, steps=4)
    assert x.shape == x0.shape
    assert x.dtype == torch.float32
    assert torch.equal(x[5:], process.perturb(x0[5:], t[5:], seed=3, start=12, steps=4))
    assert not torch.equal(x, process.perturb(x0, t, seed=4, start=7, steps=4))
    torch.testing.assert_close(x[0], x0[0])  # t = 0
    assert float((x[1:] - x0[1:]).flatten(1).norm(dim=1).min()) > 1e-3


@pytest.mark.parametrize(
    ("x0", "error", "message"),
    [
        (np.ones((2, 3), np.float32), TypeError, "x0 must be a tensor, got ndarray: convert arrays"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, r"x0 must be floating point, got torch\.int64"),
        (torch.ones(2, 1), ValueError, r"x0 must have shape \(n, \.\.\.\) with n >= 1 and at least 2 features, got"),
        (torch.ones(3), ValueError, r"at least 2 features, got \(3,\)"),
        (torch.ones(0, 3), ValueError, r"at least 2 features, got \(0, 3\)"),
        (torch.tensor([[1.0, math.nan], [-math.inf, 1.0]]), ValueError, "x0 must be finite, got NaN or infinity in 2 "),
        (torch.tensor([[0.0, 0.0], [1.0, 1.0]]), ValueError, r"x0 must have no zero vectors, got 1: .*offset="),
        (torch.full((2, 3), 1e20), ValueError, r"norms whose squares torch\.float32 can hold, .* up to 1e\+20: scale"),
    ],
)  # fmt: skip
def test_perturb_refuses_data_without_directions(x0: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Rotation().perturb(x0, torch.ones(2))


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        ([0.5, 0.5], TypeError, r"t must be a tensor of shape \(2,\), got list"),
        (torch.ones(3), ValueError, r"t must have shape \(2,\) and values in \[0, 1\], got \(3,\)"),
        (torch.tensor([0.5, 1.5]), ValueError, r"values in \[0, 1\], got 1\.5"),
        (torch.tensor([math.nan, 0.5]), ValueError, r"values in \[0, 1\], got nan"),
    ],
)
def test_perturb_refuses_times(t: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Rotation().perturb(torch.ones(2, 3), t)


def test_a_dense_tensor_that_is_too_large() -> None:
    message = r'noise="dense" keeps d\^3 numbers, 3\.7 GiB for d = 1000 \(at most 2 GiB\): use "isotropic" or "ring"'
    with pytest.raises(ValueError, match=message):
        Rotation("dense").perturb(torch.ones(1, 1000), torch.ones(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "sphere"}, "noise must be one of isotropic, ring, dense, got 'sphere'"),
        ({"beta_min": 0.0}, r"beta_min must be a positive number, got 0\.0"),
        ({"beta_max": math.inf}, "beta_max must be a positive number, got inf"),
        ({"beta_max": "20"}, "beta_max must be a positive number, got '20'"),
    ],
)
def test_rotation_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rotation(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("lambda_", [-0.1, 1.1, math.nan])
def test_reverse_drift_refuses_lambda(lambda_: float) -> None:
    with pytest.raises(ValueError, match=r"lambda_ must be in \[0, 1\]"):
        Rotation().reverse_drift(torch.ones(1, 3), torch.ones(1, 3), lambda_)


# ---- the radial prior ----


def cauchy_norms(n: int, seed: int = 0) -> Tensor:
    """(n, 2) whose norms are of tail index 1: |C| with C Cauchy, in random directions."""
    u = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    radius, angle = torch.tan(math.pi / 2 * u[:, :1]), 2 * math.pi * u[:, 1:]
    return (radius * torch.cat((angle.cos(), angle.sin()), dim=1)).float()


def test_the_ecdf_draws_the_datas_norms() -> None:
    x = cauchy_norms(3000)
    prior, norms = RadialPrior.fit(x), x.double().norm(dim=1)
    drawn = prior.draw(20_000, rng.stream(0)).double()
    assert drawn.dtype == torch.float64
    assert kolmogorov_smirnov(drawn, norms)[1] >= 1e-5
    # Every draw is a norm of the data, none is beyond the largest, and nearly all occur.
    nearest = norms.sort().values[torch.searchsorted(norms.sort().values, drawn * (1 - 3e-6)).clamp(max=2999)]
    assert float((drawn / nearest - 1).abs().max()) < 3e-6
    assert len(nearest.unique()) > 2900


@pytest.mark.parametrize("smooth", [False, True])
def test_draws_are_addressed_by_the_sample(smooth: bool) -> None:
    prior = RadialPrior.fit(cauchy_norms(500), smooth=smooth, pareto=0.05)
    whole = prior.draw(100, rng.stream(4))
    assert torch.equal(whole[40:60], prior.draw(20, rng.stream(4, 40)))
    assert len(whole.unique()) > 80
    assert float(whole.min()) > 0


def test_the_kde_smooths_the_law_of_the_log_norm() -> None:
    """Its mean is the data's, its variance the data's and the squared bandwidth, Silverman's 0.9 sd n^-0.2."""
    data = torch.exp(0.5 * vectors(200, 1) + 2) * torch.tensor([[0.6, -0.8]])
    prior, logs = RadialPrior.fit(data, smooth=True), data.norm(dim=1).log()
    quartiles = torch.quantile(logs, torch.tensor([0.25, 0.75]).double())
    spread = min(float(logs.std(correction=0)), float(quartiles[1] - quartiles[0]) / 1.34)
    assert prior.bandwidth == pytest.approx(0.9 * spread * 200**-0.2)
    drawn = prior.draw(40_000, rng.stream(0)).double().log()
    assert abs(float(z_scores(drawn, float(logs.mean())))) < 4.5
    variance = float(logs.var(correction=0)) + prior.bandwidth**2
    assert float(drawn.var()) == pytest.approx(variance, rel=0.04)
    assert len(drawn.unique()) > 30_000
    kernels = torch.special.ndtr((drawn[:5000, None] - logs) / prior.bandwidth).mean(1)
    assert kolmogorov_smirnov(kernels, lambda p: p)[1] >= 1e-5


def test_the_pareto_tail_goes_on_beyond_the_data() -> None:
    x = cauchy_norms(10_000)
    largest, n = float(x.norm(dim=1).max()), 200_000
    prior, plain = RadialPrior.fit(x, pareto=0.02), RadialPrior.fit(x)
    assert prior.tail == 200
    assert prior.tail_index == pytest.approx(1, abs=4 / math.sqrt(200))
    drawn = prior.draw(n, rng.stream(1)).double()
    beyond = int((drawn > largest).sum())
    threshold = float(torch.exp(prior.log_norms[-201].double()))
    expected = n * 0.02 * (largest / threshold) ** -prior.tail_index
    assert abs(beyond - expected) < 4.5 * math.sqrt(expected) + 1
    assert beyond > 3
    # Above the threshold log(r / threshold) is exponential, below it the data's own law is left as it is.
    excess = torch.log(drawn[drawn > threshold * (1 + 1e-6)] / threshold)
    assert len(excess) == pytest.approx(0.02 * n, abs=4.5 * math.sqrt(0.02 * n))
    assert kolmogorov_smirnov(excess, lambda e: -torch.expm1(-prior.tail_index * e))[1] >= 1e-5
    without = plain.draw(n, rng.stream(1)).double()
    assert float(without.max()) <= largest * (1 + 3e-6)
    body = drawn <= threshold
    assert torch.equal(drawn[body], without[body])


def test_a_prior_of_equal_norms() -> None:
    """Data on a sphere: nothing to smooth and no tail to extend."""
    x = 5 * torch.eye(4)
    prior = RadialPrior.fit(x, smooth=True, pareto=0.5)
    assert prior.tail_index == math.inf
    assert prior.draw(50, rng.stream(0)).tolist() == pytest.approx([5.0] * 50)


@pytest.mark.parametrize("pareto", [-0.1, 0.6, math.nan])
def test_fit_refuses_a_share(pareto: float) -> None:
    with pytest.raises(ValueError, match=r"pareto must be a share in \[0, 0\.5\]"):
        RadialPrior.fit(torch.ones(3, 2), pareto=pareto)


def test_fit_refuses_a_share_of_no_norm() -> None:
    message = r"pareto must be a share of at least one of the 40 norms, got 0\.01, .* give at least 0\.025, or 0"
    with pytest.raises(ValueError, match=message):
        RadialPrior.fit(torch.ones(40, 2), pareto=0.01)
    assert RadialPrior.fit(torch.ones(40, 2), pareto=0.025).tail == 1


def test_fit_refuses_data_without_norms() -> None:
    with pytest.raises(ValueError, match="x must have no zero vectors, got 3"):
        RadialPrior.fit(torch.zeros(3, 2))


# ---- limits ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be an int, at least 1, got 0"),
        ({"x0": torch.ones(4, 3, dtype=torch.float64)}, "x0 must be float32"),
    ],
)
def test_perturb_refuses(change: dict[str, Any], message: str) -> None:
    arguments = {"x0": torch.ones(4, 3), "t": torch.full((4,), 0.5)} | change
    with pytest.raises((TypeError, ValueError), match=message):
        Rotation("ring").perturb(**arguments)


def test_perturb_takes_strided_data() -> None:
    x0, t = torch.randn(5, 8).T, torch.full((8,), 0.5, dtype=torch.bfloat16)
    for noise in ("isotropic", "ring"):
        assert torch.equal(Rotation(noise).perturb(x0, t), Rotation(noise).perturb(x0.contiguous(), t))


def test_a_clock_beyond_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="clock at t = 1 must be at most 700, got 2000"):
        Rotation(beta_max=4000.0)


def test_the_target_in_the_plane_stays_finite_at_large_clocks() -> None:
    target, x0 = torch.empty(100, 2), torch.tensor([[1.0, 0.0]]).expand(100, 2).contiguous()
    Rotation(beta_max=1200.0).one_shot(x0, np.full(100, 600.0), rng.stream(0), 0, target=target)
    assert float(target.abs().max()) < 2.5
