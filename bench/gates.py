"""What a result must be before its contender is timed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

ERRORS = 6  # standard errors by which a mean may miss


def ends(n: int, rows: int = 32) -> list[slice]:
    """The first and the last of n rows: noise has addresses, so the reference can compute them alone."""
    return [slice(0, min(rows, n)), slice(max(n - rows, 0), n)]


def close(got: Tensor, wanted: Tensor, relative: float = 5e-6, absolute: float = 0.0) -> None:
    torch.testing.assert_close(got, wanted, rtol=relative, atol=absolute)


def same_law(got: Tensor, ours: Tensor, given: Tensor | None = None) -> None:
    """Independent draws of one law: equal means and spreads, and a difference that does not follow ``given``, which is
    like them and which both should follow alike."""
    got, ours = got.double().flatten(), ours.double().flatten()
    error = len(got) ** -0.5
    assert abs(got.mean() - ours.mean()) < ERRORS * error * torch.hypot(got.std(), ours.std()), "another mean"
    assert abs(got.std() / ours.std() - 1) < ERRORS * error, "another spread"
    if given is not None:
        pair = torch.stack((got - ours, given.double().flatten()))
        assert abs(torch.corrcoef(pair)[0, 1]) < ERRORS * error, "another dependence"


@contextmanager
def reference_backend() -> Iterator[None]:
    """Everything of fastmsgm in plain PyTorch."""
    before = os.environ.get("FASTMSGM_BACKEND")
    os.environ["FASTMSGM_BACKEND"] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ["FASTMSGM_BACKEND"]
        else:
            os.environ["FASTMSGM_BACKEND"] = before
