"""Rotation's operations: the laws of the reference, the CPU kernels within the oracle's bound of it, and the seam."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from oracle import assert_bits_of_rows, assert_same_out_of_place
from oracle_rotation import angle_law, perturb_case, step_case
from torch import Tensor

from fastmsgm import ops, reference, rng
from fastmsgm.kernels import cpu
from fastmsgm.kernels.cpu import rotation_flow

DIMENSIONS = (2, 3, 4, 5, 63, 64, 130, 784, 1024)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = ({}, {"angles": True}, {"history": True}, {"history": True, "angles": True},
         {"geodesic": True}, {"geodesic": True, "history": True})  # fmt: skip
BACKENDS = (reference.rotation_step, cpu.rotation_step)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FASTMSGM_BACKEND", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def directions(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)


def row(**numbers: float) -> Tensor:
    """A table of one row; numbers that are not given are 0."""
    return torch.tensor([[numbers.get(name, 0.0) for name in reference.ROTATION_COLUMNS]])


def step(
    u: Tensor, f: Tensor, table: Tensor, geodesic: bool = False, history: Tensor | None = None,
    angles: Tensor | None = None, k: int = 0, backend: Callable[..., None] = reference.rotation_step,
) -> Tensor:  # fmt: skip
    """The directions after row k; no row may be lost."""
    out, bad = torch.full_like(u, torch.nan), torch.full((len(u),), -1, dtype=torch.int32)
    backend(u, f, table, angles, rng.stream(5, 2**32 - 3), k, bad, out, history, None, geodesic)
    assert (bad == -1).all()
    return out


def exact_flow(u: Tensor, aim: Tensor, length: float) -> Tensor:
    """du/dt = P_u aim: the angle to the aim obeys tan(angle / 2) = tan(angle_0 / 2) exp(-|aim| t)."""
    size = aim.norm(dim=1, keepdim=True)
    pole = aim / size
    cosine = (u * pole).sum(1, keepdim=True)
    side = u - cosine * pole
    side = side / side.norm(dim=1, keepdim=True)
    angle = 2 * torch.atan(torch.tan(torch.acos(cosine) / 2) * torch.exp(-size * length))
    return torch.cos(angle) * pole + torch.sin(angle) * side


# ---- laws of the reference ----


@pytest.mark.parametrize("d", [2, 3, 17])
def test_flow_is_exact_for_any_split(d: int) -> None:
    """With w = -1, D_w is the history: a constant aim, longer and shorter than one, behind u and before it."""
    u = directions(60, d, seed=1)
    aim = directions(60, d, seed=2) * torch.linspace(0.1, 30, 60, dtype=torch.float64)[:, None]
    for split in ((0.5,), (0.25, 0.25), (0.125, 0.0, 0.375), (0.0625,) * 8):
        v = u
        for length in split:
            v = step(v, u, row(alpha=0.3, sigma=1.0, w=-1.0, length=length), history=aim.clone())
        torch.testing.assert_close(v, exact_flow(u, aim, 0.5), rtol=0, atol=1e-12)
    last = step(u, u, row(w=-1.0, length=math.inf), history=aim.clone())
    torch.testing.assert_close(last, aim / aim.norm(dim=1, keepdim=True), rtol=0, atol=1e-14)


def test_flow_takes_the_denoised_direction_and_its_history() -> None:
    """D = alpha u + sigma P f goes into the history, and D + w (D - D_prev) is the aim."""
    u, f, past = directions(9, 5), directions(9, 5, seed=1) * 3, directions(9, 5, seed=2)
    history = past.clone()
    out = step(u, f, row(alpha=0.75, sigma=0.5, w=0.25, length=0.375), history=history)
    denoised = 0.75 * u + 0.5 * (f - (f * u).sum(1, keepdim=True) * u)
    torch.testing.assert_close(history, denoised, rtol=0, atol=1e-14)
    torch.testing.assert_close(out, exact_flow(u, denoised + 0.25 * (denoised - past), 0.375), rtol=0, atol=1e-13)
    alone = step(u, f, row(alpha=0.75, sigma=0.5, w=0.25, length=0.375))
    torch.testing.assert_close(alone, exact_flow(u, denoised, 0.375), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [0.5, math.inf])
def test_flow_stays_where_there_is_nowhere_to_go(backend: Callable[..., None], length: float) -> None:
    """No aim at all, an aim in u's direction, and one opposite to it (from where rounding leads away in the end)."""
    u = directions(7, 5, dtype=torch.float32)
    for alpha in (0.0, 0.8) if length == math.inf else (0.0, 0.8, -0.8):
        out = step(u, 0 * u, row(alpha=alpha, length=length), backend=backend)
        torch.testing.assert_close(out, u, rtol=0, atol=2e-7)


@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_geodesic_steps_converge(heun: bool, order: int) -> None:
    u, f = directions(40, 6), directions(40, 6, seed=1) * 1.5
    exact, errors = exact_flow(u, f, 1.0), []
    for steps in (8, 16, 32, 64):
        c, v, velocity = 1 / steps, u, torch.zeros_like(u)
        for _ in range(steps):
            v = step(v, f, row(drift=c), True, velocity)
            if heun:
                v = step(v, f, row(back=1.0, w=0.5, drift=c / 2), True, velocity)
        errors.append((v - exact).norm(dim=1).mean().item())
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - order) < 0.15 for rate in rates), (errors, rates)


def test_geodesic_velocity_is_carried_along() -> None:
    """A geodesic goes on with its velocity (w = 1), keeps its speed, and leads back (back = 1) to where it was."""
    u, f = directions(30, 4), directions(30, 4, seed=1) * 2
    velocity = torch.zeros_like(u)
    first = step(u, f, row(drift=0.5), True, velocity)
    tangent = 0.5 * (f - (f * u).sum(1, keepdim=True) * u)
    speed = tangent.norm(dim=1, keepdim=True)
    torch.testing.assert_close(velocity.norm(dim=1, keepdim=True), speed, rtol=0, atol=1e-14)
    assert (velocity * first).sum(1).abs().max() < 1e-14
    back = step(first, f, row(back=1.0), True, velocity.clone())
    torch.testing.assert_close(back, u, rtol=0, atol=1e-14)
    second = step(first, f, row(w=1.0), True, velocity)
    twice = torch.cos(2 * speed) * u + torch.sin(2 * speed) * tangent / speed
    torch.testing.assert_close(second, twice, rtol=0, atol=1e-14)


def test_geodesic_noise_is_the_tangent_part_of_the_normals() -> None:
    u = directions(50, 7)
    velocity = torch.zeros_like(u)
    out = step(u, u, row(noise=0.25), True, velocity)
    xi = rng.normals(50, 7, rng.stream(5, 2**32 - 3), rng.Kind.STEP, 0, torch.float64)
    tangent = 0.25 * (xi - (xi * u).sum(1, keepdim=True) * u)
    speed = tangent.norm(dim=1, keepdim=True)
    expected = torch.cos(speed) * u + torch.sin(speed) * tangent / speed
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)


def test_heat_noise_has_the_angle_of_the_table() -> None:
    """1 - cos is spread V at the angle's own normal, linear between the table's columns."""
    u, d = directions(4000, 6), 6
    angles = torch.stack((torch.zeros(25), angle_law(d, 25))).contiguous()
    table = row(spread=0.75).repeat(2, 1)
    out = step(u, u, table, angles=angles, k=1)
    z = rng.normals(4000, 1, rng.stream(5, 2**32 - 3), rng.Kind.ANGLE, 1, torch.float64)[:, 0]
    column = ((z + 6) * 2).clamp(0, 24)
    low = column.floor().clamp(max=23)
    v = angles[1].double()
    v = 0.75 * torch.lerp(v[low.long()], v[low.long() + 1], column - low)
    torch.testing.assert_close(1 - (out * u).sum(1), v, rtol=0, atol=1e-14)
    assert v.min() < 0.1
    assert v.max() > 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_heat_noise_turns_by_half_a_turn_at_most(backend: Callable[..., None]) -> None:
    u = directions(40, 6, dtype=torch.float32)
    for spread, expected in ((40.0, -u), (-1.0, u)):
        out = step(u, u, row(spread=spread), angles=torch.ones(1, 2), backend=backend)
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-7)


def test_heat_noise_turns_in_a_uniform_direction() -> None:
    n = 20_000
    pole, first, second = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4)).double())[0]
    out = step(pole.repeat(n, 1), torch.zeros(n, 3), row(spread=0.5), angles=torch.ones(1, 2))
    turn = torch.atan2(out @ second, out @ first).sort().values / (2 * math.pi) + 0.5
    distance = (turn - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n  # Kolmogorov and Smirnov's
    assert distance * math.sqrt(n) < 2.47  # p = 1e-5


def test_perturb_leads_back_along_its_target() -> None:
    """u0 = (1 - v) u_t + sin e, where target = scale g sin e: direction and length of the target at once."""
    case = perturb_case(300, 5)
    got = case.run(reference.rotation_perturb, torch.float64)
    u0 = case.u0.double() / case.u0.double().norm(dim=1, keepdim=True)
    cosine = (got["u_t"] * u0).sum(1, keepdim=True)
    back = u0 - cosine * got["u_t"]
    gain = (got["target"] * back).sum(1, keepdim=True) / (back * back).sum(1, keepdim=True)
    torch.testing.assert_close(got["target"], gain * back, rtol=0, atol=1e-12)
    torch.testing.assert_close(got["net_in"], case.coefficients[:, 3:].double() * got["u_t"], rtol=0, atol=1e-15)
    z = rng.normals(300, 1, case.stream, rng.Kind.TRAINING_ANGLE, case.step, torch.float64)[:, 0]
    at = _bilinear(case.table.double(), case.coefficients[:, 0].double(), (z + 6) * (64 / 12))
    v = case.coefficients[:, 1] * at[0]
    torch.testing.assert_close(1 - cosine[:, 0], v, rtol=0, atol=1e-13)
    torch.testing.assert_close(gain[:, 0], case.coefficients[:, 2] * at[1], rtol=0, atol=1e-10)


def _bilinear(table: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """By the weights of all nodes: 1 - |distance|, where that is positive."""
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in table.shape[1:])
    across = (1 - (i[:, None] - rows).abs()).clamp(min=0)
    along = (1 - (j[:, None] - columns).abs()).clamp(min=0)
    return torch.einsum("kij,ni,nj->kn", table, across, along)


@pytest.mark.parametrize("backend", [reference.rotation_perturb, cpu.rotation_perturb])
def test_stein_identity_on_the_circle(backend: Callable[..., None]) -> None:
    """A Brownian motion of time tau on the circle turns by sqrt(tau) z: E[u0.u_t] = E[u0.score] = exp(-tau / 2)."""
    n, tau = 60_000, 0.25
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    angle = math.sqrt(tau) * z.abs()
    g = torch.where(angle > 0, angle / tau / torch.sin(angle), 1 / tau)
    table = torch.stack((1 - torch.cos(angle), g))[:, None].expand(2, 2, 4001).float().contiguous()
    u0 = directions(n, 2, dtype=torch.float32)
    u_t, score = torch.full_like(u0, torch.nan), torch.full_like(u0, torch.nan)
    backend(u0, torch.tensor([[0.5, 1.0, 1.0, 1.0]]).repeat(n, 1), table, rng.stream(3), 0, u_t, None, score)
    for vector in (u_t, score):
        along = (vector * u0).sum(1)
        assert abs(along.mean() - math.exp(-tau / 2)) < 4 * along.std() / math.sqrt(n)
    assert (score * u_t).sum(1).abs().max() < 1e-5


def test_noise_without_a_direction_turns_nothing() -> None:
    u = directions(3, 2)
    new, back = reference.rotation._turn(u, torch.zeros(3, 2).double(), torch.ones(3).double())
    assert torch.equal(new, u)
    assert not back.any()
    a, b, v, scale = (torch.full((3,), 0.5).numpy() for _ in range(4))
    square, rest = torch.zeros(2, 3).numpy()
    rotation_flow.turn_numbers(3, v, square, rest, scale, a, b)
    assert (a == scale).all()
    assert not b.any()
    assert not v.any()


@pytest.mark.parametrize(("backend", "dtype", "bound", "d"), [
    (reference.rotation_step, torch.float64, 1e-13, 130), (cpu.rotation_step, torch.float32, 1e-6, 3),
    (cpu.rotation_step, torch.float32, 1e-6, 1030),
])  # fmt: skip
def test_norms_stay_one(backend: Callable[..., None], dtype: torch.dtype, bound: float, d: int) -> None:
    """1,000 steps of both forms with everything in them."""
    u, f = directions(8, d, dtype=dtype), directions(8, d, seed=1, dtype=torch.float32)
    flow = row(alpha=0.7, sigma=0.7, w=0.3, length=0.3, spread=0.3)
    geodesic = row(w=0.4, drift=0.3, noise=0.2, back=0.5)
    angles = angle_law(d, 9)[None].contiguous()
    denoised, velocity, bad = u.clone(), torch.zeros_like(u), torch.full((8,), -1, dtype=torch.int32)
    before = u.clone()
    for k in range(500):
        backend(u, f, flow, angles, rng.stream(k), 0, bad, u, denoised, None, False)
        backend(u, f, geodesic, None, rng.stream(k, 9), 0, bad, u, velocity, None, True)
    assert (u.double().norm(dim=1) - 1).abs().max() < bound
    assert (bad == -1).all()
    assert (u - before).norm(dim=1).min() > 0.01


# ---- the CPU kernels against the reference ----


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("form", range(len(FORMS)))
def test_cpu_rotation_step(d: int, form: int) -> None:
    for seed, (net_in, f_dtype) in enumerate(zip((None, *DTYPES), (*DTYPES, torch.float32), strict=True)):
        case = step_case(19, d, seed=seed, start=2**32 - 5, net_in=net_in, f_dtype=f_dtype, **FORMS[form])
        case.check(cpu.rotation_step, in_place=seed % 2 == 0)


@pytest.mark.parametrize("d", [3, 64, 2050, 16384])
def test_cpu_rotation_step_at_the_ends(d: int) -> None:
    """The last row of a sampler (an infinite length, no noise), a first one, and a geodesic step without noise; rows
    of more than a block."""
    last = step_case(19, d, angles=True, history=True)
    last.table[2, 3], last.table[2, 7], last.table[2, 2] = torch.inf, 0.0, 0.0
    quiet = step_case(19, d, geodesic=True, history=True, noise=0.0)
    first = step_case(19, d, geodesic=True, history=True)
    first.table[2, 2] = first.table[2, 6] = 0.0
    for case in (last, quiet, first, step_case(19, d, angles=True, history=True)):
        case.check(cpu.rotation_step)


def test_a_row_without_spread_adds_no_noise() -> None:
    case = step_case(40, 130, angles=True)
    case.table[2, 7] = 0.0
    for backend in BACKENDS:
        with_angles, without = (c.run(backend)["u"] for c in (case, dataclasses.replace(case, angles=None)))
        assert torch.equal(with_angles, without)


@pytest.mark.parametrize("d", [*DIMENSIONS, 2050, 16384])
def test_cpu_rotation_perturb(d: int) -> None:
    outputs = itertools.product((False, True), (None, *DTYPES), (False, True))
    for seed, (u_t, net_in, target) in enumerate(outputs):
        case = perturb_case(19, d, seed=seed, start=2**32 - 5, u_t=u_t, net_in=net_in, target=target)
        case.check(cpu.rotation_perturb)


@pytest.mark.parametrize("d", [2, 16, 130, 1030])
def test_bits_do_not_depend_on_threads_or_split(d: int) -> None:
    n, state = 80_000 // d, ("u", "f", "history")
    cases = [
        (step_case(n, d, start=11, history=True, angles=True, net_in=torch.bfloat16), cpu.rotation_step, state),
        (step_case(n, d, start=11, history=True, geodesic=True, f_dtype=torch.float16), cpu.rotation_step, state),
        (perturb_case(n, d, start=11), cpu.rotation_perturb, ("u0", "coefficients")),
    ]
    for case, kernel, arrays in cases:
        assert_bits_of_rows(case, kernel, arrays)


# ---- lost samples ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_caught(backend: Callable[..., None], form: int, dtype: torch.dtype) -> None:
    """A sample with it is NaN everywhere and marked; the others are what they would be."""
    for d, value in itertools.product((3, 130), (torch.nan, torch.inf, -torch.inf)):
        case = step_case(40, d, f_dtype=dtype, net_in=torch.float32, **FORMS[form])
        expected = case.run(backend)
        case.f[7, d - 1] = case.f[31, 0] = value
        case.u[11, 1] = value
        lost = [7, 11, 31]
        if case.history is not None:
            case.history[25, 0] = value
            lost = [7, 11, 25, 31]
        got = case.run(backend)
        expected["bad"][lost] = case.step
        for name in got.keys() - {"bad"}:
            expected[name][lost] = torch.nan
        for name, tensor in got.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", range(len(FORMS)))
def test_what_has_no_float32_square_is_caught(backend: Callable[..., None], form: int) -> None:
    case = step_case(5, 64, **FORMS[form])
    case.u[0] = 0.0
    case.u[1] *= 1e30
    case.f[2] *= 1e30
    case.u[3] *= 1e15
    got = case.run(backend)
    assert got["bad"].tolist() == [2, 2, 2, -1, -1]
    assert got["u"][:3].isnan().all()
    torch.testing.assert_close(got["u"][3:].norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_bad_step_is_kept(backend: Callable[..., None]) -> None:
    case = step_case(3, 8)
    bad = torch.tensor([-1, 1, -1], dtype=torch.int32)
    case.f[:2] = torch.nan
    backend(case.u, case.f, case.table, None, case.stream, 2, bad, case.u, None, None, False)
    assert bad.tolist() == [2, 1, -1]


def test_a_zero_vector_has_no_noised_direction() -> None:
    case = perturb_case(3, 8)
    case.u0[1] = 0.0
    for kernel in (reference.rotation_perturb, cpu.rotation_perturb):
        for tensor in case.run(kernel).values():
            assert tensor.isnan().all(1).tolist() == [False, True, False]


def test_empty_batch() -> None:
    assert step_case(0, 5, history=True, angles=True).run(cpu.rotation_step)["u"].shape == (0, 5)
    assert perturb_case(0, 5).run(cpu.rotation_perturb)["u_t"].shape == (0, 5)


# ---- the seam ----


def step_arguments(shape: tuple[int, ...] = (6, 7), **changes: Any) -> dict[str, Any]:
    """Arguments of ``rotation_step``, in the ops' order."""
    case = step_case(shape[0], math.prod(shape[1:]), history=True, angles=True)
    arguments = {
        "u": case.u.reshape(shape), "f": case.f.reshape(shape), "table": case.table, "angles": case.angles,
        "stream": case.stream, "step": 1, "bad": torch.full(shape[:1], -1, dtype=torch.int32),
        "history": torch.zeros(shape), "net_in": torch.zeros(shape), "geodesic": False,
    }  # fmt: skip
    return {**arguments, **changes}


def perturb_arguments(shape: tuple[int, ...] = (6, 7), **changes: Any) -> dict[str, Any]:
    """Arguments of ``rotation_perturb_``."""
    case = perturb_case(shape[0], math.prod(shape[1:]))
    arguments = {
        "u0": case.u0.reshape(shape), "coefficients": case.coefficients, "table": case.table, "stream": case.stream,
        "step": 3, "u_t": torch.zeros(shape), "net_in": torch.zeros(shape, dtype=torch.bfloat16),
        "target": torch.zeros(shape),
    }  # fmt: skip
    return {**arguments, **changes}


def copy(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}


GEODESIC = {"geodesic": True, "angles": None}


@pytest.mark.parametrize("changes", [{}, {**GEODESIC, "history": None, "net_in": None}])
def test_opcheck_rotation_step(changes: dict[str, Any]) -> None:
    arguments = step_arguments(**changes)
    torch.library.opcheck(ops.rotation_step_, tuple(copy(arguments).values()))
    torch.library.opcheck(ops.rotation_step, tuple(copy(arguments).values()))


@pytest.mark.parametrize("absent", [(), ("u_t",), ("net_in", "target"), ("u_t", "target")])
def test_opcheck_rotation_perturb(absent: tuple[str, ...]) -> None:
    torch.library.opcheck(ops.rotation_perturb_, tuple(perturb_arguments(**dict.fromkeys(absent)).values()))


def loop(u: Tensor, weight: Tensor, table: Tensor, angles: Tensor, stream: Tensor, bad: Tensor) -> tuple[Tensor, ...]:
    net_in, history = u.clone(), torch.zeros_like(u)
    for k in range(len(table)):
        ops.rotation_step_(u, torch.tanh(net_in @ weight), table, angles, stream, k, bad, history, net_in, False)
    out = ops.rotation_step(u=u, f=u @ weight, table=table, angles=None, stream=stream, step=0, bad=bad, history=None,
                            net_in=None, geodesic=True)  # fmt: skip
    return u * 2, out, history


def test_compile_fullgraph_equals_eager() -> None:
    torch.compiler.reset()

    def inputs() -> tuple[Tensor, ...]:
        case = step_case(5, 6, angles=True)
        assert case.angles is not None
        return (
            case.u, case.f.new_ones(6, 6), case.table, case.angles, case.stream,
            torch.full((5,), -1, dtype=torch.int32),
        )  # fmt: skip

    eager, compiled = inputs(), inputs()
    expected = loop(*eager)
    got = torch.compile(loop, fullgraph=True, backend="aot_eager")(*compiled)
    for a, b in zip((*expected, *eager), (*got, *compiled), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(eager[0], inputs()[0])


@pytest.mark.parametrize("changes", [{}, GEODESIC, {"angles": None, "history": None, "net_in": None}])
def test_in_place_equals_out_of_place(changes: dict[str, Any]) -> None:
    inside, outside = step_arguments((50, 70), **changes), step_arguments((50, 70), **changes)
    inside, outside = copy(inside), copy(outside)
    assert_same_out_of_place(ops.rotation_step_, ops.rotation_step, inside, outside, "u")


@pytest.mark.parametrize("shape", [(4, 12), (4, 3, 4), (1, 2, 2, 3, 1)])
def test_any_trailing_shape(shape: tuple[int, ...]) -> None:
    """An array of any shape is a list of rows; the network's output may have any strides."""
    flat = (shape[0], math.prod(shape[1:]))
    for op, arguments in ((ops.rotation_step_, step_arguments), (ops.rotation_perturb_, perturb_arguments)):
        first, second = arguments(shape), arguments(flat)
        if "f" in first:
            first["f"] = torch.stack((first["f"], first["f"]), -1)[..., 0]
        op(**first)
        op(**second)
        for name, tensor in first.items():
            if isinstance(tensor, Tensor):
                assert torch.equal(tensor.flatten(), second[name].flatten()), name


def test_the_named_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", "reference")
    arguments, expected = step_arguments(), step_arguments()
    ops.rotation_step_(**arguments)
    reference.rotation_step(**{**expected, "out": expected["u"]})
    assert torch.equal(arguments["u"], expected["u"])


def transposed(shape: tuple[int, int]) -> Tensor:
    return torch.ones(shape[::-1]).T


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"u": torch.ones(6, 7).double()}, TypeError, r"u must be float32, got torch\.float64"),
        ({"u": torch.ones(6, 1)}, ValueError, r"u must have at least 2 features, .* got \(6, 1\)"),
        ({"u": transposed((6, 7))}, ValueError, r"u must be contiguous"),
        ({"f": torch.ones(6, 8)}, ValueError, r"network's output, must have the state's shape \(6, 7\), got \(6, 8\)"),
        ({"f": torch.ones(6, 7).double()}, TypeError, r"f, the network's output, must be float32, .*float64"),
        ({"table": torch.ones(4, 8)}, ValueError, r"table must be float32 of shape \(T, 9\), .*got .*\(4, 8\)"),
        ({"step": 4}, ValueError, r"step must be a row of the table, 0 \.\. 3, got 4"),
        ({"angles": torch.ones(3, 5)}, ValueError, r"angles must be float32 of shape \(4, NZ\), .* got .*\(3, 5\)"),
        ({"angles": torch.ones(4, 1)}, ValueError, r"angles must be .* at least 2 nodes an axis, got .*\(4, 1\)"),
        ({"angles": torch.ones(4)}, ValueError, r"angles must be .* got torch\.float32 \(4,\)"),
        ({"angles": torch.ones(4, 5).double()}, ValueError, r"angles must be float32 .* got torch\.float64"),
        ({"angles": transposed((4, 5))}, ValueError, r"angles must be .* contiguous .* with strides \(1, 4\)"),
        ({"geodesic": True}, ValueError, r"angles are for heat-kernel noise.*: give angles=None"),
        ({"bad": torch.zeros(6)}, ValueError, r"bad must be int32 of shape \(6,\), got torch\.float32"),
        ({"history": torch.ones(6, 8)}, ValueError, r"history must match u \(6, 7\) on cpu, got \(6, 8\) on cpu"),
        ({"history": torch.ones(6, 7).half()}, TypeError, r"history must be float32, got torch\.float16"),
        ({"net_in": torch.ones(5, 7)}, ValueError, r"net_in must match u \(6, 7\) on cpu, got \(5, 7\) on cpu"),
        ({"stream": torch.zeros(2)}, ValueError, r"stream must be int64 of shape \(3,\)"),
    ],
)
def test_rotation_step_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    for op in (ops.rotation_step_, ops.rotation_step):
        arguments = step_arguments(**changes)
        before = arguments["u"].clone()
        with pytest.raises(error, match=message):
            op(**arguments)
        assert torch.equal(arguments["u"], before)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"u0": torch.ones(6, 7, dtype=torch.int64)}, TypeError, r"u0 must be float32, got torch\.int64"),
        ({"u0": torch.ones(6, 1)}, ValueError, r"u0 must have at least 2 features"),
        ({"coefficients": torch.ones(6, 3)}, ValueError, r"coefficients must have shape \(6, 4\), got \(6, 3\)"),
        ({"coefficients": torch.ones(6, 4).double()}, TypeError, r"coefficients must be float32"),
        ({"table": torch.ones(3, 4, 5)}, ValueError, r"table must be float32 of shape \(2, NB, NZ\), .* \(3, 4, 5\)"),
        ({"table": torch.ones(2, 1, 5)}, ValueError, r"table must be .* at least 2 nodes an axis, got .*\(2, 1, 5\)"),
        ({"u_t": torch.ones(6, 8)}, ValueError, r"u_t must match u0 \(6, 7\) on cpu, got \(6, 8\)"),
        ({"net_in": torch.ones(6, 7).double()}, TypeError, r"net_in must be float32 or bfloat16 or float16"),
        ({"target": transposed((6, 7))}, ValueError, r"target must be contiguous, got strides \(1, 6\)"),
        ({"stream": torch.zeros(2)}, ValueError, r"stream must be int64 of shape \(3,\)"),
    ],
)
def test_rotation_perturb_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.rotation_perturb_(**perturb_arguments(**changes))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [2, 3, 17])
def test_a_radial_output_turns_nothing(d: int, backend: Callable[..., None]) -> None:
    """Of a velocity without a tangent part the squared length may round to below zero: still no NaN."""
    u = directions(5000, d, dtype=torch.float32)
    out, bad = torch.full_like(u, torch.nan), torch.full((len(u),), -1, dtype=torch.int32)
    for history in (None, 3 * u):
        table = row(drift=1.0, w=0.5, back=0.5)
        backend(u, 3 * u, table, None, rng.stream(0), 0, bad, out, history, None, True)
        assert bool((bad == -1).all())
        torch.testing.assert_close(out, u, rtol=0, atol=2e-6)
