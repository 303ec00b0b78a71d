"""The seam: schemas, compilation, shapes and strides, what is refused, and which backend runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import assert_same_out_of_place
from torch import Tensor

from fastmsgm import ops, reference, rng


@pytest.fixture(autouse=True)
def no_named_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMSGM_BACKEND", raising=False)


def table(rows: int = 4) -> Tensor:
    """Rows of a multistep solver with everything in them."""
    row = torch.tensor([0.8, 0.3, -0.1, 0.05, 0.1, 0.9, 0.2, 0.01, 0.5])
    return row + 0.01 * torch.arange(rows)[:, None]


def step_arguments(shape: tuple[int, ...] = (6, 7), **changes: Any) -> dict[str, Any]:
    """Arguments of ``gbm_step``, in the ops' order."""
    generator = torch.Generator().manual_seed(0)
    x, f, past = torch.randn(3, *shape, generator=generator).unbind(0)
    arguments = {
        "x": torch.copysign(torch.exp(x), past).contiguous(), "f": f, "table": table(),
        "stream": rng.stream(2**63, 2**32), "step": 1, "bad": torch.full(shape[:1], -1, dtype=torch.int32),
        "history": past.clone(), "net_in": torch.zeros(shape), "stein": False, "linear": False, "log_state": True,
    }  # fmt: skip
    return {**arguments, **changes}


def copy(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def perturb_arguments(shape: tuple[int, ...] = (6, 7), **changes: Any) -> dict[str, Any]:
    """Arguments of ``gbm_perturb_``."""
    generator = torch.Generator().manual_seed(1)
    x0, coefficients = torch.exp(torch.randn(*shape, generator=generator)), torch.rand(shape[0], 3, generator=generator)
    arguments = {
        "x0": x0, "coefficients": coefficients,
        "stream": rng.stream(5, 9), "kind": 4, "step": 3,
        "x_t": torch.zeros(shape), "net_in": torch.zeros(shape, dtype=torch.bfloat16), "z": torch.zeros(shape),
    }  # fmt: skip
    return {**arguments, **changes}


SCORE = {"history": None, "net_in": None, "log_state": False}  # what a score network's steps leave out


# ---- torch.library ----


@pytest.mark.parametrize(
    "changes",
    [{}, SCORE, {**SCORE, "stein": True, "linear": True}, {"f": torch.ones(6, 7).half()}],
    ids=["denoiser", "hyvarinen", "score-linear", "half"],
)
def test_opcheck_gbm_step(changes: dict[str, Any]) -> None:
    arguments = step_arguments(**changes)
    torch.library.opcheck(ops.gbm_step_, tuple(copy(arguments).values()))
    torch.library.opcheck(ops.gbm_step, tuple(copy(arguments).values()))


@pytest.mark.parametrize("absent", [(), ("x_t",), ("net_in", "z"), ("x_t", "z")])
def test_opcheck_gbm_perturb(absent: tuple[str, ...]) -> None:
    arguments = perturb_arguments(**dict.fromkeys(absent))
    torch.library.opcheck(ops.gbm_perturb_, tuple(arguments.values()))


def test_opcheck_fill_normal() -> None:
    torch.library.opcheck(ops.fill_normal_, (torch.zeros(3, 5), rng.stream(1), 0, 2))


def loop_in_place(x: Tensor, weight: Tensor, table: Tensor, stream: Tensor, bad: Tensor) -> tuple[Tensor, Tensor]:
    """Prior, then a small network and a step in place for every row of the table, as ``sample`` does it."""
    n = len(x)
    net_in, history = torch.empty_like(x), torch.zeros_like(x)
    coefficients = torch.tensor([[0.1, 2.0, 0.5]]).expand(n, 3)
    ops.gbm_perturb_(torch.ones_like(x), coefficients, stream, 0, 0, x_t=x, net_in=net_in, z=None)
    for k in range(len(table)):
        ops.gbm_step_(x, torch.tanh(net_in @ weight), table, stream, k, bad, history, net_in, False, False, True)
    return x * 2, history


def loop_out_of_place(x: Tensor, weight: Tensor, table: Tensor, stream: Tensor, bad: Tensor) -> tuple[Tensor, Tensor]:
    for k in range(len(table)):
        x = ops.gbm_step(x, torch.tanh(x @ weight), table, stream, k, bad, None, None, True, True, False)
    return x * 2, bad


@pytest.mark.parametrize("loop", [loop_in_place, loop_out_of_place])
def test_compile_fullgraph_equals_eager(loop: Any) -> None:
    torch.compiler.reset()

    def inputs() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        x, weight = torch.rand(5, 6, generator=generator) + 1, torch.randn(6, 6, generator=generator)
        return x, weight, table(), rng.stream(7, 3), torch.full((5,), -1, dtype=torch.int32)

    eager, compiled = inputs(), inputs()
    expected = loop(*eager)
    got = torch.compile(loop, fullgraph=True, backend="aot_eager")(*compiled)
    for a, b in zip((*expected, *eager), (*got, *compiled), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(eager[0], inputs()[0]) or loop is loop_out_of_place


# ---- in place, out of place, shapes, strides ----


@pytest.mark.parametrize("changes", [{}, {"linear": True}, SCORE, {**SCORE, "stein": True}])
def test_gbm_step_in_place_equals_out_of_place(changes: dict[str, Any]) -> None:
    inside, outside = step_arguments(**changes), step_arguments(**changes)
    assert_same_out_of_place(ops.gbm_step_, ops.gbm_step, inside, outside, "x")


@pytest.mark.parametrize("shape", [(4, 1), (4, 12), (4, 3, 4), (4, 2, 3, 2), (1, 2, 2, 3, 1)])
def test_any_trailing_shape(shape: tuple[int, ...]) -> None:
    """An array of any shape is a list of rows: reshaping before or after is the same."""
    flat = (shape[0], math.prod(shape[1:]))
    step, perturb = step_arguments(shape), perturb_arguments(shape)
    flat_step = {k: v.reshape(flat) if isinstance(v, Tensor) and v.shape == shape else v for k, v in copy(step).items()}
    flat_perturb = {
        k: v.reshape(flat) if isinstance(v, Tensor) and v.shape == shape else v for k, v in copy(perturb).items()
    }
    z, flat_z = torch.zeros(shape), torch.zeros(flat)
    for first, second in ((step, flat_step), (perturb, flat_perturb)):
        op = ops.gbm_step_ if first is step else ops.gbm_perturb_
        op(**first)
        op(**second)
        for name, tensor in first.items():
            if isinstance(tensor, Tensor):
                assert torch.equal(tensor.flatten(), second[name].flatten()), name
    ops.fill_normal_(z, rng.stream(1), 0, 0)
    ops.fill_normal_(flat_z, rng.stream(1), 0, 0)
    assert torch.equal(z.reshape(flat), flat_z)
    assert float(z.abs().min()) > 0


@pytest.mark.parametrize("dtype", ops.OUTPUT_DTYPES)
def test_network_output_of_any_strides(dtype: torch.dtype) -> None:
    """Channels-last colour images and a slice of a wider output give the same step as their contiguous copies."""
    f = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    wide = torch.zeros(6, 5, 4, 4, dtype=dtype)
    wide[:, 1:4] = f
    expected = ops.gbm_step(**step_arguments(f.shape, f=f))
    for strided in (f.to(memory_format=torch.channels_last), wide[:, 1:4]):
        assert not strided.is_contiguous()
        assert torch.equal(ops.gbm_step(**step_arguments(f.shape, f=strided)), expected)


def test_coefficients_of_any_strides() -> None:
    one, many = perturb_arguments(), perturb_arguments()
    row = one["coefficients"][:1]
    ops.gbm_perturb_(**{**one, "coefficients": row.expand(6, 3)})
    ops.gbm_perturb_(**{**many, "coefficients": row.repeat(6, 1)})
    assert torch.equal(one["x_t"], many["x_t"])


def test_more_than_two_to_the_31_elements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two rows of arrays of more than 2^31 elements, in sparse files of which only those rows are touched."""
    from fastmsgm.kernels.cpu import gbm

    n, d = 2049, 2**20 + 4
    assert n * d > 2**31 > (n - 2) * d

    def last_rows(kernel: Any, rows: int, width: int, *args: Any) -> None:
        kernel(rows - 2, rows, *args)

    def huge(name: str) -> Tensor:
        return torch.from_numpy(np.memmap(tmp_path / name, np.float32, "w+", shape=(n, d)))

    arrays = {name: huge(name) for name in ("x", "f", "history", "net_in", "x_t")}
    generator = torch.Generator().manual_seed(3)
    small = {name: torch.rand(2, d, generator=generator) + 0.5 for name in arrays}
    for name, tensor in arrays.items():
        tensor[-2:] = small[name]
    monkeypatch.setattr(gbm, "over_rows", last_rows)
    first = 2**32 - 1  # the two rows are samples on both sides of 2^32
    stream, near, flags = rng.stream(1, first - (n - 2)), rng.stream(1, first), (False, False, True)
    bad, coefficients = torch.full((n,), -1, dtype=torch.int32), torch.tensor([[0.1, 0.5, 0.5]]).expand(n, 3)
    ops.gbm_perturb_(arrays["x"], coefficients, stream, 4, 0, x_t=arrays["x_t"], net_in=None, z=None)
    ops.gbm_step_(arrays["x"], arrays["f"], table(), stream, 1, bad, arrays["history"], arrays["net_in"], *flags)
    monkeypatch.undo()
    ops.gbm_perturb_(small["x"], coefficients[:2], near, 4, 0, x_t=small["x_t"], net_in=None, z=None)
    ops.gbm_step_(small["x"], small["f"], table(), near, 1, bad[:2].clone(), small["history"], small["net_in"], *flags)
    for name, tensor in arrays.items():
        assert torch.equal(tensor[-2:], small[name]), name
        assert not bool(tensor[:2].any())
    for name in arrays:
        (tmp_path / name).unlink()


# ---- what is refused ----


def transposed(shape: tuple[int, int]) -> Tensor:
    return torch.ones(shape[::-1]).T


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(6, 7).double()}, TypeError, r"x must be float32, got torch\.float64: convert it with"),
        ({"x": torch.ones(6)}, ValueError, r"x must have shape \(n, \.\.\.\) with .* feature axis, got \(6,\)"),
        ({"x": transposed((6, 7))}, ValueError, r"x must be contiguous, got strides \(1, 6\) .* call \.contiguous\(\)"),
        ({"f": torch.ones(6, 8)}, ValueError, r"network's output, must have the state's shape \(6, 7\), got \(6, 8\)"),
        ({"f": torch.ones(6, 7).double()}, TypeError, r"f, the network's output, must be float32, .*float64"),
        ({"table": torch.ones(4, 8)}, ValueError, r"table must be float32 of shape \(T, 9\), .*got .*\(4, 8\)"),
        ({"table": torch.ones(9)}, ValueError, r"table must be float32 of shape \(T, 9\), .*got .*\(9,\)"),
        ({"table": torch.ones(9, 4).T}, ValueError, r"table must be .*contiguous, got .* with strides \(1, 4\)"),
        ({"table": table().double()}, ValueError, r"table must be float32 .* got torch\.float64"),
        ({"step": 4}, ValueError, r"step must be a row of the table, 0 \.\. 3, got 4"),
        ({"step": -1}, ValueError, r"step must be a row of the table, 0 \.\. 3, got -1"),
        ({"bad": torch.zeros(5, dtype=torch.int32)}, ValueError, r"bad must be int32 of shape \(6,\), got .*\(5,\)"),
        ({"bad": torch.zeros(6)}, ValueError, r"bad must be int32 of shape \(6,\), got torch\.float32"),
        ({"history": torch.ones(6, 8)}, ValueError, r"history must match x \(6, 7\) on cpu, got \(6, 8\) on cpu"),
        ({"history": transposed((6, 7))}, ValueError, r"history must be contiguous, got strides \(1, 6\)"),
        ({"net_in": torch.ones(5, 7)}, ValueError, r"net_in must match x \(6, 7\) on cpu, got \(5, 7\) on cpu"),
        ({"log_state": False}, ValueError, r"history and net_in need the logarithm of the state: give log_state=True"),
    ],
)
def test_gbm_step_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    for op in (ops.gbm_step_, ops.gbm_step):
        arguments = step_arguments(**changes)
        before = copy(arguments)
        with pytest.raises(error, match=message):
            op(**arguments)
        assert torch.equal(arguments["x"], before["x"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x0": torch.ones(6, 7, dtype=torch.int64)}, TypeError, r"x0 must be float32, got torch\.int64"),
        ({"x0": torch.ones(6)}, ValueError, r"x0 must have shape \(n, \.\.\.\)"),
        ({"x0": transposed((6, 7))}, ValueError, r"x0 must be contiguous"),
        ({"coefficients": torch.ones(6, 2)}, ValueError, r"coefficients must have shape \(6, 3\), got \(6, 2\)"),
        ({"coefficients": torch.ones(5, 3)}, ValueError, r"coefficients must have shape \(6, 3\), got \(5, 3\)"),
        ({"x_t": torch.ones(6, 8)}, ValueError, r"x_t must match x0 \(6, 7\) on cpu, got \(6, 8\)"),
        ({"net_in": torch.ones(3, 7)}, ValueError, r"net_in must match x0 \(6, 7\) on cpu, got \(3, 7\)"),
        ({"z": transposed((6, 7))}, ValueError, r"z must be contiguous, got strides \(1, 6\)"),
    ],
)
def test_gbm_perturb_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.gbm_perturb_(**perturb_arguments(**changes))


@pytest.mark.parametrize("name", ["coefficients", "x_t", "net_in", "z"])
def test_gbm_perturb_refuses_other_dtypes(name: str) -> None:
    arguments = perturb_arguments()
    arguments[name] = arguments[name].double()
    with pytest.raises(TypeError, match=f"{name} must be float32.* got torch.float64"):
        ops.gbm_perturb_(**arguments)


@pytest.mark.parametrize("name", ["history", "net_in"])
def test_gbm_step_refuses_other_dtypes(name: str) -> None:
    arguments = step_arguments()
    arguments[name] = arguments[name].double()
    with pytest.raises(TypeError, match=f"{name} must be float32.* got torch.float64"):
        ops.gbm_step_(**arguments)


def test_fill_normal_refuses() -> None:
    with pytest.raises(TypeError, match="out must be float32"):
        ops.fill_normal_(torch.ones(3, 4).half(), rng.stream(0), 0, 0)
    with pytest.raises(ValueError, match="out must be contiguous"):
        ops.fill_normal_(transposed((3, 4)), rng.stream(0), 0, 0)


# ---- backends ----


@pytest.fixture
def fresh_imports() -> Iterator[None]:
    """Forget which backends were found before and after."""
    ops.dispatch._import_error.cache_clear()
    yield
    ops.dispatch._import_error.cache_clear()


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_a_named_backend_is_taken_on_every_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", name)
    assert [ops.backend(device) for device in ("cpu", "cuda", "mps")] == [name] * 3


def test_backend_without_a_name() -> None:
    assert ops.backend("cpu") == "cpu"
    assert ops.backend("mps") == "reference"


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", "numba")
    with pytest.raises(ValueError, match="FASTMSGM_BACKEND must be one of reference, cpu, triton, got 'numba'"):
        ops.gbm_step_(**step_arguments())


def test_the_named_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", "reference")
    arguments = step_arguments()
    expected = copy(arguments)
    ops.gbm_step_(**arguments)
    reference.gbm_step(**{**expected, "out": expected["x"]})
    assert torch.equal(arguments["x"], expected["x"])


@pytest.mark.usefixtures("fresh_imports")
def test_fallback_with_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(ops.dispatch._PACKAGES, "cpu", "fastmsgm.no_such_kernels")
    arguments = step_arguments()
    expected = copy(arguments)
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        for _ in range(3):
            ops.gbm_step_(**arguments)
    for _ in range(3):
        reference.gbm_step(**{**expected, "out": expected["x"]})
    assert torch.equal(arguments["x"], expected["x"])
    assert len(caplog.records) == 1
    assert "the cpu kernels cannot be used" in caplog.text
    assert "no_such_kernels" in caplog.text


@pytest.mark.usefixtures("fresh_imports")
def test_a_named_backend_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops.dispatch._PACKAGES, "cpu", "fastmsgm.no_such_kernels")
    monkeypatch.setenv("FASTMSGM_BACKEND", "cpu")
    with pytest.raises(ImportError, match="no_such_kernels"):
        ops.gbm_step_(**step_arguments())


def test_a_stream_that_is_none_is_refused() -> None:
    for stream in (torch.zeros(1, dtype=torch.int64), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"stream must be int64 of shape \(3,\)"):
            ops.fill_normal_(torch.zeros(3, 5), stream, 0, 0)


@pytest.mark.parametrize("kind", [-1, 256])
def test_a_kind_is_a_byte(kind: int) -> None:
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match=rf"kind must be in 0 \.\. 255, .*, got {kind}"):
        ops.fill_normal_(x, rng.stream(0), kind, 0)
    with pytest.raises(ValueError, match="kind must be in"):
        ops.gbm_perturb_(x, torch.ones(2, 3), rng.stream(0), kind, 0, x_t=x, net_in=None, z=None)
