"""The checks of arguments: what passes, and that every error names the argument."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fastmsgm.checks import (
    check_condition,
    check_eta,
    check_floating_point,
    check_int,
    check_labels,
    check_offset,
    check_tensor,
    check_times,
    interval,
    is_number,
    positive,
)

# ---- integers ----


@pytest.mark.parametrize("value", [3, np.int64(3), np.int32(3), np.uint8(3)])
def test_integers_of_python_and_numpy_become_int(value: Any) -> None:
    assert type(check_int("n", value, 1)) is int
    assert check_int("n", value, 1, 3) == 3


@pytest.mark.parametrize(
    "value", [True, False, np.True_, 3.0, np.float64(3), "3", None, [3], torch.tensor(3)]
)
def test_what_is_no_integer_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match=rf"n must be an int, got .*\({type(value).__name__}\)"):
        check_int("n", value, 0)


@pytest.mark.parametrize(
    ("value", "least", "most", "allowed"),
    [
        (0, 1, None, "at least 1, got 0"),
        (-1, 0, 5, r"in 0 \.\. 5, got -1"),
        (6, 0, 5, r"in 0 \.\. 5, got 6"),
        (2**64, 0, 2**64 - 1, r"in 0 \.\. 2\^64 - 1, got 18446744073709551616"),
        (np.int64(-1), 0, 2**64 - 1, r"in 0 \.\. 2\^64 - 1, got -1"),
    ],
)
def test_an_integer_out_of_range_is_a_value_error(
    value: Any, least: int, most: int | None, allowed: str
) -> None:
    with pytest.raises(ValueError, match=f"n must be {allowed}"):
        check_int("n", value, least, most)


# ---- numbers ----


@pytest.mark.parametrize("value", [1, 1.5, np.float32(2), np.int64(3), -1e300])
def test_numbers(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, np.True_, math.nan, math.inf, "1", None, 1j, [1]])
def test_what_is_no_number(value: object) -> None:
    assert not is_number(value)
    with pytest.raises(ValueError, match="x must be a positive number, got"):
        positive("x", value)
    with pytest.raises(ValueError, match="offset must be a finite number, got"):
        check_offset(value)
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\] \(0 the ODE, 1 the SDE\), got"):
        check_eta(value)


def test_positive_numbers_become_float() -> None:
    assert type(positive("x", np.int64(2))) is float
    for wrong in (0, -1.0):
        with pytest.raises(ValueError, match=f"x must be a positive number, got {wrong}"):
            positive("x", wrong)


def test_eta() -> None:
    for eta in (0, 0.5, 1, np.float32(1)):
        assert type(check_eta(eta)) is float
        assert check_eta(eta) == eta
    assert check_eta(7.0, most=math.inf) == 7
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\] .*, got 1\.01"):
        check_eta(1.01)
    with pytest.raises(ValueError, match=r"eta must be finite and at least 0 .*, got -0\.1"):
        check_eta(-0.1, most=math.inf)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, 1), (0.0, 1.0)),
        ([-math.inf, 2.5], (-math.inf, 2.5)),
        ((np.float32(0), math.inf), (0.0, math.inf)),
    ],
)
def test_intervals(bounds: object, expected: tuple[float, float]) -> None:
    assert interval(bounds) == expected


@pytest.mark.parametrize(
    "bounds",
    [(1, 0), (1, 1), (0, math.nan), (0,), (0, 1, 2), "ab", 3, None, ("0", "1"), (False, True)],
)
def test_what_is_no_interval(bounds: object) -> None:
    with pytest.raises(ValueError, match="bounds must be two numbers, the lower one first"):
        interval(bounds)


# ---- tensors ----


def test_tensors() -> None:
    check_tensor("x", torch.ones(2).long())
    check_floating_point("x", torch.ones(2).half())
    wrong: Any
    for wrong in (np.ones(2), [1.0], None):
        with pytest.raises(TypeError, match=f"x must be a tensor, got {type(wrong).__name__}"):
            check_tensor("x", wrong)
        with pytest.raises(TypeError, match=f"x must be a tensor, got {type(wrong).__name__}"):
            check_floating_point("x", wrong)
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64: convert"):
        check_floating_point("x", torch.ones(2).long())


def test_times() -> None:
    t = torch.tensor([0.0, 1.0, 2.0])
    assert check_times(t, 3, 2.0) is t
    with pytest.raises(TypeError, match=r"t must be a tensor of shape \(3,\), got list"):
        check_times([0.0], 3, 2.0)
    with pytest.raises(TypeError, match=r"t must be a tensor of numbers, got torch\.bool"):
        check_times(torch.ones(3) > 0, 3, 2.0)
    for wrong, got in (
        (torch.ones(2), r"\(2,\)"),
        (torch.ones(3, 1), r"\(3, 1\)"),
        (torch.tensor([0.0, 2.5, 1.0]), r"2\.5"),
        (torch.tensor([0.0, math.nan, 1.0]), "nan"),
    ):
        with pytest.raises(
            ValueError, match=rf"t must have shape \(3,\) and values in \[0, 2\], got {got}"
        ):
            check_times(wrong, 3, 2.0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_every_integer_type(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 2, 1]).to(dtype)
    assert check_labels(labels, 3, 3) is labels
    assert check_labels(labels, 3) is labels


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1, 2], TypeError, "labels must be a tensor, got list: convert with torch.as_tensor"),
        (torch.tensor([0.0, 1, 2]), TypeError, r"labels must be integers, got torch\.float32"),
        (torch.tensor([True, False, True]), TypeError, r"labels must be integers, got torch\.bool"),
        (torch.tensor([0, 1]), ValueError, r"labels must have shape \(3,\), .*, got \(2,\)"),
        (torch.tensor([[0], [1], [2]]), ValueError, r"labels must have shape \(3,\), .*\(3, 1\)"),
        (torch.tensor([0, 1, 3]), ValueError, "labels must be from 0 to 2, got 0 to 3: number the"),
        (torch.tensor([0, -1, 2]), ValueError, "labels must be from 0 to 2, got -1 to 2"),
    ],
)
def test_labels_are_refused(labels: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_labels(labels, 3, 3)


def test_values_of_labels_can_be_left_unread() -> None:
    """On a device the host would wait for them."""
    labels = torch.tensor([0, 9, 1])
    assert check_labels(labels, 3, 3, values=False) is labels


# ---- conditions ----


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4)])
def test_conditions_are_float32_of_any_shape(shape: tuple[int, ...]) -> None:
    got = check_condition("size", torch.ones(shape, dtype=torch.float64), 3)
    assert (got.dtype, got.shape) == (torch.float32, shape)


def test_integer_conditions_stay_as_they_are() -> None:
    tokens = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert check_condition("tokens", tokens, 3) is tokens


def test_values_of_conditions_can_be_left_unread() -> None:
    value = torch.tensor([1.0, math.nan, 2.0])
    assert check_condition("size", value, 3, values=False) is value


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("size", [1.0, 2.0, 3.0], TypeError, "condition 'size' must be a tensor, got list"),
        ("size", torch.tensor(1.0), ValueError, r"must have shape \(3, \.\.\.\), .*, got \(\)"),
        ("size", torch.ones(2, 3), ValueError, r"must have shape \(3, \.\.\.\), .*, got \(2, 3\)"),
        ("size", torch.tensor([1, math.nan, 2]), ValueError, "condition 'size' must be finite"),
        ("size", torch.tensor([1, math.inf, 2]), ValueError, "condition 'size' must be finite"),
        ("label", torch.ones(3), ValueError, "condition must not be named 'label', which the pack"),
        ("log_norm", torch.ones(3), ValueError, "condition must not be named 'log_norm', which"),
    ],
)
def test_conditions_are_refused(
    name: str, value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_condition(name, value, 3)
