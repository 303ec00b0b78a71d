"""GBMPreconditioning: what a network's raw output f means, at every noise level s.

A network predicts one of three things; all of them give the denoised log-state D = E[y_0 | y_t]:

    "denoiser"    D = c_skip y + c_out f(c_in y, log(s) / 4)     (EDM; Karras et al., 2022)
    "hyvarinen"   q = x grad_x log p_t(x) = f(x, t), elementwise: the score of y, minus 1
    "score"       grad_x log p_t(x) = f(x, t), the Stein score; q = x f

with D = y - shift + s^2 (q + 1) for the last two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastmsgm.gbm.process import GBM
from fastmsgm.types import Array

PREDICTIONS = ("denoiser", "hyvarinen", "score")
SIGMA_MIN = 0.002  # of a denoiser: half a grey level of an 8-bit image shifted to [1, 2]
TRAINING_LEVELS = 1000  # N, the paper's number of noise levels, at which score networks train


@dataclass(frozen=True)
class GBMPreconditioning:
    """What solvers and losses need to know of a GBM model.

    Args:
        process: The forward process.
        prediction: What the network predicts, "denoiser", "hyvarinen" or "score".
        log_std: Standard deviation of log(x / scale) over the data; used by a denoiser alone.

    Raises:
        TypeError: process is not a GBM.
        ValueError: An unknown prediction, or, with a denoiser, a drift, a sigma below the smallest
            noise level, or a log_std that is not positive (data that do not vary).
    """

    process: GBM
    prediction: str
    log_std: float

    def __post_init__(self) -> None:
        if not isinstance(self.process, GBM):
            raise TypeError(
                f"process must be a GBM, got {type(self.process).__name__}: give GBM(sigma=...)"
            )
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction must be one of {', '.join(PREDICTIONS)}, got {self.prediction!r}"
            )
        object.__setattr__(self, "log_std", float(self.log_std))
        if not self.denoiser:
            return
        if self.process.log_drift:
            raise ValueError(
                f"a denoiser needs mu = sigma^2 / 2, got {self.process}: leave mu out, or predict "
                "a score"
            )
        if not 0 < self.log_std < math.inf:
            raise ValueError(
                f"log_std must be positive, got {self.log_std}: a denoiser needs data that vary"
            )
        if self.process.sigma_max <= SIGMA_MIN:
            raise ValueError(
                f"sigma sqrt(T) must be above {SIGMA_MIN} for a denoiser, got "
                f"{self.process.sigma_max:g}: raise sigma"
            )

    @property
    def denoiser(self) -> bool:
        """Whether the network is a preconditioned denoiser, which sees c_in log|x|, not x."""
        return self.prediction == "denoiser"

    @property
    def sigma_min(self) -> float:
        """The smallest noise level of training, from which solvers step to 0."""
        return SIGMA_MIN if self.denoiser else self.process.sigma_max / math.sqrt(TRAINING_LEVELS)

    def c_noise(self, s: Array) -> Array:
        """Return what tells the network the noise level: log(s) / 4, or the time t for scores."""
        return np.log(s) / 4 if self.denoiser else (s / self.process.sigma) ** 2

    def shift(self, s: Array) -> Array:
        """Return the shift of the log-mean at noise levels s."""
        return self.process.log_drift * (s / self.process.sigma) ** 2

    def coefficients(self, s: Array) -> Array:
        """Return k0, k1, k2, c_in at noise levels s: D = k0 y + k1 g + k2, input c_in y.

        g is f, or x f for a Stein score. At s = 0 the denoised state is y itself and tells nothing
        about the score: there the row is 1, 1, 1, 1, so that D - y = q + 1 is the score of y, which
        the denoising passes of the paper's samplers use.

        Args:
            s: (R,) noise levels.

        Returns:
            (R, 4) float64.
        """
        one = np.ones_like(s)
        if self.denoiser:
            total = np.sqrt(s**2 + self.log_std**2)
            c_skip, c_out = self.log_std**2 / total**2, s * self.log_std / total
            return np.stack((c_skip, c_out, 0 * one, 1 / total), axis=1)
        square = np.where(s > 0, s**2, 1.0)
        return np.stack((one, square, square - self.shift(s), one), axis=1)
