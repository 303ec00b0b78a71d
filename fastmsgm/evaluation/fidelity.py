"""FID, KID, precision and recall of features, as torch-fidelity computes them.

Features are extracted once and used by all. The figures are those that
``torch_fidelity.calculate_metrics`` gives for the same images and the same extractor. Needs the
extra ``eval``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000  # at most; fewer samples have subsets of all of them
NEIGHBOURS = 3
_ROWS = 1000  # of the matrix of distances at a time
_SEED = 2020  # torch-fidelity's own


def fid(samples: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance of the Gaussians fitted to features.

    It is FID where the features are Inception's.

    Args:
        samples: (n, k) float32, n >= 2, on the CPU.
        reference: (m, k) float32, m >= 2, on the CPU.

    Raises:
        ImportError: torch-fidelity is missing.
        ValueError: Features that are not finite.

    Source:
        Heusel et al., 2017, "GANs trained by a two time-scale update rule".
    """
    _check_finite(samples, reference)
    module = _torch_fidelity().metric_fid
    statistics = [module.fid_features_to_statistics(x) for x in (samples, reference)]
    return module.fid_statistics_to_metric(*statistics, verbose=False)[module.KEY_METRIC_FID]


def kid(samples: Tensor, reference: Tensor) -> tuple[float, float | None]:
    """Return the squared MMD of features with a cubic kernel, mean and deviation over subsets.

    It is KID where the features are Inception's. 100 random subsets of 1,000 samples are compared,
    or of all samples of the smaller set where it has fewer.

    Args:
        samples: (n, k) float32, n >= 2, on the CPU.
        reference: (m, k) float32, m >= 2, on the CPU.

    Returns:
        The mean, which can be slightly below zero, and the standard deviation of one subset's: None
        where a subset is all of a set, and subsets differ too little, or not at all.

    Raises:
        ImportError: torch-fidelity is missing.
        ValueError: Features that are not finite.

    Source:
        Binkowski et al., 2018, "Demystifying MMD GANs".
    """
    _check_finite(samples, reference)
    module = _torch_fidelity().metric_kid
    size = kid_subset_size(samples, reference)
    found = module.kid_features_to_metric(
        samples,
        reference,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        rng_seed=_SEED,
        verbose=False,
    )
    whole = size in (len(samples), len(reference))
    return found[module.KEY_METRIC_KID_MEAN], None if whole else found[module.KEY_METRIC_KID_STD]


def kid_subset_size(samples: Tensor, reference: Tensor) -> int:
    """Return the number of samples in the subsets of ``kid``."""
    return min(KID_SUBSET_SIZE, len(samples), len(reference))


def precision_recall(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return the shares of samples near the reference, and of the reference near the samples.

    Near is: in the ball around a feature of the other set, as far as its third neighbour.

    Args:
        samples: (n, k) float32, n > 3, on the CPU.
        reference: (m, k) float32, m > 3, on the CPU.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        ImportError: torch-fidelity is missing.
        ValueError: Features that are not finite.

    Source:
        Kynkaanniemi et al., 2019, "Improved precision and recall metric for assessing generative
        models".
    """
    _check_finite(samples, reference)
    module = _torch_fidelity().metric_prc
    found = module.prc_features_to_metric(
        samples,
        reference,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return found[module.KEY_METRIC_PRECISION], found[module.KEY_METRIC_RECALL]


def check_package() -> None:
    """Raise ImportError where torch-fidelity is missing."""
    _torch_fidelity()


def _check_finite(samples: Tensor, reference: Tensor) -> None:
    for name, x in (("samples", samples), ("reference", reference)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name} must have finite features, got NaN or infinity")


def _torch_fidelity() -> Any:
    try:
        import torch_fidelity.metric_fid
        import torch_fidelity.metric_kid
        import torch_fidelity.metric_prc
    except ImportError as error:
        raise ImportError(
            'fid, kid and prc need torch-fidelity: pip install "fastmsgm[eval]"'
        ) from error
    return torch_fidelity
