"""``gbm_perturb``: every combination of outputs within the bound, and what the op refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fastmsgm import ops
from tests.ops.backends import BACKENDS, CPU, KERNELS, TRITON, Backend, samples
from tests.ops.cases import DTYPES, START, gbm_perturb_case
from tests.ops.checks import assert_any_shape, assert_bits_of_samples, opcheck, transposed

DIMENSIONS = (1, 3, 4, 63, 64, 130, 784)
# x_t, model_input and z, of which one at least is asked for
OUTPUTS = [
    (x_t, model_input, i % 3 == 0)
    for i, (x_t, model_input) in enumerate(itertools.product((False, True), (None, *DTYPES)))
]


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("backend", KERNELS)
def test_within_the_bound(backend: Backend, d: int) -> None:
    outputs = [*enumerate(OUTPUTS)]
    if backend is TRITON:  # every other one in its interpreter, which is slow
        outputs = outputs[DIMENSIONS.index(d) % 2 :: 2]
    for seed, (x_t, model_input, z) in outputs:
        n = samples(backend, "gbm_perturb", d, programs=2 if seed < 2 else 1)
        gbm_perturb_case(n, d, seed=seed, start=START, x_t=x_t, model_input=model_input, z=z).check(
            backend
        )


@pytest.mark.parametrize("backend", KERNELS)
def test_all_outputs_at_once(backend: Backend) -> None:
    gbm_perturb_case(samples(backend, "gbm_perturb", 130), 130, start=START).check(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place(backend: Backend) -> None:
    case = gbm_perturb_case(5, 130, model_input=None, z=False)
    given = case.arguments()
    backend.kernel("gbm_perturb")(**{**given, "x_t": given["x0"]})
    assert torch.equal(given["x0"], case.run(backend)["x_t"])


@pytest.mark.parametrize("backend", KERNELS)
def test_the_network_sees_nan_where_x0_is_not_a_normal_number(backend: Backend) -> None:
    case = gbm_perturb_case(1, 4)
    case.x0[0] = torch.tensor([torch.nan, 0.0, torch.inf, 1.0])
    got = case.run(backend)
    assert got["model_input"].isnan().tolist() == [[True, True, True, False]]
    assert got["x_t"].isfinite().tolist() == [[False, True, False, True]]
    assert got["x_t"][0, 1] == 0


@pytest.mark.parametrize("backend", KERNELS)
def test_bits_do_not_depend_on_threads_or_split(backend: Backend) -> None:
    for d in (1, 3, 130, 784, 1030) if backend is CPU else (3, 130):
        n = 80_000 // d if backend is CPU else samples(backend, "gbm_perturb", d)
        assert_bits_of_samples(gbm_perturb_case(n, d, start=11), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: Backend) -> None:
    assert gbm_perturb_case(0, 5).run(backend)["x_t"].shape == (0, 5)


# ---- the op ----


def arguments(shape: tuple[int, ...] | None = None, **changes: Any) -> dict[str, Any]:
    return gbm_perturb_case(6, 7, model_input=torch.bfloat16).op_arguments(shape, **changes)


@pytest.mark.parametrize("absent", [(), ("x_t",), ("model_input", "z"), ("x_t", "z")])
def test_opcheck(absent: tuple[str, ...]) -> None:
    opcheck(ops.gbm_perturb_, **arguments(step=3, **dict.fromkeys(absent)))


@pytest.mark.parametrize("shape", [(4, 1), (4, 12), (4, 3, 4), (4, 2, 3, 2), (1, 2, 2, 3, 1)])
def test_any_trailing_shape(shape: tuple[int, ...]) -> None:
    case = gbm_perturb_case(shape[0], torch.Size(shape[1:]).numel(), model_input=torch.bfloat16)
    assert_any_shape(ops.gbm_perturb_, case, shape)


def test_coefficients_of_any_strides() -> None:
    one, many = arguments(), arguments()
    row = one["coefficients"][:1]
    ops.gbm_perturb_(**{**one, "coefficients": row.expand(6, 3)})
    ops.gbm_perturb_(**{**many, "coefficients": row.repeat(6, 1)})
    assert torch.equal(one["x_t"], many["x_t"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"x0": torch.ones(6, 7, dtype=torch.int64)},
            TypeError,
            r"x0 must be float32, got torch\.int64",
        ),
        ({"x0": torch.ones(6)}, ValueError, r"x0 must have shape \(n, \.\.\.\)"),
        ({"x0": transposed(6, 7)}, ValueError, r"x0 must be contiguous"),
        (
            {"coefficients": torch.ones(6, 2)},
            ValueError,
            r"coefficients must have shape \(6, 3\), got \(6, 2\)",
        ),
        (
            {"coefficients": torch.ones(5, 3)},
            ValueError,
            r"coefficients must have shape \(6, 3\), got \(5, 3\)",
        ),
        ({"x_t": torch.ones(6, 8)}, ValueError, r"x_t must match x0 \(6, 7\) on cpu, got \(6, 8\)"),
        (
            {"model_input": torch.ones(3, 7)},
            ValueError,
            r"model_input must match x0 \(6, 7\) on cpu, got \(3, 7\)",
        ),
        ({"z": transposed(6, 7)}, ValueError, r"z must be contiguous, got strides \(1, 6\)"),
        ({"purpose": -1}, ValueError, r"purpose must be in 0 \.\. 255, .*, got -1"),
        ({"purpose": 256}, ValueError, r"purpose must be in 0 \.\. 255, .*, got 256"),
    ],
)
def test_wrong_input_is_named(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.gbm_perturb_(**arguments(**changes))


@pytest.mark.parametrize("name", ["coefficients", "x_t", "model_input", "z"])
def test_other_dtypes_are_refused(name: str) -> None:
    given = arguments()
    given[name] = given[name].double()
    with pytest.raises(TypeError, match=rf"{name} must be float32.* got torch\.float64"):
        ops.gbm_perturb_(**given)
