"""Rotation: its generators, both forms of its drift, the distribution of its forward noise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.evaluation.metrics import kolmogorov_smirnov
from fastmsgm.rotation import Rotation, heat_kernel
from fastmsgm.rotation import process as module
from fastmsgm.rotation.dense import dense_generators
from fastmsgm.rotation.process import NOISES
from fastmsgm.sde.beta_schedule import sigma
from tests.rotation.exact import z_scores

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
        return dense_generators(d, process.seed, torch.float64, torch.device("cpu"))
    return torch.stack(matrices, dim=2) / math.sqrt(2 if process.noise == "ring" else d - 1)


def simulate(
    process: Rotation,
    B: float,
    n: int,
    d: int,
    steps: int = 64,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Tensor:
    """Directions (n, d) that started at the first axis."""
    start = torch.eye(d, dtype=dtype)[:1].expand(n, d)
    return process.simulate(start, np.full(n, B), rng.stream(seed), 0, steps)


def perturbed_directions(B: float, n: int, d: int, seed: int = 0) -> Tensor:
    """Return directions (n, d) that started at the first axis, from the heat kernel."""
    t = torch.full((n,), float(Rotation().time(B)), dtype=torch.float64)
    return Rotation().perturb(torch.eye(d)[:1].expand(n, d), t, seed=seed)


# ---- the generators ----


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("d", [2, 3, 4, 7])
def test_the_noise_is_that_of_its_generators(noise: str, d: int) -> None:
    process = Rotation(noise, seed=5)
    g, x, v = generators(process, d), vectors(9, d), vectors(9, d, seed=1)
    assert torch.equal(g, -g.transpose(0, 1))
    assert float((g * g).sum()) == pytest.approx(d)  # tr L = -d / 2
    field = torch.einsum("ijk,nj->nik", g, x)
    torch.testing.assert_close(
        process.covariance(x, v), torch.einsum("nik,njk,nj->ni", field, field, v)
    )
    torch.testing.assert_close(process.ito_drift(x), x @ torch.einsum("ijk,jlk->il", g, g).T / 2)
    if noise != "isotropic":  # which takes fewer normals, of the same distribution
        torch.testing.assert_close(process.g_prod(x, v), torch.einsum("nik,nk->ni", field, v))
        torch.testing.assert_close(
            process.g_transpose_prod(x, v), torch.einsum("nik,ni->nk", field, v)
        )
    w = vectors(9, d, seed=2)
    torch.testing.assert_close(
        (process.g_prod(x, w) * v).sum(1), (w * process.g_transpose_prod(x, v)).sum(1)
    )
    assert float((process.g_prod(x, w) * x).sum(1).abs().max()) < 1e-13


def test_dense_generators_are_skew_normals_of_a_seed() -> None:
    d = 6
    z = rng.normals(d, d * d, rng.stream(3), rng.Purpose.PRIOR, 2**32 - 1, torch.float64).view(
        d, d, d
    )
    expected = (z - z.transpose(0, 1)) * (d**0.5 / (z - z.transpose(0, 1)).norm())
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        g = dense_generators(d, 3, dtype, torch.device("cpu"))
        assert g.dtype == dtype
        torch.testing.assert_close(g.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_sampled_in_pieces(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the path or a slice of the tensor at a time, every piece with its own counter.

    So memory does not grow with the number of steps.
    """
    pieces, normals, fill_normal_ = [], rng.normals, ops.fill_normal_

    def sample(
        n: int, d: int, stream: Tensor, purpose: int, step: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        pieces.append((n * d, purpose, step, int(stream[1])))
        return normals(n, d, stream, purpose, step, dtype)

    def fill(out: Tensor, stream: Tensor, purpose: int, step: int) -> None:
        pieces.append((out.numel(), purpose, step, int(stream[1])))
        fill_normal_(out, stream, purpose, step)

    monkeypatch.setattr(rng, "normals", sample)
    monkeypatch.setattr(ops, "fill_normal_", fill)
    process, steps = Rotation(noise, seed=77), 9
    for step in range(3):
        process.simulate(vectors(4, 5), np.ones(4), rng.stream(0), step, steps)
    assert max(size for size, *_ in pieces) <= 25
    assert len(set(pieces)) == len(pieces) == 3 * steps + 5 * (noise == "dense")


def test_dense_generators_are_seeded() -> None:
    first, again, other = (generators(Rotation("dense", seed=s), 5) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first * other).sum().abs()) < 3  # of squared norm 5 each


@pytest.mark.parametrize("noise", NOISES)
def test_ito_and_stratonovich_forms_agree(noise: str) -> None:
    """The Ito drift is the Stratonovich one plus sum_k (D G_k) G_k / 2.

    G_k is the noise of the k-th normal.
    """
    process, d = Rotation(noise), 5
    x, score = vectors(6, d), vectors(6, d, seed=1)
    correction = torch.zeros_like(x)
    for k in range(d):
        w = torch.eye(d, dtype=torch.float64)[k].expand_as(x)
        slope: Any = torch.autograd.functional.jvp(
            lambda y, w=w: process.g_prod(y, w), x, process.g_prod(x, w)
        )[1]
        correction += slope / 2
    for eta in (0.0, 0.5, 1.0):
        ito, plain = (process.reverse_drift(x, score, eta, ito) for ito in (True, False))
        torch.testing.assert_close(ito - plain, eta * correction)
        torch.testing.assert_close(plain, (1 + eta) / 2 * process.covariance(x, score))


@pytest.mark.parametrize("noise", NOISES)
def test_the_ito_drift_is_half_the_divergence_of_the_covariance(noise: str) -> None:
    process, d = Rotation(noise), 4
    x = vectors(1, d)

    def covariance(y: Tensor) -> Tensor:
        # Row j is column j of G G^T.
        return process.covariance(y.expand(d, d), torch.eye(d, dtype=torch.float64))

    jacobian: Any = torch.autograd.functional.jacobian(covariance, x)
    torch.testing.assert_close(
        torch.einsum("jij->i", jacobian[:, :, 0])[None] / 2, process.ito_drift(x)
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_score_of_zero_leaves_uniform_directions_uniform(noise: str, eta: float) -> None:
    """In Ito form d E[u u^T] = 0, where u is one of the d axes with equal probability.

    The second moments of the axes are those of a uniform direction.
    """
    process, d = Rotation(noise), 4
    x = torch.eye(d, dtype=torch.float64)
    drift = process.reverse_drift(x, torch.zeros_like(x), eta, ito=True)
    # [j, n] is G G^T e_j at x_n.
    noises = torch.stack([process.covariance(x, e.expand_as(x)) for e in x])
    change = drift.T @ x + x.T @ drift + eta * noises.sum(1)
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


# ---- the distribution of the forward noise ----


@pytest.mark.parametrize("d", [2, 3, 16])
@pytest.mark.parametrize("B", [1e-3, 0.1, 1.0, 4.0])
def test_the_cosine_decays_by_half_the_integrated_beta(d: int, B: float) -> None:
    """In one shot, E cos = e^{-B/2} and E cos^2 = 1/d + (1 - 1/d) e^{-d tau}.

    Around u_0 no direction is preferred.
    """
    u = perturbed_directions(B, 20_000, d)
    cos = u[:, 0]
    square = 1 / d + (1 - 1 / d) * math.exp(-d * B / (d - 1))
    assert abs(float(z_scores(cos, math.exp(-B / 2)))) < 4
    assert abs(float(z_scores(cos.double().square(), square))) < 4
    assert float(z_scores(u[:, 1:], 0.0).abs().max()) < 4.5
    assert float(z_scores(u[:, 1:].double().square(), (1 - square) / (d - 1)).abs().max()) < 4.5


@pytest.mark.parametrize(("d", "B"), [(3, 0.5), (3, 3.0), (16, 1.0)])
def test_one_shot_and_simulated_noise_have_one_distribution(d: int, B: float) -> None:
    n = 24_000 // d
    simulated = simulate(Rotation(), B, n, d)
    assert abs(float(z_scores(simulated[:, 0], math.exp(-B / 2)))) < 4
    at_once = perturbed_directions(B, n, d, seed=1)
    for axis in (0, 1):
        assert kolmogorov_smirnov(simulated[:, axis], at_once[:, axis])[1] >= 1e-5


@pytest.mark.parametrize(
    ("noise", "d"), [("isotropic", 3), ("isotropic", 16), ("ring", 3), ("ring", 4)]
)
def test_directions_are_uniform_in_the_end(noise: str, d: int) -> None:
    n = 20_000 if noise == "isotropic" else 5000
    x0 = vectors(1, d, dtype=torch.float32).expand(n, d)
    u = Rotation(noise).perturb(x0, torch.ones(n), seed=2, steps=64) / x0.norm(dim=1, keepdim=True)
    cosine = beta((d - 1) / 2, (d - 1) / 2, loc=-1, scale=2)

    def cdf(x: Tensor) -> Tensor:
        return torch.from_numpy(cosine.cdf(x.numpy()))

    for axis in range(d):
        assert kolmogorov_smirnov(u[:, axis], cdf)[1] >= 1e-5
    pairs = (u[:, :, None] * u[:, None]).flatten(1)
    assert float(z_scores(pairs, torch.eye(d).double().flatten() / d).abs().max()) < 4.5


@pytest.mark.parametrize(("noise", "d"), [("ring", 5), ("ring", 16), ("dense", 4)])
@pytest.mark.parametrize("B", [0.3, 4.0])
def test_the_mean_decays_by_the_ito_drift(noise: str, d: int, B: float) -> None:
    process, n = Rotation(noise), 40_000
    x0 = vectors(1, d)
    g = generators(process, d)
    drift = torch.einsum("ijk,jlk->il", g, g) / 2
    mean = torch.linalg.matrix_exp(B * drift) @ x0[0]
    t = torch.full((n,), float(process.time(B)), dtype=torch.float64)
    x = process.perturb(x0.float().expand(n, d), t, steps=64)
    assert float(z_scores(x, mean).abs().max()) < 4
    if noise == "dense":  # whose mean does not only shrink
        assert float(z_scores(x, math.exp(-B / 2) * x0[0]).abs().max()) > 4


def levi_civita(d: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (LEVI_CIVITA / math.sqrt(2)).to(device, dtype)


def test_in_three_dimensions_all_noises_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Levi-Civita tensor dense noise is x cross w / sqrt 2, as ring noise is."""
    monkeypatch.setattr(module, "dense_generators", levi_civita)
    isotropic, ring, dense = (Rotation(noise) for noise in NOISES)
    x, v = vectors(8, 3), vectors(8, 3, seed=1)
    for process in (ring, dense):
        torch.testing.assert_close(process.covariance(x, v), isotropic.covariance(x, v))
        torch.testing.assert_close(process.ito_drift(x), -x / 2)
    torch.testing.assert_close(ring.g_prod(x, v), dense.g_prod(x, v.roll(-1, 1)))
    B, n = 0.7, 6000
    noises = [simulate(r, B, n, 3, seed=i) for i, r in enumerate((isotropic, ring, dense))]
    noises.append(perturbed_directions(B, n, 3, seed=3))
    for first, second in itertools.combinations(noises, 2):
        for axis in range(3):
            assert kolmogorov_smirnov(first[:, axis], second[:, axis])[1] >= 1e-5


@pytest.mark.parametrize("d", [2, 3, 16])
@pytest.mark.parametrize("B", [1e-3, 0.1, 1.0, 4.0])
def test_steins_identity(d: int, B: float) -> None:
    """E[score . u_0] = (d - 1) e^{-B/2}, with the score from the angle table and the kernel."""
    n = 20_000
    betas, u0 = np.full(n, B), torch.eye(d)[:1].repeat(n, 1)
    score = torch.empty_like(u0)
    Rotation().perturb_by_heat_kernel(
        u0, betas, rng.stream(0), 0, target=score, scale=heat_kernel.kappa(betas, d)
    )
    assert abs(float(z_scores((score * u0).sum(1), (d - 1) * math.exp(-B / 2)))) < 4


def test_one_shot_in_the_plane_is_the_wrapped_normal() -> None:
    """Every angle is sqrt(B) z, also at the antipode and after many turns.

    The score is that of the heat kernel.
    """
    n, B = 3000, np.geomspace(1e-6, 40, 3000)
    B[0] = 0
    x0 = vectors(n, 2, dtype=torch.float32).view(n, 1, 2)
    u0 = x0.flatten(1).double() / x0.flatten(1).double().norm(dim=1, keepdim=True)
    model_input, target = torch.empty_like(x0, dtype=torch.bfloat16), torch.empty_like(x0)
    deviation = sigma(np.maximum(B, 1e-12))
    u_t = Rotation().perturb_by_heat_kernel(
        x0,
        B,
        rng.stream(4, 9),
        6,
        model_input=model_input,
        c_in=3.0,
        target=target,
        scale=1 / deviation,
    )
    assert u_t.shape == target.shape == x0.shape
    assert torch.equal(model_input, (3 * u_t).bfloat16())
    z = rng.normals(n, 1, rng.stream(4, 9), rng.Purpose.TRAINING_ANGLE, 6, torch.float64)[:, 0]
    angle = torch.from_numpy(B).sqrt() * z
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    side = torch.stack((-u0[:, 1], u0[:, 0]), dim=1)
    assert float((u_t.flatten(1) - (cos * u0 + sin * side)).abs().max()) < 3e-7
    theta = np.arccos(np.clip(cos[:, 0].numpy(), -1, 1))
    _, w = heat_kernel.log_kernel(theta[1:], B[1:], 2)
    strength = np.append(0, w / heat_kernel.kappa(B[1:], 2) / deviation[1:])
    expected = torch.from_numpy(strength)[:, None] * sin * (sin * u0 - cos * side)
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
        (
            np.ones((2, 3), np.float32),
            TypeError,
            "x0 must be a tensor, got ndarray: convert arrays",
        ),
        (
            torch.ones(2, 3, dtype=torch.int64),
            TypeError,
            r"x0 must be floating point, got torch\.int64",
        ),
        (
            torch.ones(2, 1),
            ValueError,
            r"x0 must have shape \(n, \.\.\.\) with n >= 1 and at least 2 features, got",
        ),
        (torch.ones(3), ValueError, r"at least 2 features, got \(3,\)"),
        (torch.ones(0, 3), ValueError, r"at least 2 features, got \(0, 3\)"),
        (
            torch.tensor([[1.0, math.nan], [-math.inf, 1.0]]),
            ValueError,
            "x0 must be finite, got NaN or infinity in 2 ",
        ),
        (
            torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
            ValueError,
            r"x0 must have no zero vectors, got 1: .*offset=",
        ),
        (
            torch.full((2, 3), 1e20),
            ValueError,
            r"norms whose squares torch\.float32 can hold, .* up to 1e\+20: scale",
        ),
    ],
)
def test_perturb_refuses_data_without_directions(
    x0: Any, error: type[Exception], message: str
) -> None:
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
def test_perturb_refuses_times(t: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Rotation().perturb(torch.ones(2, 3), t)


def test_a_dense_tensor_that_is_too_large() -> None:
    message = (
        r'noise="dense" keeps d\^3 numbers, 3\.7 GiB for d = 1000 \(at most 2 GiB\): '
        r'use "isotropic" or "ring"'
    )
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
def test_rotation_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rotation(**options)


@pytest.mark.parametrize("seed", [1.0, True, "1", None])
def test_the_seed_of_the_dense_tensor_is_an_integer(seed: Any) -> None:
    with pytest.raises(TypeError, match=f"seed must be an int, got {seed!r}"):
        Rotation("dense", seed=seed)
    numpy_seed: Any = np.int64(3)
    assert Rotation("dense", seed=numpy_seed) == Rotation("dense", seed=3)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_the_seed_of_the_dense_tensor_is_in_range(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must be in 0 \.\. 2\^64 - 1, got"):
        Rotation("dense", seed=seed)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_reverse_drift_refuses_eta(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\]"):
        Rotation().reverse_drift(torch.ones(1, 3), torch.ones(1, 3), eta)


# ---- limits ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"x0": torch.ones(4, 3, dtype=torch.float64)}, "x0 must be float32"),
    ],
)
def test_perturb_refuses_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x0": torch.ones(4, 3), "t": torch.full((4,), 0.5)} | change
    with pytest.raises((TypeError, ValueError), match=message):
        Rotation("ring").perturb(**arguments)


def test_perturb_takes_strided_data() -> None:
    x0, t = torch.randn(5, 8).T, torch.full((8,), 0.5, dtype=torch.bfloat16)
    for noise in ("isotropic", "ring"):
        assert torch.equal(
            Rotation(noise).perturb(x0, t), Rotation(noise).perturb(x0.contiguous(), t)
        )


@pytest.mark.parametrize("name", ["steps", "seed", "start"])
def test_counts_of_perturb_are_integers(name: str) -> None:
    """A bool and a float are refused, NumPy's integers are taken."""
    process, x0 = Rotation("ring"), vectors(2, 3, dtype=torch.float32)
    t = torch.full((2,), 0.5)
    for wrong in (2.0, True, "2"):
        options: dict[str, Any] = {name: wrong}
        with pytest.raises(TypeError, match=f"{name} must be an int, got {wrong!r}"):
            process.perturb(x0, t, **options)
    options = {name: np.int64(3)}
    assert torch.equal(process.perturb(x0, t, **options), process.perturb(x0, t, **{name: 3}))


def test_an_integrated_beta_beyond_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="integrated beta at t = 1 must be at most 700, got 2000"):
        Rotation(beta_max=4000.0)


def test_the_target_in_the_plane_stays_finite_at_large_integrated_betas() -> None:
    target, x0 = torch.empty(100, 2), torch.tensor([[1.0, 0.0]]).expand(100, 2).contiguous()
    B, process = np.full(100, 600.0), Rotation(beta_max=1200.0)
    process.perturb_by_heat_kernel(x0, B, rng.stream(0), 0, target=target)
    assert float(target.abs().max()) < 2.5
