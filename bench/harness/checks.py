"""Checks that a provider's result must pass before the provider is timed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

STANDARD_ERRORS = 6  # largest deviation of a mean


def first_and_last(n: int, count: int = 32) -> list[slice]:
    """Return the first and the last ``count`` of n samples.

    The noise is counter-based, so the reference can compute these samples alone.
    """
    return [slice(0, min(count, n)), slice(max(n - count, 0), n)]


def assert_close(
    got: Tensor, wanted: Tensor, relative: float = 5e-6, absolute: float = 0.0
) -> None:
    """Raise AssertionError unless two tensors are equal within tolerances."""
    torch.testing.assert_close(got, wanted, rtol=relative, atol=absolute)


def assert_same_distribution(got: Tensor, ours: Tensor, given: Tensor | None = None) -> None:
    """Raise AssertionError if independent samples have different means or standard deviations.

    Args:
        got: Samples of another provider.
        ours: As many samples of ours.
        given: What both depend on, of the same size, or None. The difference of the two must then
            be uncorrelated with it.
    """
    got, ours = got.double().flatten(), ours.double().flatten()
    error = len(got) ** -0.5
    largest = STANDARD_ERRORS * error
    assert abs(got.mean() - ours.mean()) < largest * torch.hypot(got.std(), ours.std()), (
        "the means differ"
    )
    assert abs(got.std() / ours.std() - 1) < largest, "the standard deviations differ"
    if given is not None:
        pair = torch.stack((got - ours, given.double().flatten()))
        assert abs(torch.corrcoef(pair)[0, 1]) < largest, "the correlations differ"


@contextmanager
def reference_backend() -> Iterator[None]:
    """Run the operations of fastmsgm in plain PyTorch."""
    before = os.environ.get("FASTMSGM_BACKEND")
    os.environ["FASTMSGM_BACKEND"] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ["FASTMSGM_BACKEND"]
        else:
            os.environ["FASTMSGM_BACKEND"] = before
