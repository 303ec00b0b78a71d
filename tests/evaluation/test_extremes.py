"""Directions given the norm: what their figures see, their floors, and angles to axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm.data import synthetic
from fastmsgm.evaluation.metrics import (
    angle_to_nearest_axis,
    conditional_directions,
    directions,
    extremes,
    memory,
    sliced_wasserstein,
)

ARMS = torch.cat([torch.eye(3), -torch.eye(3)])  # (6, 3)


def vectors(n: int, seed: int, arms: Tensor = ARMS, strays: float = 0.0) -> Tensor:
    """Return n normal vectors, of which 1 % are 100 to 200 times as long and near the arms.

    Args:
        n: Number of vectors.
        seed: Of the vectors.
        arms: (k, 3) unit vectors.
        strays: Share of the long vectors that are in all directions.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    count = n // 100
    arm = arms[torch.randint(len(arms), (count,), generator=generator)]
    long = arm + 0.03 * torch.randn(count, 3, generator=generator)
    lost = round(strays * count)
    long[:lost] = torch.randn(lost, 3, generator=generator)
    length = 100 * (1 + torch.rand(count, 1, generator=generator))
    x[:count] = length * long / long.norm(dim=1, keepdim=True)
    return x[torch.randperm(n, generator=generator)]


REFERENCE = vectors(20_000, seed=0)


def test_figures_of_equal_distributions_are_near_their_floors() -> None:
    for seed in (1, 2, 3):
        result = conditional_directions(vectors(10_000, seed), REFERENCE)
        assert result.sliced_wasserstein == pytest.approx(result.sliced_wasserstein_floor, rel=0.5)
        assert result.precision == pytest.approx(result.precision_floor, abs=0.05)
        assert result.recall == pytest.approx(result.recall_floor, abs=0.05)


def test_floors_are_those_of_independent_sets() -> None:
    """The halves of the reference are as far apart as sets of their size that share nothing."""
    rows = [conditional_directions(vectors(10_000, s), vectors(20_000, 50 + s)) for s in range(8)]
    ours, precision, recall, *floors = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    assert ours == pytest.approx(floors[0], rel=0.15)
    assert (precision, recall) == pytest.approx(floors[1:3], abs=0.02)


def test_extremes_that_point_elsewhere_are_seen_here_alone() -> None:
    line = torch.ones(1, 3) / 3**0.5
    x = vectors(10_000, 1, arms=torch.cat([line, -line]))
    result = conditional_directions(x, REFERENCE)
    assert result.sliced_wasserstein > 2 * result.sliced_wasserstein_floor
    assert result.precision < 0.1
    assert result.recall < 0.1
    all_directions = [directions(y) for y in (x, vectors(10_000, 2), REFERENCE[:10_000])]
    distance, floor = (sliced_wasserstein(u, all_directions[2], 64) for u in all_directions[:2])
    assert distance < 1.3 * floor


def test_a_missing_arm_lowers_recall_alone() -> None:
    result = conditional_directions(vectors(10_000, 1, arms=ARMS[1:]), REFERENCE)
    assert result.recall == pytest.approx(result.recall_floor - 1 / 6, abs=0.06)
    assert result.precision == pytest.approx(result.precision_floor, abs=0.05)


def test_strays_lower_precision_alone() -> None:
    result = conditional_directions(vectors(10_000, 1, strays=0.2), REFERENCE)
    assert result.precision == pytest.approx(result.precision_floor - 0.2, abs=0.06)
    assert result.recall > result.recall_floor - 0.05


def test_opposite_directions_differ() -> None:
    result = conditional_directions(vectors(10_000, 1, ARMS[:3]), vectors(20_000, 2, ARMS[3:]))
    assert result.precision == result.recall == 0


def test_each_set_has_its_own_quantile() -> None:
    x = vectors(10_000, 1)
    assert conditional_directions(64 * x, REFERENCE) == conditional_directions(x, REFERENCE)


@pytest.mark.parametrize(("n", "m", "size"), [(10_000, 20_000, 100), (20_000, 7000, 35)])
def test_size_is_that_of_half_of_the_reference(n: int, m: int, size: int) -> None:
    assert conditional_directions(vectors(n, 1), vectors(m, 2)).size == size


def test_size_is_that_of_the_samples_where_they_are_fewer() -> None:
    """The floor has it, too: both of its sides shrink with the figure's."""
    few, many = (
        conditional_directions(vectors(n, 1), REFERENCE, neighbours=3) for n in (1000, 10_000)
    )
    assert few.size == 10
    assert few.sliced_wasserstein_floor > 2 * many.sliced_wasserstein_floor


def test_seed_splits_the_reference() -> None:
    x = vectors(10_000, 1)
    first, again, other = (conditional_directions(x, REFERENCE, seed=s) for s in (3, 3, 4))
    assert first == again
    assert first != other
    assert first == pytest.approx(other, abs=0.05)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, axes = vectors(2000, 1), torch.eye(3)
    whole = conditional_directions(x, REFERENCE), angle_to_nearest_axis(x, axes)
    monkeypatch.setattr(memory, "_HELD", 60)  # 3 rows of the 20 extremes
    parts = conditional_directions(x, REFERENCE), angle_to_nearest_axis(x, axes)
    assert parts[0] == pytest.approx(whole[0], rel=1e-12)
    torch.testing.assert_close(parts[1], whole[1])


def test_a_manifold_reaches_to_the_neighbours() -> None:
    def circle(*degrees: float) -> Tensor:
        angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    members = circle(0, 10, 20, 40)
    radii = extremes._radii(members, 1)  # 10, 10, 10 and 20 degrees, as chords
    expected = 2 * (torch.tensor([10.0, 10.0, 10.0, 20.0]).double().deg2rad() / 2).sin()
    torch.testing.assert_close(radii, expected)
    # 61 degrees is outside of the last, and -11 of the first; 190 is opposite.
    assert extremes._share_inside(circle(5, 31, 59, -9), members, radii) == 1
    assert extremes._share_inside(circle(61, -11, 190, 5), members, radii) == 0.25


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantile": 1.0}, ValueError, r"quantile must be in \[0, 1\), got 1.0: give 0.99 for"),
        ({"quantile": -0.1}, ValueError, r"quantile must be in \[0, 1\), got -0.1"),
        ({"quantile": "0.9"}, ValueError, r"quantile must be in \[0, 1\), got '0.9'"),
        ({"neighbours": 0}, ValueError, "neighbours must be at least 1, got 0"),
        ({"neighbours": 2.0}, TypeError, "neighbours must be an int, got 2.0"),
        ({"seed": -1}, ValueError, "seed must be in 0 .. "),
        (
            {"quantile": 0.9999, "neighbours": 3},
            ValueError,
            r"quantile=0.9999 leaves 1 extremes of 10000 samples and 2 of 20000 of the reference, "
            r"and neighbours=3 needs at least 4 and 8: give more samples, a smaller quantile",
        ),
    ],
)
def test_conditional_directions_refuses(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        conditional_directions(vectors(10_000, 1), REFERENCE, **options)


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (torch.ones(4, 3).int(), TypeError, "samples must be floating point"),
        (torch.ones(4, 2), ValueError, "samples and reference must have the same features"),
        (torch.full((4, 3), torch.nan), ValueError, "samples must be finite, got 12 NaN"),
        (torch.zeros(4000, 3), ValueError, "samples must have no zero vectors beyond quantile=0.9"),
    ],
)
def test_conditional_directions_refuses_sets(
    samples: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        conditional_directions(samples, REFERENCE, quantile=0.9)


def test_numpy_numbers_are_numbers() -> None:
    x = vectors(10_000, 1)
    options: dict[str, Any] = {"quantile": np.float64(0.99), "neighbours": np.int64(5)}
    assert conditional_directions(x, REFERENCE, **options) == conditional_directions(x, REFERENCE)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_norms_whose_squares_are_no_numbers(scale: float) -> None:
    x, reference = vectors(5000, 1).double(), REFERENCE.double()
    expected = conditional_directions(x, reference)
    assert conditional_directions(scale * x, reference) == pytest.approx(expected, abs=1e-9)


def test_equal_rays_are_inside_each_other_whatever_their_dtype() -> None:
    """Rays along lines, whose neighbours are at a distance of 0 or of a rounding."""
    generator = torch.Generator().manual_seed(0)
    lines = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    rays, others = (
        lines[torch.arange(400) % 4]
        * torch.rand(400, 1, generator=generator, dtype=torch.float64).add(1)
        for _ in range(2)
    )
    for x, reference in ((rays.float(), others), (rays, others.float()), (rays, others)):
        result = conditional_directions(x, reference, quantile=0.0)
        assert result[1:3] == (1, 1)
        assert result[4:6] == (1, 1)


# ---- directions and angles ----


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_directions_and_angles_of_vectors_whose_squares_are_no_numbers(scale: float) -> None:
    x, axes = vectors(50, 1).double(), synthetic.mixing(3)
    torch.testing.assert_close(directions(scale * x), directions(x))
    expected = angle_to_nearest_axis(x, axes)
    torch.testing.assert_close(angle_to_nearest_axis(scale * x, axes / scale), expected)


def test_directions() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, -1e-30], [1e30, 1e30]])
    expected = torch.tensor([[0.6, 0.8], [0.0, -1.0], [0.5**0.5, 0.5**0.5]], dtype=torch.float64)
    torch.testing.assert_close(directions(x), expected)
    assert sliced_wasserstein(directions(x), directions(7 * x)) < 1e-7
    with pytest.raises(
        ValueError, match="x must have no zero vectors, got 2, the first is sample 1"
    ):
        directions(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_angle_to_nearest_axis() -> None:
    x = torch.tensor([[5.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-3.0, 0.0, 3.0 * 3**0.5], [0.0, 0.0, 1.0]])
    expected = torch.tensor([0.0, 45.0, 60.0, 90.0], dtype=torch.float64)
    axes = torch.tensor([[2.0, 0.0, 0.0], [0.0, -0.1, 0.0]])
    torch.testing.assert_close(angle_to_nearest_axis(x, axes), expected, rtol=1e-6, atol=1e-6)


def test_the_sign_and_length_of_an_axis_do_not_matter() -> None:
    x, axes = vectors(50, 1), synthetic.mixing(3).float()
    torch.testing.assert_close(
        angle_to_nearest_axis(x.reshape(50, 3, 1), axes), angle_to_nearest_axis(-x, -8 * axes)
    )


@pytest.mark.parametrize("angle", [1e-3, 1e-9, 1e-14])
def test_small_angles_are_accurate(angle: float) -> None:
    x = torch.tensor([[1.0, math.tan(math.radians(angle))]], dtype=torch.float64)
    assert angle_to_nearest_axis(x, torch.eye(2)).item() == pytest.approx(angle, rel=1e-9)


def test_extremes_of_correlated_cauchy_lie_along_the_columns_of_its_matrix() -> None:
    x = synthetic.correlated_cauchy(20_000, d=4, seed=1)
    largest = x[x.norm(dim=1).topk(20).indices]
    assert angle_to_nearest_axis(largest, synthetic.mixing(4).T).median() < 0.1


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (
            torch.eye(3),
            ValueError,
            r"axes must have shape \(k, 2\), the features of x, .* \(3, 3\)",
        ),
        (torch.ones(1, 2, 1), ValueError, r"axes must have shape \(k, 2\), .* got \(1, 2, 1\)"),
        (torch.ones(2), ValueError, r"axes must have shape \(n, \.\.\.\)"),
        (torch.zeros(1, 2), ValueError, "axes must have no zero vectors, got 1"),
        (torch.eye(2).int(), TypeError, "axes must be floating point"),
    ],
)
def test_angle_to_nearest_axis_refuses(axes: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        angle_to_nearest_axis(torch.ones(4, 2), axes)
