"""Oversampling of the largest norms, which models that keep norms allow without a bias.

The score given the norm does not depend on how often that norm is trained. Sampled uniformly, the
largest norms of heavy-tailed data are too rare for their directions to be learned: a batch of 128
has one of the largest 1 %.
"""

from __future__ import annotations

import logging

from fastmsgm.data.batches import Batches
from fastmsgm.data.loaders import Data
from fastmsgm.model import ScoreModel
from fastmsgm.rotation.prior import FEWEST_OVERSAMPLED, TOP_SHARE, LogNorms, is_heavy_tailed

HEAVY_TAIL_SHARE = 0.5  # of a batch, from the largest 1 % of the norms of heavy-tailed data
_log = logging.getLogger("fastmsgm")


def oversample(
    model: ScoreModel, data: Data, batches: Batches, tail: float | None, transformed: bool
) -> float:
    """Let a share of every batch be samples of the largest 1 % of the norms.

    Norms are read once, before the training: items must not change them.

    Args:
        model: To be trained.
        data: The training data, of any size.
        batches: Of the data; changed in place.
        tail: The share, in [0, 1). None is 0.5 for a model that keeps norms where these data are
            heavy-tailed and their largest 1 % are at least 100, else 0; and 0 where there is an
            obstacle, of which the log tells.
        transformed: Whether samples are transformed after they are read.

    Returns:
        The share of every batch, 0 where nothing is oversampled.

    Raises:
        ValueError: A share above 0 for a model that does not keep norms, with a transform, for a
            loader that oversamples by itself, for data in an order of their own, or of less than
            one sample or all samples of a batch.
    """
    if tail is None:
        return _by_default(model, data, batches, transformed)
    share = float(tail)
    if not share:
        return 0.0
    obstacle = _obstacle(model, batches, share, transformed)
    if obstacle is not None:
        raise ValueError(obstacle)
    batches.check_exact()
    top, count = LogNorms(data, offset=model.offset).top(), _count(batches, share)
    if len(top) < FEWEST_OVERSAMPLED:
        _log.warning(
            "tail=%g makes %d samples of every batch out of the same %d, which the network may "
            "memorise: lower tail, or give at least 10,000 samples",
            share,
            count,
            len(top),
        )
    batches.oversample(top, count)
    return share


def _by_default(model: ScoreModel, data: Data, batches: Batches, transformed: bool) -> float:
    """Oversample heavy-tailed data where that is unbiased; return the share."""
    few = batches.exact and round(TOP_SHARE * (batches.samples or 0)) < FEWEST_OVERSAMPLED
    if not model.keeps_norms or batches.oversampled or few:
        return 0.0
    obstacle = _obstacle(model, batches, HEAVY_TAIL_SHARE, transformed)
    if not batches.exact:  # they may be endless, or read only once
        obstacle = (
            "their order is their own, and the largest norms are not known: if they are "
            "heavy-tailed, give a tensor or a map-style data set"
        )
    else:
        norms = LogNorms(data, offset=model.offset)
        if not is_heavy_tailed(norms.ascending):
            return 0.0
        if obstacle is None:
            batches.oversample(norms.top(), _count(batches, HEAVY_TAIL_SHARE))
            return HEAVY_TAIL_SHARE
    _log.warning("the largest norms of the data are not oversampled: %s", obstacle)
    return 0.0


def _count(batches: Batches, share: float) -> int:
    return round(share * batches.batch_size)


def _obstacle(model: ScoreModel, batches: Batches, share: float, transformed: bool) -> str | None:
    """Return why a share of every batch cannot be of the largest norms, and what to do."""
    if not model.keeps_norms:
        return (
            f"tail must be 0 for a {type(model).__name__}, which does not keep norms and would "
            f"learn another distribution, got {share!r}: leave it out, or train a RotationModel"
        )
    if transformed:
        return (
            "tail must be 0 with a transform, which may change norms and would then bias what the "
            f"model learns, got {share!r}: transform the data before the training, or leave one out"
        )
    if batches.oversampled:
        return (
            "tail must be 0 for a loader with an OversampledOrder, which oversamples already, got "
            f"{share!r}: leave one out"
        )
    if not 0 < _count(batches, share) < batches.batch_size:
        return (
            f"tail must be a share of at least one and not of all of the {batches.batch_size} "
            f"samples of a batch, got {share!r}: give another, or raise batch_size"
        )
    return None
