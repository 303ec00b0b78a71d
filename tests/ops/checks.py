"""Checks that the tests of several operations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.ops.backends import CPU, Backend
from tests.ops.cases import Case, StepCase


def opcheck(op: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check what PyTorch's dispatcher, tracers and compiler need of an operation."""
    torch.library.opcheck(getattr(torch.ops.fastmsgm, op.__name__).default, args, kwargs)


def assert_bits_of_samples(case: Case, backend: Backend) -> None:
    """Assert that bits depend neither on threads nor on how samples are split over calls."""
    n = len(getattr(case, case.state))
    torch.set_num_threads(1)
    whole = case.run(backend)
    torch.set_num_threads(3)
    together = case.run(backend) if backend is CPU else whole
    parts = [case.part(rows).run(backend) for rows in (slice(0, n // 3 + 1), slice(n // 3 + 1, n))]
    for name, expected in whole.items():
        assert torch.equal(together[name], expected)
        assert torch.equal(torch.cat([part[name] for part in parts]), expected)


def assert_same_in_place(case: StepCase, backend: Backend) -> None:
    """Assert that a step in place has the bits of one out of place."""
    outside, inside = (case.run(backend, in_place=in_place) for in_place in (False, True))
    for name, tensor in outside.items():
        assert torch.equal(tensor, inside[name])


def assert_same_op_in_place(
    in_place: Callable[..., None],
    out_of_place: Callable[..., Tensor],
    case: StepCase,
    shape: tuple[int, ...] | None = None,
    **changes: Any,
) -> None:
    """Assert that both ops of a step do the same, and that out of place keeps the state."""
    inside, outside = (case.op_arguments(shape, **changes) for _ in range(2))
    before = outside[case.state].clone()
    in_place(**inside)
    out = out_of_place(**outside)
    assert torch.equal(out, inside[case.state])
    assert torch.equal(outside[case.state], before)
    assert not torch.equal(out, before)
    for name, tensor in inside.items():
        if isinstance(tensor, Tensor) and name != case.state:
            assert torch.equal(tensor, outside[name])


def assert_compiles(
    function: Callable[..., tuple[Tensor, ...]], inputs: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Assert that a function compiles as one graph that returns and writes what it does eagerly.

    Return the inputs as they are afterwards.
    """
    torch.compiler.reset()
    eager, compiled = inputs(), inputs()
    expected = function(*eager)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*compiled)
    for a, b in zip((*expected, *eager), (*got, *compiled), strict=True):
        assert torch.equal(a, b)
    return eager


def assert_any_shape(
    op: Callable[..., object], case: Case, shape: tuple[int, ...], **changes: Any
) -> None:
    """Assert that an array of any shape is taken for a list of rows."""
    given, flat = case.op_arguments(shape, **changes), case.op_arguments()
    op(**given)
    op(**flat)
    for name, tensor in given.items():
        if isinstance(tensor, Tensor):
            assert torch.equal(tensor.flatten(), flat[name].flatten()), name


def transposed(*shape: int) -> Tensor:
    """Return ones of a shape in the memory of its transpose."""
    return torch.ones(shape[::-1]).T


def directions(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)
