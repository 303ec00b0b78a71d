"""``gbm_step``: every combination of flags within the bound, nonfinite states, and the op."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm import ops, rng
from tests.ops.backends import BACKENDS, CPU, KERNELS, TRITON, Backend, samples
from tests.ops.cases import DTYPES, NETWORK_DTYPES, START, gbm_step_case
from tests.ops.checks import (
    assert_any_shape,
    assert_bits_of_samples,
    assert_compiles,
    assert_same_in_place,
    assert_same_op_in_place,
    opcheck,
    transposed,
)

DIMENSIONS = (1, 3, 4, 63, 64, 130, 784)
# Whether a step needs the logarithm of the state, what it keeps, and the network's dtypes.
MODES: list[dict[str, Any]] = [{"log_state": False, "dtype": dtype} for dtype in DTYPES] + [
    {"prev_denoised": prev_denoised, "model_input": model_input, "dtype": dtype}
    for prev_denoised in (False, True)
    for model_input, dtype in NETWORK_DTYPES
]
# A step of a network that gives the score.
SCORE = {"log_state": False}
# What it leaves out, as arguments.
NO_LOG_STATE = {"log_state": False, "prev_denoised": None, "model_input": None}


# ---- the bound ----


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("sign_agnostic", [False, True])
@pytest.mark.parametrize("stein_score", [False, True])
@pytest.mark.parametrize("backend", KERNELS)
def test_within_the_bound(backend: Backend, stein_score: bool, sign_agnostic: bool, d: int) -> None:
    """Run every mode, but every other one with a logarithm in Triton's interpreter, which is slow.

    It meets all pairs of mode, flags and d. One mode there takes a second program.
    """
    flags: dict[str, Any] = {"stein_score": stein_score, "sign_agnostic": sign_agnostic}
    turn = DIMENSIONS.index(d) + stein_score
    modes = [*enumerate(MODES)]
    if backend is TRITON:
        modes = modes[: len(DTYPES)] + modes[len(DTYPES) + turn % 2 :: 2]
    for i, (seed, mode) in enumerate(modes):
        two_programs = i == (turn + 2 * sign_agnostic) % len(modes)
        n = samples(backend, "gbm_step", d, programs=1 + two_programs)
        case = gbm_step_case(n, d, seed=seed, start=START, **flags, **mode)
        case.check(backend, in_place=seed % 2 == 0)


@pytest.mark.parametrize("d", [63, 64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_equals_out_of_place(backend: Backend, d: int) -> None:
    case = gbm_step_case(9, d, prev_denoised=True, model_input=torch.float32)
    assert_same_in_place(case, backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_bits_do_not_depend_on_threads_or_split(backend: Backend) -> None:
    for d in (1, 3, 130, 784, 1030) if backend is CPU else (3, 130):
        n = 80_000 // d if backend is CPU else samples(backend, "gbm_step", d)
        for case in (
            gbm_step_case(n, d, start=11, prev_denoised=True, model_input=torch.bfloat16),
            gbm_step_case(n, d, start=11, stein_score=True, log_state=False),
        ):
            assert_bits_of_samples(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: Backend) -> None:
    assert gbm_step_case(0, 5).run(backend)["out"].shape == (0, 5)


# ---- nonfinite states ----


@pytest.mark.parametrize("d", [3, 64])
@pytest.mark.parametrize("sign_agnostic", [False, True])
@pytest.mark.parametrize("log_state", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nonfinite_state_is_marked_and_no_other(
    backend: Backend, log_state: bool, sign_agnostic: bool, d: int
) -> None:
    model_input = torch.float32 if log_state else None
    case = gbm_step_case(
        9, d, sign_agnostic=sign_agnostic, log_state=log_state, model_input=model_input
    )
    # So that a large output leaves the float32 numbers with sign_agnostic, too.
    case.set(k1=100.0)
    clean = case.run(backend)
    case.model_output[1, 2] = torch.nan
    case.model_output[2, 0] = torch.inf
    case.x[3, 1] = torch.nan
    case.x[4, 2] = 0.0
    case.model_output[5, 0], case.model_output[6, 1] = -3e38, 3e38
    nonfinite = torch.zeros(9, d, dtype=torch.bool)
    nonfinite[(1, 2, 3, 4, 5, 6), (2, 0, 1, 2, 0, 1)] = True
    got = case.run(backend, in_place=True)
    assert got["first_nonfinite_step"].tolist() == [-1, 2, 2, 2, 2, 2, 2, -1, -1]
    assert torch.equal(got["out"].isnan(), nonfinite)
    assert torch.equal(got["out"][~nonfinite], clean["out"][~nonfinite])
    if log_state:
        assert torch.equal(~got["model_input"].isfinite(), nonfinite)
        if backend is TRITON:
            assert torch.equal(got["model_input"].isnan(), nonfinite)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nonfinite_output_of_any_dtype_is_caught(backend: Backend, dtype: torch.dtype) -> None:
    for value, sign_agnostic, log_state in itertools.product(
        (torch.nan, torch.inf, -torch.inf), (False, True), (False, True)
    ):
        n = 40 if backend is CPU else samples(backend, "gbm_step", 130, programs=1)
        case = gbm_step_case(n, 130, sign_agnostic=sign_agnostic, log_state=log_state, dtype=dtype)
        case.model_output[7, 129] = case.model_output[n - 9, 0] = value
        got = case.run(backend)
        expected = torch.full((n,), -1, dtype=torch.int32)
        expected[7] = expected[n - 9] = case.step
        assert torch.equal(got["first_nonfinite_step"], expected)
        assert got["out"].isnan().nonzero().tolist() == [[7, 129], [n - 9, 0]]


@pytest.mark.parametrize("pattern", [0x7FC001FF, 0x7F800001, 0xFFFFFFFF])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_payloads_are_caught(backend: Backend, pattern: int) -> None:
    case = gbm_step_case(3, 64, log_state=False)
    case.model_output.view(torch.int32)[1, 5] = int(np.uint32(pattern).astype(np.int32))
    assert case.run(backend)["first_nonfinite_step"].tolist() == [-1, case.step, -1]


@pytest.mark.parametrize("log_state", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_states_at_the_edge_of_float32(backend: Backend, log_state: bool) -> None:
    """A step that overflows or underflows is marked, and so is a sample that came in nonfinite."""
    case = gbm_step_case(6, 64, log_state=log_state)
    case.table[case.step] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    case.set(C=3.0)  # x' = 20 x
    case.x[0, 3] = 3e38
    case.x[1, 63] = -2e37
    case.x[2, 0] = 1e37
    case.x[3, 1] = torch.inf
    case.x[4, 1] = 0.0
    case.x[5, 1] = torch.nan
    got = case.run(backend)
    assert got["first_nonfinite_step"].tolist() == [2, 2, -1, 2, 2, 2]
    assert got["out"][2].isfinite().all()
    assert got["out"][[0, 1, 3, 4, 5], [3, 63, 1, 1, 1]].isnan().all()
    assert got["out"].isnan().sum() == 5
    case.set(C=-3.0)
    case.x[0, 3], case.x[1, 63], case.x[2, 0] = 2e-38, -1.5e-38, 1e-36
    assert case.run(backend)["first_nonfinite_step"].tolist() == [2, 2, -1, 2, 2, 2]


@pytest.mark.parametrize("log_state", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_nonfinite_step_is_kept(backend: Backend, log_state: bool) -> None:
    case = gbm_step_case(3, 64, log_state=log_state)
    case.model_output[:2, 5] = torch.nan
    given = case.arguments()
    given["first_nonfinite_step"] = torch.tensor([-1, 1, -1], dtype=torch.int32)
    backend.kernel("gbm_step")(**{**given, "step": 3, "out": given["x"]})
    assert given["first_nonfinite_step"].tolist() == [3, 1, -1]


# ---- the op ----


def arguments(shape: tuple[int, ...] | None = None, **changes: Any) -> dict[str, Any]:
    case = gbm_step_case(6, 7, start=2**32, prev_denoised=True, model_input=torch.float32)
    return case.op_arguments(shape, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        NO_LOG_STATE,
        {**NO_LOG_STATE, "stein_score": True, "sign_agnostic": True},
        {"model_output": torch.ones(6, 7).half()},
    ],
    ids=["denoiser", "score", "stein-score-sign-agnostic", "half"],
)
@pytest.mark.parametrize("op", [ops.gbm_step_, ops.gbm_step])
def test_opcheck(op: Any, changes: dict[str, Any]) -> None:
    opcheck(op, **arguments(**changes))


def loop_in_place(
    x: Tensor, weight: Tensor, table: Tensor, stream: Tensor, first_nonfinite_step: Tensor
) -> tuple[Tensor, Tensor]:
    """Prior, then a small network and a step in place for every row, as ``sample`` does it."""
    n = len(x)
    model_input, prev_denoised = torch.empty_like(x), torch.zeros_like(x)
    coefficients = torch.tensor([[0.1, 2.0, 0.5]]).expand(n, 3)
    ops.gbm_perturb_(torch.ones_like(x), coefficients, stream, 0, 0, x, model_input, None)
    flags = (False, False, True)
    for k in range(len(table)):
        f = torch.tanh(model_input @ weight)
        memory = (prev_denoised, model_input)
        ops.gbm_step_(x, f, table, stream, k, first_nonfinite_step, *memory, *flags)
    return x * 2, prev_denoised


def loop_out_of_place(
    x: Tensor, weight: Tensor, table: Tensor, stream: Tensor, first_nonfinite_step: Tensor
) -> tuple[Tensor, Tensor]:
    flags = (True, True, False)
    for k in range(len(table)):
        f = torch.tanh(x @ weight)
        x = ops.gbm_step(x, f, table, stream, k, first_nonfinite_step, None, None, *flags)
    return x * 2, first_nonfinite_step


@pytest.mark.parametrize("loop", [loop_in_place, loop_out_of_place])
def test_compile_fullgraph_equals_eager(loop: Any) -> None:
    def inputs() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(5, 6, generator=generator) + 1
        weight = torch.randn(6, 6, generator=generator)
        row = torch.tensor([0.8, 0.3, -0.1, 0.05, 0.1, 0.9, 0.2, 0.01, 0.5])
        table = row + 0.01 * torch.arange(4)[:, None]
        return x, weight, table, rng.stream(7, 3), torch.full((5,), -1, dtype=torch.int32)

    written = assert_compiles(loop, inputs)
    assert not torch.equal(written[0], inputs()[0]) or loop is loop_out_of_place


@pytest.mark.parametrize(
    "mode",
    [
        {"prev_denoised": True, "model_input": torch.float32},
        {"prev_denoised": True, "model_input": torch.float32, "sign_agnostic": True},
        SCORE,
        {**SCORE, "stein_score": True},
    ],
)
def test_op_in_place_equals_out_of_place(mode: dict[str, Any]) -> None:
    assert_same_op_in_place(ops.gbm_step_, ops.gbm_step, gbm_step_case(6, 7, **mode))


@pytest.mark.parametrize("shape", [(4, 1), (4, 12), (4, 3, 4), (4, 2, 3, 2), (1, 2, 2, 3, 1)])
def test_any_trailing_shape(shape: tuple[int, ...]) -> None:
    d = torch.Size(shape[1:]).numel()
    case = gbm_step_case(shape[0], d, prev_denoised=True, model_input=torch.float32)
    assert_any_shape(ops.gbm_step_, case, shape)


@pytest.mark.parametrize("dtype", ops.OUTPUT_DTYPES)
def test_model_output_of_any_strides(dtype: torch.dtype) -> None:
    """Channels-last images and a slice of a wider output give the step of contiguous copies."""
    f = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    wide = torch.zeros(6, 5, 4, 4, dtype=dtype)
    wide[:, 1:4] = f
    case = gbm_step_case(6, 48, prev_denoised=True, model_input=torch.float32)
    expected = ops.gbm_step(**case.op_arguments(f.shape, model_output=f))
    for strided in (f.to(memory_format=torch.channels_last), wide[:, 1:4]):
        assert not strided.is_contiguous()
        got = ops.gbm_step(**case.op_arguments(f.shape, model_output=strided))
        assert torch.equal(got, expected)


def test_more_than_two_to_the_31_elements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perturb and step the last two samples of arrays of more than 2^31 elements.

    The arrays are sparse files of which only those samples are touched.
    """
    module = CPU.module("gbm_step")
    n, d = 2049, 2**20 + 4
    assert n * d > 2**31 > (n - 2) * d

    def last_samples(kernel: Any, rows: int, width: int, *args: Any) -> None:
        kernel(rows - 2, rows, *args)

    def huge(name: str) -> Tensor:
        return torch.from_numpy(np.memmap(tmp_path / name, np.float32, "w+", shape=(n, d)))

    names = ("x", "model_output", "prev_denoised", "model_input", "x_t")
    arrays = {name: huge(name) for name in names}
    generator = torch.Generator().manual_seed(3)
    small = {name: torch.rand(2, d, generator=generator) + 0.5 for name in arrays}
    for name, tensor in arrays.items():
        tensor[-2:] = small[name]
    table = gbm_step_case(1, 1, prev_denoised=True).table
    first = 2**32 - 1  # the two samples are on both sides of 2^32

    def perturb_and_step(given: dict[str, Tensor], start: int) -> None:
        given, stream = dict(given), rng.stream(1, start)
        rows = len(given["x"])
        coefficients = torch.tensor([[0.1, 0.5, 0.5]]).expand(rows, 3)
        x_t = given.pop("x_t")
        ops.gbm_perturb_(given["x"], coefficients, stream, 4, 0, x_t, None, None)
        ops.gbm_step_(
            **given,
            table=table,
            stream=stream,
            step=1,
            first_nonfinite_step=torch.full((rows,), -1, dtype=torch.int32),
            stein_score=False,
            sign_agnostic=False,
            log_state=True,
        )

    with monkeypatch.context() as patch:
        patch.setattr(module, "over_rows", last_samples)
        perturb_and_step(arrays, first - (n - 2))
    perturb_and_step(small, first)
    for name, tensor in arrays.items():
        assert torch.equal(tensor[-2:], small[name]), name
        assert not bool(tensor[:2].any())
    for name in arrays:
        (tmp_path / name).unlink()


# ---- what the op refuses ----


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"x": torch.ones(6, 7).double()},
            TypeError,
            r"x must be float32, got torch\.float64: convert it with",
        ),
        (
            {"x": torch.ones(6)},
            ValueError,
            r"x must have shape \(n, \.\.\.\) with .* feature axis, got \(6,\)",
        ),
        (
            {"x": transposed(6, 7)},
            ValueError,
            r"x must be contiguous, got strides \(1, 6\) .* call \.contiguous\(\)",
        ),
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
        (
            {"table": torch.ones(9)},
            ValueError,
            r"table must be float32 of shape \(T, 9\), .*got .*\(9,\)",
        ),
        (
            {"table": torch.ones(9, 4).T},
            ValueError,
            r"table must be .*contiguous, got .* with strides \(1, 4\)",
        ),
        (
            {"table": torch.ones(4, 9).double()},
            ValueError,
            r"table must be float32 .* got torch\.float64",
        ),
        ({"step": 4}, ValueError, r"step must be a row of the table, 0 \.\. 3, got 4"),
        ({"step": -1}, ValueError, r"step must be a row of the table, 0 \.\. 3, got -1"),
        (
            {"first_nonfinite_step": torch.zeros(5, dtype=torch.int32)},
            ValueError,
            r"first_nonfinite_step must be int32 of shape \(6,\), got .*\(5,\)",
        ),
        (
            {"first_nonfinite_step": torch.zeros(6)},
            ValueError,
            r"first_nonfinite_step must be int32 of shape \(6,\), got torch\.float32",
        ),
        (
            {"prev_denoised": torch.ones(6, 8)},
            ValueError,
            r"prev_denoised must match x \(6, 7\) on cpu, got \(6, 8\) on cpu",
        ),
        (
            {"prev_denoised": transposed(6, 7)},
            ValueError,
            r"prev_denoised must be contiguous, got strides \(1, 6\)",
        ),
        (
            {"model_input": torch.ones(5, 7)},
            ValueError,
            r"model_input must match x \(6, 7\) on cpu, got \(5, 7\) on cpu",
        ),
        (
            {"log_state": False},
            ValueError,
            r"prev_denoised and model_input need the logarithm of the state: give log_state=True",
        ),
    ],
)
@pytest.mark.parametrize("op", [ops.gbm_step_, ops.gbm_step])
def test_wrong_input_is_named(
    op: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = arguments(**changes)
    before = given["x"].clone()
    with pytest.raises(error, match=message):
        op(**given)
    assert torch.equal(given["x"], before)


@pytest.mark.parametrize("name", ["prev_denoised", "model_input"])
def test_other_dtypes_are_refused(name: str) -> None:
    given = arguments()
    given[name] = given[name].double()
    with pytest.raises(TypeError, match=rf"{name} must be float32.* got torch\.float64"):
        ops.gbm_step_(**given)
