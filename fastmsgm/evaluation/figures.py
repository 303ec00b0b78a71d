"""The figures of each metric: what ``evaluate`` puts into its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.data.items import as_float
from fastmsgm.evaluation import extractors, fidelity
from fastmsgm.evaluation.extractors import Extractor, inception
from fastmsgm.evaluation.metrics import (
    conditional_directions,
    frechet_distance,
    kolmogorov_smirnov,
    mmd,
    msgm_mmd,
    sliced_wasserstein,
    survival,
)
from fastmsgm.evaluation.report import Figure
from fastmsgm.rotation.prior import TOP_SHARE, hill

FEWEST_OF_FID = 10_000  # samples in each set
_LEVELS = (0.9, 0.99, 0.999)  # quantiles of the reference's norms
_FEWEST_BEYOND = 10  # norms of the reference beyond a level
_CONDITIONAL = 0.99  # quantile of the norms beyond which directions are compared


@dataclass
class Set:
    """A set of samples, and its features, which are computed once.

    Args:
        name: Of the argument, in messages.
        x: (n, ...) floating point, or uint8 images.
        extractor: None where no metric needs one.
        batch_size: Of the extractor.
        device: Of the extractor.
        progress: Show progress bars.
    """

    name: str
    x: Tensor
    extractor: Extractor | None
    batch_size: int
    device: torch.device | str
    progress: bool

    @cached_property
    def features(self) -> Tensor:
        """(n, k) float32."""
        assert self.extractor is not None
        return extractors.features(
            self.extractor, self.x, self.batch_size, self.device, self.progress, self.name
        )

    @property
    def values(self) -> Tensor:
        """(n, d) floating point; images in [0, 1]."""
        x = as_float(self.x) if self.x.dtype == torch.uint8 else self.x
        return x.flatten(1)

    def part(self, n: int) -> Set:
        """Return n samples at random, with their features where this set has its own already.

        Files can be sorted, by class for instance, so the first n are no fair choice.
        """
        words = rng.words(1, -(-len(self.x) // 4), rng.stream(0), rng.Purpose.DATA_ORDER, 0)
        chosen = words.flatten()[: len(self.x)].argsort(stable=True)[:n]
        found = replace(self, x=self.x[chosen.to(self.x.device)])
        if "features" in self.__dict__:
            found.features = self.features[chosen]
        return found


def _fid(samples: Set, reference: Set) -> list[Figure]:
    value = fidelity.fid(samples.features, reference.features)
    name, sizes = _extractor_name(reference), (len(samples.x), len(reference.x))
    own = inception.is_own(reference.extractor)
    if own and min(sizes) >= FEWEST_OF_FID:
        return [Figure("fid", "FID", value, note="torch-fidelity")]
    reason = "features are not those of Inception with torch-fidelity's weights"
    if own:
        reason = f"it needs {FEWEST_OF_FID:,} samples in both sets"
    title = f"Frechet distance, {name}, {sizes[0]:,} samples"
    return [Figure("fid", title, value, note=f"torch-fidelity; not called FID: {reason}")]


def _kid(samples: Set, reference: Set) -> list[Figure]:
    value, deviation = fidelity.kid(samples.features, reference.features)
    size = fidelity.kid_subset_size(samples.features, reference.features)
    own = inception.is_own(reference.extractor)
    title = "KID" if own else f"kernel distance, {_extractor_name(reference)}"
    error = "error is of one subset"
    if deviation is None:
        error = "no error: a subset is all of a set"
    note = f"torch-fidelity, {fidelity.KID_SUBSETS} subsets of {size:,}; {error}"
    return [Figure("kid", title, value, error=deviation, note=note)]


def _prc(samples: Set, reference: Set) -> list[Figure]:
    values = fidelity.precision_recall(samples.features, reference.features)
    note = f"torch-fidelity, {fidelity.NEIGHBOURS} neighbours"
    return [
        Figure("prc", f"{title}, {_extractor_name(reference)}", value, note=note)
        for title, value in zip(("precision", "recall"), values, strict=True)
    ]


def _frechet(samples: Set, reference: Set) -> list[Figure]:
    value = frechet_distance(samples.features, reference.features)
    title = f"Frechet distance, {_extractor_name(reference)}"
    own = inception.is_own(reference.extractor)
    note = "float64; see fid for FID" if own else "float64"
    return [Figure("frechet", title, value, note=note)]


def _mmd(samples: Set, reference: Set) -> list[Figure]:
    a, b = samples.values, reference.values
    value, error = mmd(a, b)
    return [
        Figure("mmd", "MMD, MSGM authors'", msgm_mmd(a, b), note="root, over all pairs"),
        Figure("mmd", "MMD^2", value, error, note="unbiased, median kernel"),
    ]


def _swd(samples: Set, reference: Set) -> list[Figure]:
    value = sliced_wasserstein(samples.values, reference.values)
    return [Figure("swd", "sliced Wasserstein", value, note="order 2, 512 projections")]


def _tails(samples: Set, reference: Set) -> list[Figure]:
    """Tail index, survival at quantiles, Kolmogorov-Smirnov, directions of the extremes."""
    ours, theirs = (s.values.double().norm(dim=1) for s in (samples, reference))
    n, m = len(ours), len(theirs)
    tops = [max(1, round(TOP_SHARE * len(x))) for x in (ours, theirs)]
    index, expected = (
        hill(x.clamp(min=torch.finfo(torch.float64).tiny).log().sort().values, top)
        for x, top in zip((ours, theirs), tops, strict=True)
    )
    figures = [
        Figure(
            "tails",
            "tail index of the norm",
            index,
            error=index / tops[0] ** 0.5,
            expected=expected,
            note=f"Hill, largest {100 * TOP_SHARE:g} %",
        )
    ]
    for level in _LEVELS:
        at = theirs.quantile(level)[None]
        ours_beyond, beyond = (float(survival(x, at)) for x in (ours, theirs))
        if beyond * m < _FEWEST_BEYOND:
            continue
        figures.append(
            Figure(
                "tails",
                f"survival beyond the {100 * level:g} % quantile",
                ours_beyond / beyond,
                error=((1 - beyond) / beyond * (1 / n + 1 / m)) ** 0.5,
                expected=1.0,
                note="of the norm, over the reference's",
            )
        )
    statistic, p = kolmogorov_smirnov(ours, theirs)
    figures.append(
        Figure("tails", "Kolmogorov-Smirnov of the norm", statistic, note=f"p-value {p:.2g}")
    )
    return figures + _directions(samples, reference)


def _directions(samples: Set, reference: Set) -> list[Figure]:
    """Where the largest 1 % point; nothing for sets of too few samples."""
    neighbours = 5
    share = 1 - _CONDITIONAL
    size = min(round(len(samples.x) * share), round(len(reference.x) * share) // 2)
    if size <= neighbours or samples.values.shape[1] < 2:
        return []
    found = conditional_directions(
        samples.values.double(), reference.values.double(), _CONDITIONAL, neighbours
    )
    note = f"of the largest {100 * share:g} %, {found.size} on each side"
    return [
        Figure("tails", f"directions: {title}", value, expected=floor, note=note)
        for title, value, floor in (
            ("sliced Wasserstein", found.sliced_wasserstein, found.sliced_wasserstein_floor),
            ("precision", found.precision, found.precision_floor),
            ("recall", found.recall, found.recall_floor),
        )
    ]


def _extractor_name(s: Set) -> str:
    return s.extractor.name if s.extractor else ""


# Metrics of two sets, by name; ``nearest`` and ``likelihood`` need more.
OF_TWO_SETS: dict[str, Callable[[Set, Set], list[Figure]]] = {
    "fid": _fid,
    "kid": _kid,
    "prc": _prc,
    "frechet": _frechet,
    "mmd": _mmd,
    "swd": _swd,
    "tails": _tails,
}
ON_FEATURES = ("fid", "kid", "prc", "frechet")
