"""``rotation_perturb``: what the reference computes, every kernel within its bound, and the op."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm import ops, rng
from tests.ops.backends import BACKENDS, CPU, KERNELS, REFERENCE, TRITON, Backend, samples
from tests.ops.cases import DTYPES, START, rotation_perturb_case
from tests.ops.checks import (
    assert_any_shape,
    assert_bits_of_samples,
    directions,
    opcheck,
    transposed,
)

DIMENSIONS = (2, 3, 4, 5, 63, 64, 130, 784, 1024)
# u_t, model_input and target
OUTPUTS = list(itertools.product((False, True), (None, *DTYPES), (False, True)))
FEW_OUTPUTS = [
    (True, torch.float16, True),
    (False, torch.bfloat16, False),
    (False, None, True),
    (True, None, False),
]


# ---- the reference ----


def test_the_target_leads_back() -> None:
    """u0 = (1 - v) u_t + sin e, where target = scale g sin e."""
    case = rotation_perturb_case(300, 5)
    got = case.run(REFERENCE, torch.float64)
    coefficients = case.coefficients.double()
    u0 = case.u0.double() / case.u0.double().norm(dim=1, keepdim=True)
    cosine = (got["u_t"] * u0).sum(1, keepdim=True)
    back = u0 - cosine * got["u_t"]
    gain = (got["target"] * back).sum(1, keepdim=True) / (back * back).sum(1, keepdim=True)
    torch.testing.assert_close(got["target"], gain * back, rtol=0, atol=1e-12)
    model_input = coefficients[:, 3:] * got["u_t"]
    torch.testing.assert_close(got["model_input"], model_input, rtol=0, atol=1e-15)
    z = rng.normals(300, 1, case.stream, rng.Purpose.TRAINING_ANGLE, case.step, torch.float64)[:, 0]
    at = _bilinear(case.table.double(), coefficients[:, 0], (z + 6) * (64 / 12))
    torch.testing.assert_close(1 - cosine[:, 0], coefficients[:, 1] * at[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(gain[:, 0], coefficients[:, 2] * at[1], rtol=0, atol=1e-10)


def _bilinear(table: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Interpolate by the weights of all nodes: 1 - |distance|, where that is positive."""
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in table.shape[1:])
    across = (1 - (i[:, None] - rows).abs()).clamp(min=0)
    along = (1 - (j[:, None] - columns).abs()).clamp(min=0)
    return torch.einsum("kij,ni,nj->kn", table, across, along)


@pytest.mark.parametrize("backend", BACKENDS[:2])  # many samples: not in the interpreter
def test_stein_identity_on_the_circle(backend: Backend) -> None:
    """Brownian motion of time tau on the circle rotates by sqrt(tau) z.

    So E[u0.u_t] = E[u0.score] = exp(-tau / 2).
    """
    n, tau = 60_000, 0.25
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    angle = math.sqrt(tau) * z.abs()
    g = torch.where(angle > 0, angle / tau / torch.sin(angle), 1 / tau)
    table = torch.stack((1 - torch.cos(angle), g))[:, None].expand(2, 2, 4001).float().contiguous()
    u0 = directions(n, 2, dtype=torch.float32)
    u_t, score = torch.full_like(u0, torch.nan), torch.full_like(u0, torch.nan)
    coefficients = torch.tensor([[0.5, 1.0, 1.0, 1.0]]).repeat(n, 1)
    perturb = backend.kernel("rotation_perturb")
    perturb(u0, coefficients, table, rng.stream(3), 0, u_t, None, score)
    for vector in (u_t, score):
        along = (vector * u0).sum(1)
        assert abs(along.mean() - math.exp(-tau / 2)) < 4 * along.std() / math.sqrt(n)
    assert (score * u_t).sum(1).abs().max() < 1e-5


# ---- every backend ----


@pytest.mark.parametrize("d", [*DIMENSIONS, 2050, 16384])
@pytest.mark.parametrize("backend", KERNELS)
def test_within_the_bound(backend: Backend, d: int) -> None:
    outputs = OUTPUTS
    if backend is TRITON:  # all of a few at small d in its interpreter, which is slow
        outputs = FEW_OUTPUTS if d in (2, 3, 63) else FEW_OUTPUTS[:1]
    for seed, (u_t, model_input, target) in enumerate(outputs):
        wanted = {"u_t": u_t, "model_input": model_input, "target": target}
        n = samples(backend, "rotation_perturb", d, programs=1 if seed else 2)
        rotation_perturb_case(n, d, seed=seed, start=START, **wanted).check(backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_bits_do_not_depend_on_threads_or_split(backend: Backend) -> None:
    for d in (2, 16, 130, 1030) if backend is CPU else (2, 64):
        n = 80_000 // d if backend is CPU else samples(backend, "rotation_perturb", d)
        assert_bits_of_samples(rotation_perturb_case(n, d, start=11), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_vector_is_perturbed_to_nan(backend: Backend) -> None:
    case = rotation_perturb_case(3, 8)
    case.u0[1] = 0.0
    for tensor in case.run(backend).values():
        assert tensor.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: Backend) -> None:
    assert rotation_perturb_case(0, 5).run(backend)["u_t"].shape == (0, 5)


# ---- the op ----


def arguments(shape: tuple[int, ...] | None = None, **changes: Any) -> dict[str, Any]:
    case = rotation_perturb_case(6, 7, model_input=torch.bfloat16)
    return case.op_arguments(shape, **changes)


@pytest.mark.parametrize("absent", [(), ("u_t",), ("model_input", "target"), ("u_t", "target")])
def test_opcheck(absent: tuple[str, ...]) -> None:
    opcheck(ops.rotation_perturb_, **arguments(step=3, **dict.fromkeys(absent)))


@pytest.mark.parametrize("shape", [(4, 12), (4, 3, 4), (1, 2, 2, 3, 1)])
def test_any_trailing_shape(shape: tuple[int, ...]) -> None:
    d = torch.Size(shape[1:]).numel()
    case = rotation_perturb_case(shape[0], d, model_input=torch.bfloat16)
    assert_any_shape(ops.rotation_perturb_, case, shape)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"u0": torch.ones(6, 7, dtype=torch.int64)},
            TypeError,
            r"u0 must be float32, got torch\.int64",
        ),
        ({"u0": torch.ones(6, 1)}, ValueError, r"u0 must have at least 2 features"),
        (
            {"coefficients": torch.ones(6, 3)},
            ValueError,
            r"coefficients must have shape \(6, 4\), got \(6, 3\)",
        ),
        ({"coefficients": torch.ones(6, 4).double()}, TypeError, r"coefficients must be float32"),
        (
            {"table": torch.ones(3, 4, 5)},
            ValueError,
            r"table must be float32 of shape \(2, NB, NZ\), .* \(3, 4, 5\)",
        ),
        (
            {"table": torch.ones(2, 1, 5)},
            ValueError,
            r"table must be .* at least 2 nodes an axis, got .*\(2, 1, 5\)",
        ),
        ({"u_t": torch.ones(6, 8)}, ValueError, r"u_t must match u0 \(6, 7\) on cpu, got \(6, 8\)"),
        (
            {"model_input": torch.ones(6, 7).double()},
            TypeError,
            r"model_input must be float32 or bfloat16 or float16",
        ),
        (
            {"target": transposed(6, 7)},
            ValueError,
            r"target must be contiguous, got strides \(1, 6\)",
        ),
        ({"stream": torch.zeros(2)}, ValueError, r"stream must be int64 of shape \(3,\)"),
    ],
)
def test_wrong_input_is_named(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.rotation_perturb_(**arguments(**changes))
