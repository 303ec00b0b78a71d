"""The script for the first GPU, run on a CPU: its cases are valid, and it finds a difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import gpu_first_run
from fastmsgm import ops


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_first_run, "CUDA", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)


def test_every_case_is_valid_and_equal_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_first_run, "DIMENSIONS", (2, 3, 130))
    lines = list(gpu_first_run.correctness())
    names = " ".join(name for name, _, _ in lines)
    operations = (
        "fill_normal",
        "gbm_perturb",
        "gbm_step",
        "egd_step",
        "rotation_perturb",
        "rotation_step",
        "ring_step",
    )
    assert all(operation in names for operation in operations)
    assert all(good for _, good, _ in lines), lines


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_first_run, "DIMENSIONS", (4,))
    calls = iter(range(1000))

    def spoilt(out: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        original(out, *args, **kwargs)
        if next(calls) % 2:
            out[1, 2] += 0.1

    original = ops.fill_normal_
    monkeypatch.setattr(ops, "fill_normal_", spoilt)
    failed = [name for name, good, _ in gpu_first_run.correctness() if not good]
    assert failed == ["fill_normal matches the CPU"]


def test_the_loops_run() -> None:
    lines = list(gpu_first_run.loops())
    assert len(lines) == 6
    assert all(good for _, good, _ in lines), lines
