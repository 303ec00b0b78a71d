"""``ring_step``: what the reference computes, every kernel within its bound, and the op."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm import ops, rng
from tests.ops.backends import BACKENDS, CPU, KERNELS, REFERENCE, TRITON, TRITON_MARKS, Backend
from tests.ops.cases import DTYPES, NETWORK_DTYPES, START, assert_equal, ring_step_case
from tests.ops.checks import (
    assert_bits_of_samples,
    assert_same_in_place,
    assert_same_op_in_place,
    directions,
    opcheck,
)

DIMENSIONS = (2, 3, 4, 5, 6, 7, 8, 63, 64, 130, 784, 1024, 1030)
FLAGS = [*itertools.product((False, True), (False, True))]  # restart, noisy
EXACT = torch.float64


def step(
    x: Tensor,
    f: Tensor,
    drift: float = 0.0,
    noise: float = 0.0,
    *,
    step_start: Tensor | None = None,
    restart: bool = False,
    k: int = 0,
    backend: Backend = REFERENCE,
) -> Tensor:
    """Return the state after row k of a table of equal rows, drift and noise in half turns.

    No sample may be nonfinite.
    """
    out, stream = torch.full_like(x, torch.nan), rng.stream(5, 2**32 - 3)
    first_nonfinite_step = torch.full((len(x),), -1, dtype=torch.int32)
    table = torch.tensor([[drift, noise, 1.0]]).repeat(k + 1, 1)
    outputs = (first_nonfinite_step, out, step_start, None)
    backend.kernel("ring_step")(x, f, table, stream, k, *outputs, restart, noise > 0)
    assert (first_nonfinite_step == -1).all()
    return out


# ---- the reference ----


def rotation(d: int, pair: int, angle: Tensor) -> Tensor:
    """Return the matrix of one rotation by half turns: exp(pi angle (E_k,k+1 - E_k+1,k))."""
    here, behind, matrix = pair, (pair + 1) % d, torch.eye(d, dtype=EXACT)
    cosine, sine = torch.cos(math.pi * angle), torch.sin(math.pi * angle)
    matrix[here, here] = matrix[behind, behind] = cosine
    matrix[here, behind], matrix[behind, here] = sine, -sine
    return matrix


@pytest.mark.parametrize("d", [2, 3, 6, 7])
@pytest.mark.parametrize(("restart", "noise"), [*itertools.product((False, True), (0.0, 0.5))])
def test_a_step_is_a_product_of_rotations(d: int, restart: bool, noise: float) -> None:
    x, f, start = 2 * directions(20, d), directions(20, d, 1), 3 * directions(20, d, 2)
    step_start = start.clone()
    out = step(x, f, 0.75, noise, step_start=step_start, restart=restart, k=4)
    torch.testing.assert_close(step_start, start if restart else x, rtol=0, atol=0)
    stream = rng.stream(5, 2**32 - 3)
    xi = noise * rng.normals(20, d, stream, rng.Purpose.STEP, 4, EXACT)
    coins = rng.words(20, 1, stream, rng.Purpose.STEP, 4)[:, 0, 1] % 2
    assert 5 < coins.sum() < 15
    even, odd = [*range(0, d - 1, 2)], [*range(1, d - 1, 2)]
    groups = [even, odd, [d - 1]] if d % 2 else [even, [*odd, d - 1]]
    for i in range(20):
        v, phi = start[i] if restart else x[i], angles_of_flow(x[i], 0.75 * f[i])
        if noise:
            order = groups[::-1] if coins[i] else groups
            shift = d % 2 == 0 and order[0][0]  # of the pairs' normals
            plan = [(k, phi[k]) for group in order for k in group]
            plan += [(k, xi[i, k - shift]) for group in order[::-1] for k in group]
        else:
            *outer, middle = groups
            plan = [(k, phi[k] / 2) for group in outer for k in group]
            plan += [(k, phi[k]) for k in middle]
            plan += [(k, phi[k] / 2) for group in outer[::-1] for k in group]
        for k, angle in plan:
            v = rotation(d, k, angle) @ v
        torch.testing.assert_close(out[i], v, rtol=0, atol=1e-13)


def angles_of_flow(x: Tensor, f: Tensor) -> Tensor:
    """Return the angle of every pair of features."""
    return x.roll(-1, -1) * f - x * f.roll(-1, -1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_pair_rotates_by_its_angle(backend: Backend) -> None:
    """x = (0, 0, 1, 0) and f = (0, a, 0, 0): pair 1 rotates once, by a half turns, and no other."""
    if backend is TRITON:
        a = torch.cat((torch.linspace(-320, 320, 63), torch.arange(64) * 5))
    else:
        a = torch.cat((torch.linspace(-320, 320, 4001), torch.arange(-1273, 1274) / 4))
    x, f = torch.zeros(2, len(a), 4)
    x[:, 2], f[:, 1] = 1, a
    out = step(x, f, 1.0, backend=backend)
    angle = math.pi * a.double()
    expected = torch.stack((0 * angle, angle.sin(), angle.cos(), 0 * angle), 1)
    assert (out - expected).abs().max() < 2.5e-7


@pytest.mark.parametrize("d", [2, 5, 8])
def test_noise_lets_the_mean_decay(d: int) -> None:
    """E[x] = exp(-B / 2) x_0 for any steps: each of a feature's two pairs has variance dB / 2."""
    n, steps, integrated_beta = 20_000, 3, 1.25
    x0 = directions(1, d).expand(n, d)
    x = x0
    for k in range(steps):
        x = step(x, x, noise=math.sqrt(integrated_beta / steps / 2) / math.pi, k=k)
    along = (x * x0).sum(1)
    assert abs(along.mean() - math.exp(-integrated_beta / 2)) < 4 * along.std() / math.sqrt(n)


@pytest.mark.parametrize("drift", [0.0, 1.0])
@pytest.mark.parametrize(("d", "nodes"), [(3, 5), (5, 3), (6, 3)])
def test_a_step_is_of_weak_order_two(
    monkeypatch: pytest.MonkeyPatch, drift: float, d: int, nodes: int
) -> None:
    """Second moments after a step of length h are those of the flow and then the noise up to h^3.

    They are exact: by Gauss-Hermite nodes for the normals, and both sides of the coin.
    """
    node, weight = _hermite(nodes)
    xi = torch.cartesian_prod(*[node] * d)
    weights = torch.cartesian_prod(*[weight] * d).prod(1)
    x, f = (directions(1, d, seed).expand(len(xi), d) for seed in (1, 2))
    phi, eye = angles_of_flow(x, f)[0], torch.eye(d, dtype=EXACT)
    generators = torch.stack([(rotation(d, k, torch.tensor(0.5).double()) - eye) for k in range(d)])
    generators = (generators - generators.transpose(1, 2)) / 2
    second = torch.stack([torch.kron(a, eye) + torch.kron(eye, a) for a in generators])

    def moments(length: float, coin: int) -> Tensor:
        """Return the matrix that takes E[x x^T] over a step, whose angles are those of x."""
        monkeypatch.setattr(rng, "normals", lambda *_: xi)
        monkeypatch.setattr(rng, "words", lambda n, *_: torch.full((n, 1, 4), coin))
        row = length * drift / math.pi, (length / 2) ** 0.5 / math.pi
        starts = [e.repeat(len(xi), 1) for e in eye]
        rotated = [step(x, f, *row, step_start=start, restart=True) for start in starts]
        rotated = torch.stack(rotated, 2)
        return torch.einsum("n,nij,nkl->ikjl", weights, rotated, rotated).reshape(d * d, d * d)

    errors = []
    for length in (0.1, 0.05, 0.025):
        flow = torch.linalg.matrix_exp(length * drift * (phi[:, None, None] * second).sum(0))
        noise = torch.linalg.matrix_exp(length * (second @ second).sum(0) / 4)
        mean = (moments(length, 2**32 - 2) + moments(length, 1)) / 2
        errors.append((mean - noise @ flow).norm().item())
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - 3) < 0.3 for rate in rates), (errors, rates)


def _hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of a standard normal by eigenvalues of the Jacobi matrix."""
    off = torch.arange(1, nodes, dtype=EXACT).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return values, vectors[0] ** 2


def velocity(x: Tensor, field: Tensor) -> Tensor:
    """Return what the angles of f = field x do to x, per radian of drift."""
    phi = angles_of_flow(x, x @ field.T)
    return x.roll(-1, 1) * phi - (x * phi).roll(1, 1)


def exact_flow(x: Tensor, field: Tensor, time: float) -> Tensor:
    """Solve by 400 steps of RK4; at d = 3 it is exp(field t) x on the sphere."""
    if x.shape[1] == 3:
        grown = x @ torch.linalg.matrix_exp(field * time).T
        return grown / grown.norm(dim=1, keepdim=True)
    h = time / 400
    for _ in range(400):
        k1 = velocity(x, field)
        k2 = velocity(x + h / 2 * k1, field)
        k3 = velocity(x + h / 2 * k2, field)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3, field))
    return x


@pytest.mark.parametrize("d", [3, 6])
def test_midpoint_steps_converge(d: int) -> None:
    x, generator = directions(40, d), torch.Generator().manual_seed(3)
    field = torch.randn(d, d, generator=generator, dtype=EXACT)
    exact, start, errors = exact_flow(x, field, 1.0), torch.full_like(x, torch.nan), []
    for steps in (16, 32, 64):
        v, half = x, 0.5 / steps / math.pi
        for _ in range(steps):
            middle = step(v, v @ field.T, half, step_start=start)
            v = step(middle, middle @ field.T, 2 * half, step_start=start, restart=True)
        errors.append((v - exact).norm(dim=1).mean().item())
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - 2) < 0.2 for rate in rates), (errors, rates)


@pytest.mark.parametrize(
    ("backend", "dtype", "bound", "d", "rounds"),
    [
        (REFERENCE, EXACT, 1e-13, 7, 50),
        (CPU, torch.float32, 1e-6, 2, 250),
        (CPU, torch.float32, 1e-6, 3, 250),
        (CPU, torch.float32, 1e-6, 1030, 250),
    ],
    ids=["reference-7", "cpu-2", "cpu-3", "cpu-1030"],
)
def test_norms_are_kept(
    backend: Backend, dtype: torch.dtype, bound: float, d: int, rounds: int
) -> None:
    """Take a step with every combination of flags in every round, of norms from 0.03 to 30."""
    n, kernel = 16, backend.kernel("ring_step")
    x = directions(n, d, dtype=dtype) * torch.logspace(-1.5, 1.5, n, dtype=dtype)[:, None]
    norms, step_start, before = x.double().norm(dim=1), torch.zeros_like(x), x.clone()
    f, table = directions(n, d, 1, torch.float32), torch.tensor([[0.05, 0.1, 1.0]])
    first = torch.full((n,), -1, dtype=torch.int32)
    for k in range(rounds):
        for flags in FLAGS:
            kernel(x, f, table, rng.stream(k), 0, first, x, step_start, None, *flags)
    assert (x.double().norm(dim=1) / norms - 1).abs().max() < bound
    assert (first == -1).all()
    assert ((x - before).double().norm(dim=1) / norms).min() > 0.01


# ---- the bound ----


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("backend", KERNELS)
def test_within_the_bound(backend: Backend, d: int) -> None:
    """Run every dtype with all flags on the CPU, and one by flags in Triton's interpreter.

    There, one combination of flags runs at a d above 8 or below 5. Two programs run at d = 130.
    """
    for i, (restart, noisy) in enumerate(FLAGS):
        flags: dict[str, Any] = {"restart": restart, "noisy": noisy}
        if backend is CPU:
            for seed, (model_input, dtype) in enumerate(NETWORK_DTYPES):
                network = {"model_input": model_input, "dtype": dtype, "step_start": seed % 2 == 0}
                case = ring_step_case(19, d, seed=seed, start=START, **flags, **network)
                case.check(backend, in_place=seed % 2 == 1)
        elif d in (5, 6, 7, 8) or i == {64: 1, 784: 3, 1024: 1}.get(d, d // 2 % 4):
            model_input = (torch.float32, None, torch.float16)[i % 3]
            network = {"model_input": model_input, "dtype": DTYPES[i % 3], "step_start": i < 2}
            n = 5 if d == 130 else 3
            case = ring_step_case(n, d, seed=i, start=START, **flags, **network)
            case.check(backend, in_place=i % 2 == 1)


@pytest.mark.parametrize(
    ("backend", "n", "d"),
    [(CPU, 19, 3), (CPU, 19, 64), (CPU, 19, 2050), pytest.param(TRITON, 3, 17, marks=TRITON_MARKS)],
)
def test_small_and_large_angles_are_within_the_bound(backend: Backend, n: int, d: int) -> None:
    """Take noise and drift of zero, angles of many turns, and long rows."""
    rows: list[dict[str, Any]] = [{"noisy": False}, {"drift": 60.0}]
    if backend is CPU:
        rows = [{}, {"noise": 0.0}, {"drift": 0.0}, {"drift": 60.0, "noisy": False}, rows[1]]
    for numbers in rows:
        ring_step_case(n, d, **numbers).check(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_equals_out_of_place(backend: Backend) -> None:
    for restart, noisy in ((False, True), (True, False)):
        flags: dict[str, Any] = {"restart": restart, "noisy": noisy}
        assert_same_in_place(ring_step_case(3, 17, model_input=torch.float32, **flags), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_without_noise_does_not_depend_on_the_seed(backend: Backend) -> None:
    case = ring_step_case(5, 130, noisy=False)
    cases = [dataclasses.replace(case, stream=rng.stream(seed)) for seed in range(4)]
    first, *others = (case.run(backend)["out"] for case in cases)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("backend", KERNELS)
def test_bits_do_not_depend_on_threads_or_split(backend: Backend) -> None:
    for d in (2, 15, 130, 1030) if backend is CPU else (15,):
        n = 80_000 // d if backend is CPU else 5
        for restart, noisy in FLAGS if backend is CPU else FLAGS[1:2]:
            flags: dict[str, Any] = {"restart": restart, "noisy": noisy}
            case = ring_step_case(n, d, start=11, model_input=torch.bfloat16, **flags)
            assert_bits_of_samples(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: Backend) -> None:
    assert ring_step_case(0, 5).run(backend)["out"].shape == (0, 5)


# ---- nonfinite samples ----


@pytest.mark.parametrize(("restart", "noisy"), FLAGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nonfinite_sample_is_marked_and_no_other(
    backend: Backend, restart: bool, noisy: bool
) -> None:
    """A sample with what is not finite, too large or too small is marked and NaN in all outputs.

    The others are what they would be.
    """
    for d in (3, 130) if backend is not TRITON else (7,) if noisy else (34,):
        case = ring_step_case(12, d, restart=restart, noisy=noisy, model_input=torch.float32)
        expected = case.run(backend)
        f = case.model_output
        f[1, d - 1], f[2, 0], f[3, 1] = torch.nan, torch.inf, -torch.inf
        case.x[4, 1], case.x[5, 0] = torch.nan, torch.inf
        f[6] *= 1e5  # angles beyond the largest
        assert case.step_start is not None
        base = case.step_start if restart else case.x
        base[7] = 0.0
        base[8, d - 1] = torch.nan
        base[9] *= 1e30
        got = case.run(backend)
        expected["first_nonfinite_step"][1:10] = case.step
        for name, tensor in got.items():
            if name != "first_nonfinite_step":
                expected[name][1:10] = torch.nan
            assert_equal(tensor, expected[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_angles_beyond_the_largest_make_all_samples_nonfinite(backend: Backend) -> None:
    rows: list[tuple[dict[str, Any], bool]] = [
        ({"noise": 1024.0}, False),
        ({"noise": 1024.1}, True),
        ({"noise": -2000.0}, True),
        ({"noise": math.inf}, True),
        ({"noise": math.nan}, True),
        ({"noise": math.nan, "noisy": False}, False),
        ({"drift": math.inf}, True),
        ({"drift": math.nan, "noisy": False}, True),
    ]
    for numbers, nonfinite in rows:
        case = ring_step_case(3, 8, **numbers)
        got = case.run(backend)
        assert got["first_nonfinite_step"].tolist() == [case.step if nonfinite else -1] * 3, numbers
        assert bool(got["out"].isnan().all() if nonfinite else got["out"].isfinite().all()), numbers


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_nonfinite_step_is_kept(backend: Backend) -> None:
    case = ring_step_case(3, 8, step_start=False)
    case.model_output[:2] = torch.nan
    given = case.arguments()
    given["first_nonfinite_step"] = torch.tensor([-1, 1, -1], dtype=torch.int32)
    backend.kernel("ring_step")(**{**given, "out": given["x"]})
    assert given["first_nonfinite_step"].tolist() == [2, 1, -1]


# ---- the op ----


def arguments(**changes: Any) -> dict[str, Any]:
    return ring_step_case(6, 7, model_input=torch.float32).op_arguments(**changes)


@pytest.mark.parametrize(
    ("op", "changes"),
    [(ops.ring_step_, {}), (ops.ring_step, {"step_start": None, "model_input": None})],
)
def test_opcheck(op: Any, changes: dict[str, Any]) -> None:
    opcheck(op, **arguments(**changes))


@pytest.mark.parametrize(
    "variant",
    [
        {"model_input": torch.float32},
        {"model_input": torch.float32, "restart": True},
        {"step_start": False, "noisy": False},
    ],
)
def test_op_in_place_equals_out_of_place(variant: dict[str, Any]) -> None:
    """The network's output may have any strides."""
    case = ring_step_case(50, 70, **variant)
    f = case.model_output.reshape(50, 7, 10)
    strided = {"model_output": torch.stack((f, f), -1)[..., 0]}
    assert_same_op_in_place(ops.ring_step_, ops.ring_step, case, (50, 7, 10), **strided)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(6, 7).double()}, TypeError, r"x must be float32, got torch\.float64"),
        ({"x": torch.ones(6, 1)}, ValueError, r"x must have at least 2 features, .* got \(6, 1\)"),
        (
            {"model_output": torch.ones(6, 8)},
            ValueError,
            r"model_output must have the state's shape \(6, 7\), got \(6, 8\)",
        ),
        (
            {"table": torch.ones(4, 4)},
            ValueError,
            r"table must be float32 of shape \(T, 3\), .*got .*\(4, 4\)",
        ),
        ({"step": 4}, ValueError, r"step must be a row of the table, 0 \.\. 3, got 4"),
        (
            {"step_start": None, "restart": True},
            ValueError,
            r"restart starts from step_start, got None: give what the step",
        ),
        (
            {"step_start": torch.ones(6, 8)},
            ValueError,
            r"step_start must match x \(6, 7\) on cpu, got \(6, 8\) on cpu",
        ),
        (
            {"model_input": torch.ones(5, 7)},
            ValueError,
            r"model_input must match x \(6, 7\) on cpu, got \(5, 7\) on cpu",
        ),
        ({"stream": torch.zeros(2)}, ValueError, r"stream must be int64 of shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("op", [ops.ring_step_, ops.ring_step])
def test_wrong_input_is_named(
    op: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        op(**arguments(**changes))
