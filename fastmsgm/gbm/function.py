"""FunctionGBM: a model of geometric Brownian motion around any function.

The function sees x itself, and ``fastmsgm/function.py`` says what it predicts. With y = log|x| =
y_0 + shift + s z, each prediction gives q = x grad_x log p_t(x) and the denoised log-state
D = E[y_0 | y] = y - shift + s^2 (q + 1):

    "score"      q = x score
    "denoised"   D = log|denoised|: the geometric mean of x_0
    "epsilon"    q + 1 = -epsilon / s
    "v"          D = (y - shift) / (s^2 + 1) - s / sqrt(s^2 + 1) v    (Salimans and Ho, 2022)

"v" is the v_prediction of diffusers' schedulers with noise levels that grow without bound, of the
sample y - shift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmsgm.adapter import INDICES, FunctionNet
from fastmsgm.gbm.model import GBMModel
from fastmsgm.gbm.paper_solvers import DaleLangevin
from fastmsgm.gbm.preconditioning import SIGMA_MIN, GBMPreconditioning
from fastmsgm.gbm.prior import LogNormalPrior
from fastmsgm.gbm.process import GBM
from fastmsgm.gbm.solvers import DPMSolverPP2M
from fastmsgm.solver import Solver


class GBMFunctionNet(FunctionNet):
    """Gives a function x and its time, and turns what it predicts into q.

    Args:
        f: As of ``FunctionNet``.
        prediction: As of ``FunctionNet``.
        time: As of ``FunctionNet``.
        process: The forward process.
    """

    def __init__(self, f: Callable[..., Any], prediction: str, time: str, process: GBM) -> None:
        super().__init__(f, prediction, time)
        self.process = process

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        """Return q at x (n, ...) and times c_noise (n,).

        No function is asked below the noise level ``SIGMA_MIN``, where most are undefined.
        """
        process = self.process
        t = c_noise.clamp(min=(SIGMA_MIN / process.sigma) ** 2)
        s = process.sigma * torch.sqrt(t)
        time = {"t": t, "index": INDICES * (t / process.T), "log_sigma": torch.log(s), "sigma": s}
        predicted = self.call(x, time[self.time], condition)
        t, s = (v.view(-1, *[1] * (x.ndim - 1)) for v in (t, s))
        if self.prediction == "hyvarinen":
            return predicted
        if self.prediction == "score":
            return x * predicted
        if self.prediction == "epsilon":
            return -predicted / s - 1
        y = torch.log(x.abs()) - process.log_drift * t
        if self.prediction == "denoised":
            return (torch.log(predicted.abs()) - y) / s**2 - 1
        total = s**2 + 1
        return -y / total - predicted / (s * torch.sqrt(total)) - 1


@dataclass(frozen=True)
class FunctionPreconditioning(GBMPreconditioning):
    """The preconditioning of a function, which is defined at all noise levels.

    Args:
        process: As of ``GBMPreconditioning``.
        prediction: As of ``GBMPreconditioning``.
        log_std: As of ``GBMPreconditioning``.

    Raises:
        ValueError: A process that ends below the smallest noise level.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.process.sigma_max <= SIGMA_MIN:
            raise ValueError(
                f"sigma sqrt(T) must be above {SIGMA_MIN}, got {self.process.sigma_max:g}: raise "
                "sigma"
            )

    @property
    def sigma_min(self) -> float:
        return SIGMA_MIN


class FunctionGBM(GBMModel):
    """A model whose network is a user's function.

    Args:
        f: Function f(x, time, **condition) -> like x.
        process: The forward process.
        prior: Where sampling starts, in the units of the process, with the signs of the data; None
            is log-normal around 1.
        shape: Shape of one sample.
        prediction: What f predicts; see ``fastmsgm.function``.
        time: How f gets the noise level; see ``fastmsgm.function``.

    Raises:
        TypeError: f is not callable, or another argument of the wrong type.
        ValueError: An unknown prediction or time, a process that ends below the noise level 0.002,
            or a prior that does not fit the shape.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        process: GBM,
        prior: LogNormalPrior | None,
        *,
        shape: tuple[int, ...],
        prediction: str,
        time: str,
    ) -> None:
        ones = torch.ones(1, *shape, dtype=torch.float32, device="cpu")
        super().__init__(
            GBMFunctionNet(f, prediction, time, process),
            process,
            LogNormalPrior(ones, 0.0) if prior is None else prior,
            prediction="hyvarinen",
            scale=ones,
            log_std=0.0,  # for a denoiser's preconditioning alone
        )
        self.preconditioning = FunctionPreconditioning(process, "hyvarinen", 0.0)

    @property
    def default_solver(self) -> Solver:
        """SDE-DPM-Solver++(2M), or Dale-Langevin for a process with a drift in log x."""
        return DaleLangevin() if self.process.log_drift else DPMSolverPP2M(eta=1.0)
