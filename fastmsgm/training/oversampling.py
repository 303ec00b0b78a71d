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
from fastmsgm.rotation.prior import FEWEST_OVERSAMPLED, LogNorms

_log = logging.getLogger("fastmsgm")


def oversample(model: ScoreModel, data: Data, batches: Batches, tail: float | None) -> float:
    """Let a share of every batch be samples of the largest 1 % of the norms.

    Args:
        model: To be trained.
        data: The training data, which are read once.
        batches: Of the data; changed in place.
        tail: The share, in [0, 1); None is ``model.default_tail``, or 0 where that cannot be.

    Returns:
        The share that was asked for, or the default one.

    Raises:
        ValueError: A share above 0 for a model that does not keep norms, for data in an order of
            their own, or of less than one sample or all samples of a batch.
    """
    share = model.default_tail if tail is None else float(tail)
    if not share:
        return 0.0
    obstacle = _obstacle(model, batches, share)
    if obstacle is None:
        top, count = LogNorms(data, offset=model.offset).top(), round(share * batches.batch_size)
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
    if tail is not None:
        raise ValueError(obstacle)
    _log.warning("heavy-tailed data are trained without oversampling: %s", obstacle)
    return 0.0


def _obstacle(model: ScoreModel, batches: Batches, share: float) -> str | None:
    """Return why a share of every batch cannot be of the largest norms, and what to do."""
    if not model.keeps_norms:
        return (
            f"tail must be 0 for a {type(model).__name__}, which does not keep norms and would "
            f"learn another distribution, got {share!r}: leave it out, or train a RotationModel"
        )
    if not batches.exact:
        return (
            "tail must be 0 for data in an order of their own, whose largest norms are not known, "
            f"got {share!r}: give a tensor, a map-style data set, or a loader without a sampler of "
            "your own"
        )
    if not 0 < round(share * batches.batch_size) < batches.batch_size:
        return (
            f"tail must be a share of at least one and not of all of the {batches.batch_size} "
            f"samples of a batch, got {share!r}: give another, or raise batch_size"
        )
    return None
