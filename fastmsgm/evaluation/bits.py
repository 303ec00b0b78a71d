"""bits_per_dimension: the likelihood of 8-bit images, by uniform dequantisation.

The levels 0 .. 255 of the data's range [0, 1] are cells of width 1/255. With y = (k + u) / 255,
u uniform on (-1/2, 1/2) and independent for each pixel, Jensen's inequality gives a bound on the
probability of an image k of d numbers (Theis et al., 2016),

    -log2 P(k) / d <= -E log2 p(y) / d + log2 255,

where p is the density under the model. Cells stay where the model has learnt the levels, so that
those at the ends of the range reach beyond it by half a cell.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.checkpoint import load
from fastmsgm.checks import check_int, check_tensor
from fastmsgm.evaluation.likelihood import TOLERANCE, log_likelihood
from fastmsgm.model import ScoreModel, check_model


@dataclass(frozen=True, repr=False)
class BitsPerDimension:
    """Bits per dimension of images.

    Args:
        draws: (draws, n) float64, of each image for each sample of the dequantisation.
        settings: How they were computed, as JSON can hold it.
    """

    draws: Tensor
    settings: dict[str, Any]

    @property
    def values(self) -> Tensor:
        """(n,) float64, the mean over the samples of the dequantisation."""
        return self.draws.mean(0)

    @property
    def mean(self) -> float:
        """The mean over images and samples of the dequantisation."""
        return float(self.draws.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean over images; NaN for one. The noise is part of it."""
        n = self.draws.shape[1]
        return float(self.values.std()) / math.sqrt(n) if n > 1 else math.nan

    @property
    def noise_error(self) -> float:
        """The standard error of the mean for these images: of dequantisation and probes alone.

        NaN for one sample of the dequantisation.
        """
        if len(self.draws) == 1:
            return math.nan
        return float(self.draws.var(0).mean() / self.draws.numel()) ** 0.5

    def __repr__(self) -> str:
        draws, n = self.draws.shape
        return (
            f"BitsPerDimension(mean={self.mean:.6g}, standard_error={self.standard_error:.2g}, "
            f"n={n}, draws={draws})"
        )


def bits_per_dimension(
    model: ScoreModel | str | os.PathLike[str],
    images: Tensor,
    *,
    draws: int = 1,
    label: int | Sequence[int] | Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
    solver: str = "dopri5",
    steps: int | None = None,
    rtol: float = TOLERANCE,
    atol: float = TOLERANCE,
    probes: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> BitsPerDimension:
    """Return the bits per dimension of 8-bit images, a bound, averaged over dequantisation noise.

    Args:
        model: As of ``log_likelihood``, of data in [0, 1].
        images: (n, ...) uint8, or float in [0, 1] with the levels k / 255.
        draws: Samples of the dequantisation for each image; more than one gives ``noise_error``.
        label: As of ``log_likelihood``, like all arguments after it; the bits are those given the
            class.
        condition: Tensors (n, ...) by name.
        solver: "dopri5", "rk4" or "heun".
        steps: Of "rk4" and "heun".
        rtol: Of "dopri5".
        atol: Of "dopri5".
        probes: Of Hutchinson's estimate.
        seed: Of the dequantisation and the probes; sample k of it has the seed ``seed + k``.
        batch_size: Samples at a time.
        progress: Show progress bars.

    Returns:
        The bits with their mean and standard errors.

    Raises:
        TypeError: An argument of the wrong type; the message names it.
        ValueError: Images that are not of 8 bits, a model whose bounds are not [0, 1], or as of
            ``log_likelihood``.
    """
    model = check_model(load(model) if isinstance(model, (str, os.PathLike)) else model)
    if model.bounds not in (None, (0.0, 1.0)):
        raise ValueError(
            f"model must have the bounds (0, 1) or None, got {model.bounds}: the levels of "
            "images are k / 255 here; train on images in [0, 1], or use log_likelihood"
        )
    levels, draws = _levels(images), check_int("draws", draws, 1)
    seed = check_int("seed", seed, 0, 2**64 - draws)
    n, d = levels.flatten(1).shape
    bits, settings = [], {}
    for draw in range(seed, seed + draws):
        purpose = rng.Purpose.AUGMENTATION
        noise = rng.uniforms(n, -(-d // 4), rng.stream(draw, 0), purpose, 1)[:, :d] - 0.5
        result = log_likelihood(
            model,
            (levels + noise.view_as(levels)) / 255,
            label=label,
            condition=condition,
            solver=solver,
            steps=steps,
            rtol=rtol,
            atol=atol,
            probes=probes,
            seed=draw,
            batch_size=batch_size,
            progress=progress,
        )
        bits.append(math.log2(255) - result.values / (d * math.log(2)))
        settings = {**result.settings, "seed": seed, "draws": draws, "dequantisation": "uniform"}
    return BitsPerDimension(torch.stack(bits), settings)


def _levels(images: Tensor) -> Tensor:
    """Return the levels 0 .. 255 of images as float64 on the CPU."""
    check_tensor("images", images)
    if images.dtype == torch.uint8:
        return images.detach().cpu().double()
    if not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating point in [0, 1], got {images.dtype}")
    scaled = images.detach().cpu().double() * 255
    levels = scaled.round().clamp(0, 255)
    error = float((scaled - levels).abs().max()) if images.numel() else 0.0
    if not error < 1e-3:
        raise ValueError(
            "images must have the levels k / 255, k = 0 .. 255, got values up to "
            f"{error:.2g} / 255 from them: give the images of 8 bits themselves; other data have a "
            "density, log_likelihood"
        )
    return levels
