"""The evidence lower bound of a denoiser of additive normal noise, y_s = y_0 + s z.

    log p(y_0) >= E[log p_prior(y_S) - log q(y_S | y_0)] - int E|D(y_s) - y_0|^2 / s^2 dl
                  - d log(2 pi e s_min^2) / 2,    l = log s

(Kingma et al., 2021, "Variational diffusion models", equation 11, with SNR = 1 / s^2), where S is
the largest noise level, and the last, reconstructing step is N(y, s_min^2 I). For GBM y is log x.

For normal data of standard deviation sd the squared error has the term c^2 |z|^2 with
c = sd^2 / (s^2 + sd^2). The estimate subtracts c^2 (|z|^2 - d), whose mean is zero for any data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastmsgm import rng

LOG_2PI = math.log(2 * math.pi)


def denoising_bound(
    y0: Tensor,
    noise_levels: tuple[float, float],
    denoised: Callable[[Tensor, Tensor], Tensor],
    log_prior: Callable[[Tensor], Tensor],
    data_std: float,
    stream: Tensor,
    draw: int,
    draws: int,
) -> Tensor:
    """Return one estimate of the bound for each y_0, at one of ``draws`` stratified noise levels.

    Args:
        y0: (n, d) float64.
        noise_levels: The smallest and the largest s.
        denoised: D of states (n, d) at noise levels (n,) on the CPU.
        log_prior: The log-density (n,) of states (n, d) at the largest noise level.
        data_std: sd; it changes the variance of the estimate, not its mean.
        stream: The noise stream, on the CPU.
        draw: 0 .. draws - 1, part of the noise counter.
        draws: Samples of the noise, over which the mean is taken.

    Returns:
        (n,) float64.
    """
    n, d = y0.shape
    low, high = map(math.log, noise_levels)
    uniform = rng.uniforms(n, 1, stream, rng.Purpose.TRAINING_TIME, draw)[:, 0]
    s = torch.exp(low + (high - low) * (draw + uniform) / draws)
    normals = rng.normals(n, d, stream, rng.Purpose.TRAINING_NOISE, draw, torch.float64)
    z, level = normals.to(y0.device), s.to(y0.device)[:, None]
    error = ((denoised(y0 + level * z, s) - y0) / level).square().sum(1)
    squares, c = z.square().sum(1), data_std**2 / (level[:, 0] ** 2 + data_std**2)
    error = error - c**2 * (squares - d)
    log_q = -d * (LOG_2PI / 2 + high) - squares / 2
    prior = log_prior(y0 + noise_levels[1] * z) - log_q
    return prior - (high - low) * error - d * ((LOG_2PI + 1) / 2 + low)
