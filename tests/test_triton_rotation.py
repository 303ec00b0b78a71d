"""Rotation's Triton kernels in the interpreter, held to the bound of ``oracle_rotation``."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from oracle import check_interpreted
from oracle_rotation import perturb_case, step_case

from fastmsgm import reference, rng

pytest.importorskip("triton")
from fastmsgm.kernels import rotation

# The interpreter computes masked lanes and lost rows with NumPy, which warns where a GPU is silent.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DIMENSIONS = (2, 3, 4, 5, 63, 64, 130, 784, 1024)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = ({}, {"angles": True}, {"history": True}, {"history": True, "angles": True},
         {"geodesic": True}, {"geodesic": True, "history": True})  # fmt: skip
START = 2**32 - 2  # of the samples: their indices leave 32 bits within a batch


def samples(d: int) -> int:
    """So many that two programs run and the second is not full."""
    rows, _, _ = rotation.launch_shape(d)
    return rows + 1


# ---- against the reference ----


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("form", range(len(FORMS)))
def test_rotation_step(d: int, form: int) -> None:
    turn = form + DIMENSIONS.index(d)  # so that every form and every d meet every dtype
    net_in, f_dtype = (None, *DTYPES)[turn % 4], DTYPES[turn % 3]
    n = samples(d) - 2 * (form % 2)  # or one program, not full
    case = step_case(n, d, seed=form, start=START, net_in=net_in, f_dtype=f_dtype, **FORMS[form])
    check_interpreted(case, rotation.rotation_step, in_place=form % 2 == 0)


@pytest.mark.parametrize("d", [3, 64])
def test_rotation_step_at_the_ends(d: int) -> None:
    """The last row of a sampler (an infinite length, no noise), a geodesic step without noise, and a first one."""
    last = step_case(9, d, angles=True, history=True)
    last.table[2, 3], last.table[2, 7], last.table[2, 2] = torch.inf, 0.0, 0.0
    quiet = step_case(9, d, geodesic=True, history=True, noise=0.0)
    first = step_case(9, d, geodesic=True, history=True)
    first.table[2, 2] = first.table[2, 6] = 0.0
    for case in (last, quiet, first):
        case.check(rotation.rotation_step)


@pytest.mark.parametrize("length", [0.5, torch.inf])
def test_flow_stays_where_there_is_nowhere_to_go(length: float) -> None:
    case = step_case(7, 5)
    case.f[:] = 0.0
    case.table[2, 3] = length
    for alpha in (0.0, 0.8):
        case.table[2, 0] = alpha
        got = case.run(rotation.rotation_step)["u"]
        torch.testing.assert_close(got, case.u / case.u.norm(dim=1, keepdim=True), rtol=0, atol=2e-7)


def test_geodesic_stays_where_there_is_nowhere_to_go() -> None:
    """What is left of a radial output is rounding, and its square less that of its rest is below zero now and then."""
    case = step_case(1000, 2, geodesic=True, noise=0.0)
    case.f = 3 * case.u
    got = case.run(rotation.rotation_step)["u"]
    torch.testing.assert_close(got, case.u / case.u.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)


def test_heat_noise_turns_by_half_a_turn_at_most() -> None:
    case = step_case(9, 6, angles=True)
    case.f[:] = 0.0
    case.table[2, 0] = 0.0
    case.angles = torch.ones(4, 2)
    unit = case.u / case.u.norm(dim=1, keepdim=True)
    for spread, expected in ((40.0, -unit), (-1.0, unit)):
        case.table[2, 7] = spread
        got = case.run(rotation.rotation_step)["u"]
        torch.testing.assert_close(got, expected, rtol=0, atol=3e-7)


def test_a_row_without_spread_adds_no_noise() -> None:
    case = step_case(9, 130, angles=True)
    case.table[2, 7] = 0.0
    with_angles, without = (
        c.run(rotation.rotation_step)["u"] for c in (case, dataclasses.replace(case, angles=None))
    )  # fmt: skip
    assert torch.equal(with_angles, without)


OUTPUTS = ((True, torch.float16, True), (False, torch.bfloat16, False), (False, None, True), (True, None, False))


@pytest.mark.parametrize(
    ("d", "outputs"), [(d, 0) for d in DIMENSIONS] + [(d, outputs) for d in (2, 3, 63) for outputs in (1, 2, 3)]
)
def test_rotation_perturb(d: int, outputs: int) -> None:
    u_t, net_in, target = OUTPUTS[outputs]
    check_interpreted(
        perturb_case(samples(d), d, start=START, u_t=u_t, net_in=net_in, target=target), rotation.rotation_perturb
    )


# ---- rows do not know of each other ----


@pytest.mark.parametrize("d", [2, 64])
def test_bits_do_not_depend_on_the_batch(d: int) -> None:
    n = samples(d)
    for case, kernel, names in (
        (
            step_case(n, d, history=True, angles=True, net_in=torch.float32),
            rotation.rotation_step,
            ("u", "f", "history"),
        ),
        (perturb_case(n, d), rotation.rotation_perturb, ("u0", "coefficients")),
    ):
        whole = case.run(kernel)
        rows = {name: getattr(case, name)[3:] for name in names}
        part = dataclasses.replace(case, stream=case.stream + torch.tensor([0, 3, 0]), **rows).run(kernel)
        for name, tensor in part.items():
            assert torch.equal(tensor, whole[name][3:])


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_rotation_step_in_place_is_the_same(form: int) -> None:
    case = step_case(5, 63, net_in=torch.float32, **FORMS[form])
    outside, inside = (case.run(rotation.rotation_step, in_place=in_place) for in_place in (False, True))
    for name, tensor in outside.items():
        assert torch.equal(tensor, inside[name])


def test_empty_batch() -> None:
    assert step_case(0, 5, history=True, angles=True).run(rotation.rotation_step)["u"].shape == (0, 5)
    assert perturb_case(0, 5).run(rotation.rotation_perturb)["u_t"].shape == (0, 5)


# ---- lost rows ----


@pytest.mark.parametrize("d", [3, 130])
@pytest.mark.parametrize("form", range(len(FORMS)))
def test_rotation_step_marks_a_lost_row_and_no_other(d: int, form: int) -> None:
    """NaN everywhere in a row that came in with a number that is not finite, with none that has a square in float32, or
    as zero; the other rows are what they would be."""
    case = step_case(12, d, net_in=torch.float16, **FORMS[form])
    expected = case.run(rotation.rotation_step)
    case.f[1, d - 1], case.f[2, 0], case.f[3, 1] = torch.nan, torch.inf, -torch.inf
    case.u[4, 1], case.u[5, 0] = torch.nan, torch.inf
    case.u[6] = 0.0
    case.u[7] *= 1e30
    case.f[8] *= 1e30
    lost = [1, 2, 3, 4, 5, 6, 7, 8]
    if case.history is not None:
        case.history[10, d - 1], case.history[11] = torch.inf, 1e30
        lost += [10, 11]
    got = case.run(rotation.rotation_step, in_place=True)
    expected["bad"][lost] = case.step
    for name in got.keys() - {"bad"}:
        expected[name][lost] = torch.nan
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(case.run(reference.rotation_step)["bad"], got["bad"])


def test_the_first_bad_step_is_kept() -> None:
    case = step_case(3, 8)
    bad = torch.tensor([-1, 1, -1], dtype=torch.int32)
    case.f[:2] = torch.nan
    rotation.rotation_step(case.u, case.f, case.table, None, case.stream, 2, bad, case.u, None, None, False)
    assert bad.tolist() == [2, 1, -1]


def test_a_zero_vector_has_no_noised_direction() -> None:
    case = perturb_case(3, 8)
    case.u0[1] = 0.0
    for tensor in case.run(rotation.rotation_perturb).values():
        assert tensor.isnan().all(1).tolist() == [False, True, False]


def test_the_angle_has_its_own_normal() -> None:
    """1 - cos is spread V(z), z the one normal of its kind: here V(z) = (z + 6) / 12."""
    case = step_case(40, 6, angles=True, start=START)
    case.f[:], case.table[2, 0], case.table[2, 7] = 0.0, 0.0, 0.5
    case.angles = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    unit = case.u / case.u.norm(dim=1, keepdim=True)
    z = rng.normals(40, 1, case.stream, rng.Kind.ANGLE, case.step)[:, 0]
    got = 1 - (case.run(rotation.rotation_step)["u"] * unit).sum(1)
    torch.testing.assert_close(got, (z + 6) / 24, rtol=0, atol=1e-6)
