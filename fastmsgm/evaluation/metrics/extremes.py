"""Directions, and those of extremes: where the largest vectors of a set point.

The norms of a heavy-tailed model can be right while its extremes point elsewhere. Extremes are few,
so distances of all vectors, or of all directions, hardly change. The metrics here take the
directions given that the norm is beyond a quantile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastmsgm.checks import check_int, is_number
from fastmsgm.evaluation.metrics.checks import check_pair, check_samples
from fastmsgm.evaluation.metrics.memory import rows_at_a_time
from fastmsgm.evaluation.metrics.wasserstein import sliced_wasserstein

_SPLITS = 16  # random halves of the reference; the figures are means over them
_PROJECTIONS = 128  # of each split, which has its own
# Of chords: rounding to float32 moves each of two directions by up to 2^-24 = 6e-8.
_RESOLUTION = 2e-7


class ConditionalDirections(NamedTuple):
    """How well the directions of two sets' extremes agree.

    Each figure is to be read beside its floor, which is its value where samples and reference have
    the same distribution. Where they differ, sliced Wasserstein is above its floor, and precision
    or recall below its own. Recall is above its floor where the samples scatter more than the
    reference, since the distances to their neighbours are large.

    Attributes:
        sliced_wasserstein: Sliced 2-Wasserstein distance of the directions, in chords: >= 0.
        precision: Share of the samples' directions inside the manifold of the reference's, in
            [0, 1]. Strays lower it.
        recall: Share of the reference's directions inside the manifold of the samples', in [0, 1].
            A missing arm lowers it.
        sliced_wasserstein_floor: Distance of two halves of the reference's directions.
        precision_floor: Precision of one half of the reference against the other.
        recall_floor: Recall of one half of the reference by the other.
        size: Number of directions on each side of a comparison.
    """

    sliced_wasserstein: float
    precision: float
    recall: float
    sliced_wasserstein_floor: float
    precision_floor: float
    recall_floor: float
    size: int


def conditional_directions(
    samples: Tensor,
    reference: Tensor,
    quantile: float = 0.99,
    neighbours: int = 5,
    seed: int = 0,
) -> ConditionalDirections:
    """Compare the directions of two sets given that the norm is beyond a quantile.

    The extremes of n vectors are the round(n (1 - quantile)) with the largest norms of their own
    set, so the scale of a set does not matter, and neither does the rest of its distribution of
    norms. Directions are points on the unit sphere and distances are chords, |u - v| in [0, 2]:
    opposite directions are farthest apart.

    A direction is inside the manifold of a set where, for one member of the set, it is no farther
    away than the member's own k-th nearest neighbour in the set, to within 2e-7, the rounding of
    directions in float32. Neighbours are the same for chords and for angles.

    All three figures depend on the number of directions: with more of them, distances shrink and
    manifolds change. So the figure and its floor compare sets of one size. A random split halves
    the reference's extremes; one half is the reference. The samples' extremes (a random subset of
    them) against that half give the figure, the other half against it the floor. With fewer
    extremes of the samples than in a half, all three have their number. Figures are means over 16
    splits. The splits share vectors: the floor keeps the sampling error of the given reference,
    which only a larger reference reduces. Precision and recall see a single stray less well where
    the other set has strays of its own, since the distances to their neighbours are large: compare
    them with their floors, not with 1.

    Memory stays bounded: distances are taken in chunks. The time grows as the square of the number
    of extremes.

    Args:
        samples: (n, ...) float; the features are flattened.
        reference: (m, ...) float, with the same features on the same device. Twice as many as
            samples, or more, waste none of the samples.
        quantile: Of the norms, in [0, 1).
        neighbours: k, the number of neighbours of the manifolds.
        seed: Seed of splits, subsets and projections, which are the same on every device.

    Returns:
        The three figures, their floors, and the number of directions compared.

    Raises:
        TypeError: A set is not of floating point, or neighbours or seed is not an int.
        ValueError: Wrong shapes, values that are not finite, a quantile or number out of range,
            zero vectors among the extremes, or too few extremes for this number of neighbours.

    Source:
        Kynkaanniemi et al., 2019, "Improved precision and recall metric for assessing generative
        models", for precision and recall.

    Example:
        >>> x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
        >>> far = x.norm(dim=1, keepdim=True) > 2
        >>> result = conditional_directions(torch.where(far, x.abs(), x), x, quantile=0.95)
        >>> result.size  # half of the 5 % of the reference
        100
        >>> result.precision > 0.9, result.recall < 0.5 * result.recall_floor
        (True, True)
    """
    flat = check_pair(("samples", samples), ("reference", reference), least=1)
    if not is_number(quantile) or not 0 <= quantile < 1:
        raise ValueError(
            f"quantile must be in [0, 1), got {quantile!r}: give 0.99 for the largest 1 %"
        )
    neighbours = check_int("neighbours", neighbours, 1)
    seed = check_int("seed", seed, 0, 2**64 - 1)
    ours = _extreme_directions("samples", flat[0], quantile)
    theirs = _extreme_directions("reference", flat[1], quantile)
    size = min(len(ours), len(theirs) // 2)
    if size <= neighbours:
        raise ValueError(
            f"quantile={quantile:g} leaves {len(ours)} extremes of {len(samples)} samples and "
            f"{len(theirs)} of {len(reference)} of the reference, and neighbours={neighbours} "
            f"needs at least {neighbours + 1} and {2 * neighbours + 2}: give more samples, a "
            "smaller quantile or fewer neighbours"
        )
    generator = torch.Generator().manual_seed(seed)

    def shuffled(x: Tensor) -> Tensor:
        order = torch.randperm(len(x), dtype=torch.int64, device="cpu", generator=generator)
        return x[order.to(x.device)]

    rows: list[tuple[float, ...]] = []
    for split in range(_SPLITS):
        projections_seed = (seed + split) % 2**64
        halves = shuffled(theirs)
        half, other = halves[:size], halves[size : 2 * size]
        half_radii = _radii(half, neighbours)
        row = ()
        for x in (shuffled(ours)[:size], other):
            row += (
                sliced_wasserstein(x, half, _PROJECTIONS, projections_seed),
                _share_inside(x, half, half_radii),
                _share_inside(half, x, _radii(x, neighbours)),
            )
        rows.append(row)
    means = [sum(column) / _SPLITS for column in zip(*rows, strict=True)]
    return ConditionalDirections(*means, size=size)


def angle_to_nearest_axis(x: Tensor, axes: Tensor) -> Tensor:
    """Return the angle between each vector and the nearest of several lines through the origin.

    It is accurate for small angles, too, which the arccosine of a product of unit vectors is not.

    Args:
        x: (n, ...) float; the d features are flattened.
        axes: (k, d) float, k >= 1, a vector along each line, of any length and either sign, on the
            same device. For ``correlated_cauchy`` the extremes lie along
            ``axes=synthetic.mixing(d).T``.

    Returns:
        (n,) float64, degrees in [0, 90].

    Raises:
        TypeError: x or axes is not of floating point.
        ValueError: Wrong shapes, no samples, values that are not finite, or zero vectors.

    Example:
        >>> x = torch.tensor([[-2.0, 0.0], [0.1, 0.1]])
        >>> angle_to_nearest_axis(x, torch.eye(2)).tolist()
        [0.0, 45.0]
    """
    u, lines = _unit("x", x), _unit("axes", axes)
    if axes.ndim != 2 or u.shape[1] != lines.shape[1] or u.device != lines.device:
        raise ValueError(
            f"axes must have shape (k, {u.shape[1]}), the features of x, on its device {x.device}, "
            f"got {tuple(axes.shape)} on {axes.device}"
        )
    nearest = lines[torch.cat([(c @ lines.mT).abs().argmax(1) for c in _split(u, len(lines))])]
    along = (u * nearest).sum(1, keepdim=True)
    across = (u - along * nearest).norm(dim=1)
    return torch.atan2(across, along[:, 0].abs()).rad2deg()


def directions(x: Tensor) -> Tensor:
    """Return x / |x|.

    The sliced Wasserstein distance of directions compares sets without their norms.

    Args:
        x: (n, ...) float.

    Returns:
        (n, d) float64.

    Raises:
        TypeError: x is not of floating point.
        ValueError: A wrong shape, no samples, values that are not finite, or zero vectors.
    """
    return _unit("x", x)


def _unit(name: str, x: Tensor) -> Tensor:
    """Return x / |x| of a set (n, ...) as float64 of shape (n, d), checked."""
    x = check_samples(name, x, least=1)
    zero = (x == 0).all(1).nonzero()[:, 0]
    if len(zero):
        raise ValueError(
            f"{name} must have no zero vectors, got {len(zero)}, the first is sample "
            f"{int(zero[0])}: remove them"
        )
    return _normalised(x)


def _normalised(x: Tensor) -> Tensor:
    """Return x / |x| of nonzero x (n, d)."""
    scaled = x / x.abs().amax(1, keepdim=True)  # so that no square overflows or underflows
    return scaled / scaled.norm(dim=1, keepdim=True)


def _extreme_directions(name: str, x: Tensor, quantile: float) -> Tensor:
    """Return the directions (k, d) of those of x (n, d) beyond a quantile of their norms."""
    top = x.abs().amax()
    norms = (x / top if top else x).norm(dim=1)  # whose squares do not overflow
    extremes = x[norms.topk(round(len(x) * (1 - quantile))).indices]
    if bool((extremes == 0).all(1).any()):
        raise ValueError(
            f"{name} must have no zero vectors beyond quantile={quantile:g} of its norms: remove "
            "them, or give a larger quantile"
        )
    return _normalised(extremes)


def _radii(x: Tensor, neighbours: int) -> Tensor:
    """Return the distance of each of x (n, d) to its k-th nearest neighbour in x, (n,)."""
    # One more, since each is nearest to itself.
    return torch.cat(
        [_chords(c, x).kthvalue(neighbours + 1, dim=1).values for c in _split(x, len(x))]
    )


def _share_inside(x: Tensor, others: Tensor, radii: Tensor) -> float:
    """Return the share of x (n, d) within the radius (m,) of one of the others (m, d)."""
    inside = [(_chords(c, others) <= radii + _RESOLUTION).any(1) for c in _split(x, len(others))]
    return torch.cat(inside).double().mean().item()


def _chords(x: Tensor, y: Tensor) -> Tensor:
    # |x|^2 + |y|^2 - 2 x.y would lose the distances of directions that almost agree, and these are
    # what extremes along an axis have.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _split(x: Tensor, columns: int) -> tuple[Tensor, ...]:
    return x.split(rows_at_a_time(columns))
