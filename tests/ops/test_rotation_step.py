"""``rotation_step``: what the reference computes, every kernel within its bound, and the op."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm import ops, reference, rng
from fastmsgm.reference import rotation as reference_rotation
from tests.ops.backends import BACKENDS, CPU, KERNELS, REFERENCE, TRITON, Backend, samples
from tests.ops.cases import (
    DTYPES,
    NETWORK_DTYPES,
    START,
    RotationStepCase,
    angle_quantiles,
    assert_equal,
    rotation_step_case,
)
from tests.ops.checks import (
    assert_any_shape,
    assert_bits_of_samples,
    assert_compiles,
    assert_same_in_place,
    assert_same_op_in_place,
    directions,
    opcheck,
    transposed,
)

DIMENSIONS = (2, 3, 4, 5, 63, 64, 130, 784, 1024)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"angles": True},
    {"prev_denoised": True},
    {"prev_denoised": True, "angles": True},
    {"geodesic": True},
    {"geodesic": True, "prev_denoised": True},
]


def row(**numbers: float) -> Tensor:
    """Return a table of one row; numbers that are not given are 0."""
    return torch.tensor([[numbers.get(name, 0.0) for name in reference.ROTATION_COLUMNS]])


def step(
    u: Tensor,
    f: Tensor,
    table: Tensor,
    geodesic: bool = False,
    prev_denoised: Tensor | None = None,
    angles: Tensor | None = None,
    k: int = 0,
    backend: Backend = REFERENCE,
) -> Tensor:
    """Return the directions after row k, of which none may be nonfinite."""
    out, stream = torch.full_like(u, torch.nan), rng.stream(5, 2**32 - 3)
    first_nonfinite_step = torch.full((len(u),), -1, dtype=torch.int32)
    inputs, outputs = (u, f, table, angles, stream, k), (out, prev_denoised, None, geodesic)
    backend.kernel("rotation_step")(*inputs, first_nonfinite_step, *outputs)
    assert (first_nonfinite_step == -1).all()
    return out


def exact_flow(u: Tensor, aim: Tensor, length: float) -> Tensor:
    """Solve du/dt = P_u aim, where tan(angle / 2) falls as exp(-|aim| t)."""
    size = aim.norm(dim=1, keepdim=True)
    pole = aim / size
    cosine = (u * pole).sum(1, keepdim=True)
    side = u - cosine * pole
    side = side / side.norm(dim=1, keepdim=True)
    angle = 2 * torch.atan(torch.tan(torch.acos(cosine) / 2) * torch.exp(-size * length))
    return torch.cos(angle) * pole + torch.sin(angle) * side


def tangent_part(v: Tensor, u: Tensor) -> Tensor:
    return v - (v * u).sum(1, keepdim=True) * u


# ---- the flow ----


@pytest.mark.parametrize("d", [2, 3, 17])
def test_flow_is_exact_for_any_split(d: int) -> None:
    """With w = -1, D_w is prev_denoised: a constant aim of any length, in front of u or behind."""
    u = directions(60, d, seed=1)
    aim = directions(60, d, seed=2) * torch.linspace(0.1, 30, 60, dtype=torch.float64)[:, None]
    for split in ((0.5,), (0.25, 0.25), (0.125, 0.0, 0.375), (0.0625,) * 8):
        v = u
        for length in split:
            table = row(alpha=0.3, sigma=1.0, w=-1.0, length=length)
            v = step(v, u, table, prev_denoised=aim.clone())
        torch.testing.assert_close(v, exact_flow(u, aim, 0.5), rtol=0, atol=1e-12)
    last = step(u, u, row(w=-1.0, length=math.inf), prev_denoised=aim.clone())
    torch.testing.assert_close(last, aim / aim.norm(dim=1, keepdim=True), rtol=0, atol=1e-14)


def test_flow_extrapolates_the_denoised_direction() -> None:
    """D = alpha u + sigma P f goes into prev_denoised, and D + w (D - D_prev) is the aim."""
    u, f, prev = directions(9, 5), directions(9, 5, seed=1) * 3, directions(9, 5, seed=2)
    prev_denoised = prev.clone()
    out = step(u, f, row(alpha=0.75, sigma=0.5, w=0.25, length=0.375), prev_denoised=prev_denoised)
    denoised = 0.75 * u + 0.5 * tangent_part(f, u)
    torch.testing.assert_close(prev_denoised, denoised, rtol=0, atol=1e-14)
    expected = exact_flow(u, denoised + 0.25 * (denoised - prev), 0.375)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    alone = step(u, f, row(alpha=0.75, sigma=0.5, w=0.25, length=0.375))
    torch.testing.assert_close(alone, exact_flow(u, denoised, 0.375), rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", [0.5, math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_flow_stays_where_there_is_nowhere_to_go(backend: Backend, length: float) -> None:
    """There is no aim, one in u's direction, or one opposite to it.

    From the last one, rounding leads away in the end.
    """
    u = directions(7, 5, dtype=torch.float32)
    for alpha in (0.0, 0.8) if length == math.inf else (0.0, 0.8, -0.8):
        out = step(1.001 * u, 0 * u, row(alpha=alpha, length=length), backend=backend)
        torch.testing.assert_close(out, u, rtol=0, atol=2e-7)


# ---- the geodesic step ----


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
    """A geodesic goes on with its velocity (w = 1) and keeps its speed; back = 1 leads back."""
    u, f = directions(30, 4), directions(30, 4, seed=1) * 2
    velocity = torch.zeros_like(u)
    first = step(u, f, row(drift=0.5), True, velocity)
    tangent = 0.5 * tangent_part(f, u)
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
    out = step(u, u, row(noise=0.25), True, torch.zeros_like(u))
    xi = rng.normals(50, 7, rng.stream(5, 2**32 - 3), rng.Purpose.STEP, 0, torch.float64)
    tangent = 0.25 * tangent_part(xi, u)
    speed = tangent.norm(dim=1, keepdim=True)
    expected = torch.cos(speed) * u + torch.sin(speed) * tangent / speed
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("d", [2, 3, 17])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_radial_output_moves_nothing(backend: Backend, d: int) -> None:
    """The squared length of a velocity without a tangent part may round to below zero: no NaN."""
    n = 5000 if backend is not TRITON else 1000 if d == 2 else 100
    size = 1 + 1e-3 * torch.randn(n, 1, generator=torch.Generator().manual_seed(1))
    u = directions(n, d, dtype=torch.float32)
    for prev_denoised in (None, 3 * u):
        table = row(drift=1.0, w=0.5, back=0.5)
        out = step(size * u, 3 * size * u, table, True, prev_denoised, backend=backend)
        torch.testing.assert_close(out, u, rtol=0, atol=1e-6 if prev_denoised is None else 2e-6)


# ---- heat-kernel noise ----


def test_heat_noise_has_the_angle_of_the_table() -> None:
    """1 - cos is spread V at the angle's own normal, linear between the table's columns."""
    u, d = directions(4000, 6), 6
    angles = torch.stack((torch.zeros(25), angle_quantiles(d, 25)))
    table = row(spread=0.75).repeat(2, 1)
    out = step(u, u, table, angles=angles, k=1)
    z = rng.normals(4000, 1, rng.stream(5, 2**32 - 3), rng.Purpose.ANGLE, 1, torch.float64)[:, 0]
    column = ((z + 6) * 2).clamp(0, 24)
    low = column.floor().clamp(max=23)
    v = angles[1].double()
    v = 0.75 * torch.lerp(v[low.long()], v[low.long() + 1], column - low)
    torch.testing.assert_close(1 - (out * u).sum(1), v, rtol=0, atol=1e-14)
    assert v.min() < 0.1
    assert v.max() > 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_angle_has_its_own_normal(backend: Backend) -> None:
    """1 - cos is spread V(z), with V(z) = (z + 6) / 12 here and z the one normal of its purpose."""
    case = rotation_step_case(40, 6, angles=True, start=START)
    case.model_output[:] = 0.0
    case.set(alpha=0.0, spread=0.5)
    case.angles = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    unit = case.u / case.u.norm(dim=1, keepdim=True)
    z = rng.normals(40, 1, case.stream, rng.Purpose.ANGLE, case.step)[:, 0]
    got = 1 - (case.run(backend)["out"] * unit).sum(1)
    torch.testing.assert_close(got, (z + 6) / 24, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_heat_noise_moves_by_half_a_turn_at_most(backend: Backend) -> None:
    u = directions(40, 6, dtype=torch.float32)
    for spread, expected in ((40.0, -u), (-1.0, u)):
        table, angles = row(spread=spread), torch.ones(1, 2)
        out = step(1.001 * u, 0 * u, table, angles=angles, backend=backend)
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-7)


def test_heat_noise_moves_in_a_uniform_direction() -> None:
    n = 20_000
    generator = torch.Generator().manual_seed(4)
    pole, first, second = torch.linalg.qr(torch.randn(3, 3, generator=generator).double())[0]
    out = step(pole.repeat(n, 1), torch.zeros(n, 3), row(spread=0.5), angles=torch.ones(1, 2))
    turn = torch.atan2(out @ second, out @ first).sort().values / (2 * math.pi) + 0.5
    # Kolmogorov and Smirnov's distance, p = 1e-5.
    distance = (turn - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n
    assert distance * math.sqrt(n) < 2.47


def test_noise_without_a_direction_moves_nothing() -> None:
    u = directions(3, 2)
    new, back = reference_rotation._rotate(u, torch.zeros(3, 2).double(), torch.ones(3).double())
    assert torch.equal(new, u)
    assert not back.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_spread_adds_no_noise(backend: Backend) -> None:
    case = rotation_step_case(40, 130, angles=True)
    case.set(spread=0.0)
    without = dataclasses.replace(case, angles=None)
    assert torch.equal(case.run(backend)["out"], without.run(backend)["out"])


@pytest.mark.parametrize(
    ("backend", "dtype", "bound", "d"),
    [
        (REFERENCE, torch.float64, 1e-13, 130),
        (CPU, torch.float32, 1e-6, 3),
        (CPU, torch.float32, 1e-6, 1030),
    ],
    ids=["reference-130", "cpu-3", "cpu-1030"],
)
def test_norms_stay_one(backend: Backend, dtype: torch.dtype, bound: float, d: int) -> None:
    """Take 1,000 steps of both kinds with everything in them."""
    kernel = backend.kernel("rotation_step")
    u, f = directions(8, d, dtype=dtype), directions(8, d, seed=1, dtype=torch.float32)
    flow = row(alpha=0.7, sigma=0.7, w=0.3, length=0.3, spread=0.3)
    geodesic = row(w=0.4, drift=0.3, noise=0.2, back=0.5)
    angles = angle_quantiles(d, 9)[None]
    denoised, velocity, before = u.clone(), torch.zeros_like(u), u.clone()
    first = torch.full((8,), -1, dtype=torch.int32)
    for k in range(500):
        kernel(u, f, flow, angles, rng.stream(k), 0, first, u, denoised, None, False)
        kernel(u, f, geodesic, None, rng.stream(k, 9), 0, first, u, velocity, None, True)
    assert (u.double().norm(dim=1) - 1).abs().max() < bound
    assert (first == -1).all()
    assert (u - before).norm(dim=1).min() > 0.01


# ---- the bound ----


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("backend", KERNELS)
def test_within_the_bound(backend: Backend, variant: int, d: int) -> None:
    cases = [(seed, *dtypes) for seed, dtypes in enumerate(NETWORK_DTYPES)]
    if backend is TRITON:  # one case, so that every variant and every d meet every dtype
        turn = variant + DIMENSIONS.index(d)
        cases = [(variant, (None, *DTYPES)[turn % 4], DTYPES[turn % 3])]
    two_programs = DIMENSIONS.index(d) % len(VARIANTS) == variant
    n = samples(backend, "rotation_step", d, programs=1 + two_programs)
    for seed, model_input, dtype in cases:
        network = {"model_input": model_input, "dtype": dtype}
        case = rotation_step_case(n, d, seed=seed, start=START, **network, **VARIANTS[variant])
        case.check(backend, in_place=seed % 2 == 0)


@pytest.mark.parametrize("d", [3, 64, 2050, 16384])
@pytest.mark.parametrize("backend", KERNELS)
def test_first_and_last_rows_of_a_sampler_are_within_the_bound(backend: Backend, d: int) -> None:
    """Take an infinite length without noise, geodesic steps without noise, and long rows."""
    n = 19 if backend is not TRITON else 9 if d < 100 else 2
    last = rotation_step_case(n, d, angles=True, prev_denoised=True)
    last.set(length=math.inf, spread=0.0, w=0.0)
    quiet = rotation_step_case(n, d, geodesic=True, prev_denoised=True, noise=0.0)
    first = rotation_step_case(n, d, geodesic=True, prev_denoised=True)
    first.set(w=0.0, back=0.0)
    for case in (last, quiet, first, rotation_step_case(n, d, angles=True, prev_denoised=True)):
        case.check(backend)


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_equals_out_of_place(backend: Backend, variant: int) -> None:
    case = rotation_step_case(5, 63, model_input=torch.float32, **VARIANTS[variant])
    assert_same_in_place(case, backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_bits_do_not_depend_on_threads_or_split(backend: Backend) -> None:
    for d in (2, 16, 130, 1030) if backend is CPU else (2, 64):
        n = 80_000 // d if backend is CPU else samples(backend, "rotation_step", d)
        for variant in (
            {"angles": True, "model_input": torch.bfloat16},
            {"geodesic": True, "dtype": torch.float16},
        ):
            case = rotation_step_case(n, d, start=11, prev_denoised=True, **variant)
            assert_bits_of_samples(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: Backend) -> None:
    case = rotation_step_case(0, 5, prev_denoised=True, angles=True)
    assert case.run(backend)["out"].shape == (0, 5)


# ---- nonfinite samples ----


@pytest.mark.parametrize("d", [3, 130])
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nonfinite_sample_is_marked_and_no_other(backend: Backend, variant: int, d: int) -> None:
    """A sample is NaN in every output if it came in with what is not finite or has no square.

    The others are what they would be.
    """
    turn = (variant + d) % 3
    for dtype in DTYPES if backend is not TRITON else DTYPES[turn : turn + 1]:
        case = rotation_step_case(30, d, dtype=dtype, model_input=dtype, **VARIANTS[variant])
        expected = case.run(backend)
        nonfinite = spoil(case, d)
        got = case.run(backend, in_place=True)
        expected["first_nonfinite_step"][nonfinite] = case.step
        for name, tensor in got.items():
            if name != "first_nonfinite_step":
                expected[name][nonfinite] = torch.nan
            assert_equal(tensor, expected[name])


def spoil(case: RotationStepCase, d: int) -> list[int]:
    """Make samples of a case nonfinite, and return their indices."""
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        case.model_output[1 + i, d - 1] = case.model_output[4 + i, 0] = value
        case.u[8 + i, 1] = value
        if case.prev_denoised is not None:
            case.prev_denoised[20 + i, (0, d - 1, 1)[i]] = value
    case.u[11] = 0.0
    case.u[12] *= 1e30
    case.model_output[13] *= 1e30  # infinite in float16
    nonfinite = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]
    if case.prev_denoised is not None:
        case.prev_denoised[24] = 1e30
        nonfinite += [20, 21, 22, 24]
    return nonfinite


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_without_a_float32_square_is_marked(backend: Backend, variant: int) -> None:
    case = rotation_step_case(5, 64, **VARIANTS[variant])
    case.u[0] = 0.0
    case.u[1] *= 1e30
    case.model_output[2] *= 1e30
    case.u[3] *= 1e15
    got = case.run(backend)
    assert got["first_nonfinite_step"].tolist() == [2, 2, 2, -1, -1]
    assert got["out"][:3].isnan().all()
    torch.testing.assert_close(got["out"][3:].norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_nonfinite_step_is_kept(backend: Backend) -> None:
    case = rotation_step_case(3, 8)
    case.model_output[:2] = torch.nan
    given = case.arguments()
    given["first_nonfinite_step"] = torch.tensor([-1, 1, -1], dtype=torch.int32)
    backend.kernel("rotation_step")(**{**given, "out": given["u"]})
    assert given["first_nonfinite_step"].tolist() == [2, 1, -1]


# ---- the op ----


def arguments(shape: tuple[int, ...] | None = None, **changes: Any) -> dict[str, Any]:
    case = rotation_step_case(6, 7, prev_denoised=True, angles=True, model_input=torch.float32)
    return case.op_arguments(shape, **changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"geodesic": True, "angles": None, "prev_denoised": None, "model_input": None}],
)
@pytest.mark.parametrize("op", [ops.rotation_step_, ops.rotation_step])
def test_opcheck(op: Any, changes: dict[str, Any]) -> None:
    opcheck(op, **arguments(**changes))


def loop(
    u: Tensor, weight: Tensor, table: Tensor, angles: Tensor, stream: Tensor, first: Tensor
) -> tuple[Tensor, ...]:
    model_input, prev_denoised = u.clone(), torch.zeros_like(u)
    for k in range(len(table)):
        f, memory = torch.tanh(model_input @ weight), (prev_denoised, model_input)
        ops.rotation_step_(u, f, table, angles, stream, k, first, *memory, False)
    out = ops.rotation_step(u, u @ weight, table, None, stream, 0, first, None, None, True)
    return u * 2, out, prev_denoised


def test_compile_fullgraph_equals_eager() -> None:
    def inputs() -> tuple[Tensor, ...]:
        case = rotation_step_case(5, 6, angles=True)
        assert case.angles is not None
        first = torch.full((5,), -1, dtype=torch.int32)
        return case.u, torch.ones(6, 6), case.table, case.angles, case.stream, first

    written = assert_compiles(loop, inputs)
    assert not torch.equal(written[0], inputs()[0])


@pytest.mark.parametrize(
    "variant",
    [
        {"angles": True, "prev_denoised": True, "model_input": torch.float32},
        {"geodesic": True, "prev_denoised": True, "model_input": torch.float32},
        {},
    ],
)
def test_op_in_place_equals_out_of_place(variant: dict[str, Any]) -> None:
    case = rotation_step_case(50, 70, **variant)
    assert_same_op_in_place(ops.rotation_step_, ops.rotation_step, case)


@pytest.mark.parametrize("shape", [(4, 12), (4, 3, 4), (1, 2, 2, 3, 1)])
def test_any_trailing_shape(shape: tuple[int, ...]) -> None:
    """An array of any shape is a list of rows; the network's output may have any strides."""
    d = torch.Size(shape[1:]).numel()
    variant = {"angles": True, "prev_denoised": True, "model_input": torch.float32}
    case = rotation_step_case(shape[0], d, **variant)
    f = case.model_output.reshape(shape)
    strided = torch.stack((f, f), -1)[..., 0]
    assert_any_shape(ops.rotation_step_, case, shape, model_output=strided)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"u": torch.ones(6, 7).double()}, TypeError, r"u must be float32, got torch\.float64"),
        ({"u": torch.ones(6, 1)}, ValueError, r"u must have at least 2 features, .* got \(6, 1\)"),
        ({"u": transposed(6, 7)}, ValueError, r"u must be contiguous"),
        (
            {"model_output": torch.ones(6, 8)},
            ValueError,
            r"model_output must have the state's shape \(6, 7\), got \(6, 8\)",
        ),
        (
            {"model_output": torch.ones(6, 7).double()},
            TypeError,
            r"model_output must be float32 or bfloat16 or float16, got torch\.float64",
        ),
        (
            {"table": torch.ones(4, 8)},
            ValueError,
            r"table must be float32 of shape \(T, 9\), .*got .*\(4, 8\)",
        ),
        ({"step": 4}, ValueError, r"step must be a row of the table, 0 \.\. 3, got 4"),
        (
            {"angles": torch.ones(3, 5)},
            ValueError,
            r"angles must be float32 of shape \(4, NZ\), .* got .*\(3, 5\)",
        ),
        (
            {"angles": torch.ones(4, 1)},
            ValueError,
            r"angles must be .* at least 2 nodes an axis, got .*\(4, 1\)",
        ),
        ({"angles": torch.ones(4)}, ValueError, r"angles must be .* got torch\.float32 \(4,\)"),
        (
            {"angles": torch.ones(4, 5).double()},
            ValueError,
            r"angles must be float32 .* got torch\.float64",
        ),
        (
            {"angles": transposed(4, 5)},
            ValueError,
            r"angles must be .* contiguous .* with strides \(1, 4\)",
        ),
        ({"geodesic": True}, ValueError, r"angles are for heat-kernel noise.*: give angles=None"),
        (
            {"first_nonfinite_step": torch.zeros(6)},
            ValueError,
            r"first_nonfinite_step must be int32 of shape \(6,\), got torch\.float32",
        ),
        (
            {"prev_denoised": torch.ones(6, 8)},
            ValueError,
            r"prev_denoised must match u \(6, 7\) on cpu, got \(6, 8\) on cpu",
        ),
        (
            {"prev_denoised": torch.ones(6, 7).half()},
            TypeError,
            r"prev_denoised must be float32, got torch\.float16",
        ),
        (
            {"model_input": torch.ones(5, 7)},
            ValueError,
            r"model_input must match u \(6, 7\) on cpu, got \(5, 7\) on cpu",
        ),
        ({"stream": torch.zeros(2)}, ValueError, r"stream must be int64 of shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("op", [ops.rotation_step_, ops.rotation_step])
def test_wrong_input_is_named(
    op: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = arguments(**changes)
    before = given["u"].clone()
    with pytest.raises(error, match=message):
        op(**given)
    assert torch.equal(given["u"], before)
