"""Dispatch: which backend runs, what it falls back to, and the environment variable."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmsgm import ops
from fastmsgm.ops import dispatch
from tests.ops.backends import BACKENDS, CPU, REFERENCE, TRITON, Backend
from tests.ops.cases import gbm_step_case, ring_step_case, rotation_step_case

FAMILIES = ("gbm", "rotation", "ring", "optim")


def gbm_arguments() -> dict[str, Any]:
    return gbm_step_case(6, 7, prev_denoised=True, model_input=torch.float32).op_arguments()


def rotation_arguments() -> dict[str, Any]:
    return rotation_step_case(6, 7, prev_denoised=True, angles=True).op_arguments()


def ring_arguments() -> dict[str, Any]:
    return ring_step_case(6, 7).op_arguments()


def egd_arguments() -> dict[str, Any]:
    w, g = torch.randn(2, 42, generator=torch.Generator().manual_seed(0))
    return {"w": w, "g": g, "lr": torch.tensor([0.3])}


# Of one operation of every family: its op, the name of its state, and fresh arguments.
OPERATIONS: dict[str, tuple[Any, str, Callable[[], dict[str, Any]]]] = {
    "gbm_step": (ops.gbm_step_, "x", gbm_arguments),
    "rotation_step": (ops.rotation_step_, "u", rotation_arguments),
    "ring_step": (ops.ring_step_, "x", ring_arguments),
    "egd_step": (ops.egd_step_, "w", egd_arguments),
}


# ---- which backend ----


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_a_named_backend_is_taken_on_every_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", name)
    assert [ops.backend(device) for device in ("cpu", "cuda", "mps")] == [name] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_by_the_device(family: str) -> None:
    assert ops.backend("cpu", family) == "cpu"
    assert ops.backend("mps", family) == "reference"


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", "numba")
    message = "FASTMSGM_BACKEND must be one of reference, cpu, triton, got 'numba'"
    with pytest.raises(ValueError, match=message):
        ops.gbm_step_(**gbm_arguments())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_named_backend_runs(
    backend: Backend, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op, state, arguments = OPERATIONS[operation]
    given, called = arguments(), []
    out = {} if operation == "egd_step" else {"out": given[state]}
    backend.kernel(operation)(**given, **out)
    expected = given[state]

    def record(kernel: Callable[..., None], name: str) -> Callable[..., None]:
        def recorded(*args: Any) -> None:
            called.append(name)
            kernel(*args)

        return recorded

    for each in (REFERENCE, CPU, *([TRITON] if backend is TRITON else [])):
        recorded = record(each.kernel(operation), each.name)
        monkeypatch.setattr(each.module(operation), operation, recorded)
    monkeypatch.setenv("FASTMSGM_BACKEND", backend.name)
    given = arguments()
    op(**given)
    assert called == [backend.name]
    assert torch.equal(given[state], expected)


# ---- what a backend lacks ----


@pytest.fixture
def fresh_imports() -> Iterator[None]:
    """Forget, before and after, which backends work and what was warned of."""
    caches = (dispatch._works, dispatch._warn_once)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def one_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Replace the CPU backend by one that has no kernels but those of the reference for gbm."""
    package = tmp_path / "one_family"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "gbm.py").write_text("from fastmsgm.reference.gbm import *\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(dispatch._PACKAGES, "cpu", "one_family")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "one_family"]:
        del sys.modules[name]


def run_three_times(operation: str) -> None:
    """Run an op three times, and assert that the reference gives the same."""
    op, state, arguments = OPERATIONS[operation]
    given, expected = arguments(), arguments()
    for _ in range(3):
        op(**given)
        REFERENCE.kernel(operation)(**expected, out=expected[state])
    assert torch.equal(given[state], expected[state])


@pytest.mark.usefixtures("fresh_imports")
def test_a_backend_that_cannot_be_imported_falls_back_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(dispatch._PACKAGES, "cpu", "fastmsgm.no_such_kernels")
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        for operation in ("gbm_step", "ring_step"):
            run_three_times(operation)
    (record,) = caplog.records
    assert "the cpu kernels cannot be used" in record.getMessage()
    assert "no_such_kernels" in record.getMessage()


@pytest.mark.usefixtures("fresh_imports", "one_family")
def test_a_family_without_a_module_falls_back_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        for operation in ("ring_step", "gbm_step", "rotation_step"):
            run_three_times(operation)
    message = "the cpu backend has no kernels for {}: the plain reference runs instead, slower"
    expected = [message.format(family) for family in ("ring", "rotation")]
    assert [record.getMessage() for record in caplog.records] == expected
    assert [ops.backend("cpu", family) for family in ("gbm", "ring")] == ["cpu", "reference"]


@pytest.mark.usefixtures("fresh_imports", "one_family")
def test_a_module_that_cannot_be_imported_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A family's module is there, but what it imports is not."""
    (tmp_path / "one_family" / "ring.py").write_text("import no_such_compiler\n")
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        run_three_times("ring_step")
    (record,) = caplog.records
    message = "the cpu kernels cannot be used (No module named 'no_such_compiler')"
    assert record.getMessage().startswith(message)


@pytest.mark.usefixtures("fresh_imports")
def test_a_named_backend_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._PACKAGES, "cpu", "fastmsgm.no_such_kernels")
    monkeypatch.setenv("FASTMSGM_BACKEND", "cpu")
    message = r"the cpu backend, which FASTMSGM_BACKEND names, .* for gbm .*no_such_kernels"
    with pytest.raises(ImportError, match=message):
        ops.gbm_step_(**gbm_arguments())


@pytest.mark.usefixtures("fresh_imports", "one_family")
def test_a_family_without_a_module_does_not_fall_back_in_a_named_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", "cpu")
    run_three_times("gbm_step")
    message = r"the cpu backend, which FASTMSGM_BACKEND names, has no usable kernels for ring"
    with pytest.raises(ImportError, match=message):
        ops.ring_step_(**ring_arguments())


@pytest.mark.usefixtures("fresh_imports", "one_family")
def test_a_named_backend_whose_import_fails_in_another_way_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "one_family" / "ring.py").write_text("raise AttributeError('no types')\n")
    monkeypatch.setenv("FASTMSGM_BACKEND", "cpu")
    message = r"FASTMSGM_BACKEND names, .* \(AttributeError in .*ring\.py: no types\)"
    with pytest.raises(ImportError, match=message):
        ops.ring_step_(**ring_arguments())


# ---- numba that cannot be used ----

STEP = """
import torch
from fastmsgm import ops
w = torch.ones(1)
for _ in range(2):
    ops.egd_step_(w, torch.ones(1), torch.ones(1))
print([ops.backend("cpu", family) for family in ("gbm", "optim")], w.item())
"""


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        # numba imports this folder for the package of that name.
        ({}, "AttributeError in .*: module 'coverage' has no attribute 'types'"),
        ({"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set"),
    ],
    ids=["coverage folder", "no JIT"],
)
def test_numba_that_cannot_be_used_falls_back_with_one_warning(
    tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    if not environment:
        (tmp_path / "coverage").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STEP],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    assert done.stdout.startswith("['reference', 'reference'] 0.1353352")
    message = rf"the cpu kernels cannot be used \({reason}\): the plain reference runs instead"
    (line,) = done.stderr.splitlines()
    assert re.match(message, line)
