"""The MSGM authors' formulas, rewritten from their repository: a baseline for ``Rotation``.

    dx = sqrt(beta) G(x) o dW,    G(x)_ik = sum_j G_ijk x_j,    G of squared norm d

"dense" noise has a G of d^3 normals, made skew. "sparse" noise has the 2 d entries of a ring, which
the authors multiply with by gathering and scattering.

Forward and reverse process are integrated in Stratonovich form by the classical Runge-Kutta method
(or Heun's), with constant noise within a step. The loss is sliced score matching with Rademacher
probes, |a|^2 / 2 + div(sqrt(beta) G a), for the network output a = sqrt(beta) G^T score.

Two errors of theirs are not repeated: the drift for eta < 1, which is not used here, and the Python
loop over the rows of a batch in every training step, except in ``perturb_row_by_row``, which is
only timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

BETA_MIN, BETA_MAX, TIME_MIN = 0.1, 20.0, 1e-3
Product = Callable[[Tensor, Tensor], Tensor]  # G(x) w for x (n, d) and w (n, d)
Perturb = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def dense_tensor(d: int, seed: int) -> Tensor:
    """Return G (d, d, d); G^k = [:, :, k] is skew."""
    g = torch.randn(d, d, d, generator=torch.Generator().manual_seed(seed))
    g = g - g.transpose(0, 1)
    return g * (math.sqrt(d) / g.norm())


def dense_product(g: Tensor) -> Product:
    """Return G(x) w = sum_jk G_ijk x_j w_k, which first computes the d^2 numbers of G(x)."""
    return lambda x, w: torch.einsum("nik,nk->ni", torch.einsum("ijk,nj->nik", g, x), w)


def sparse_product(d: int) -> Product:
    """Return G(x) w for the ring, whose G^k rotates features k and k + 1."""
    k = torch.arange(d)
    following = (k + 1) % d
    i, j, source = torch.cat((k, following)), torch.cat((following, k)), torch.cat((k, k))
    values = torch.cat((torch.ones(d), -torch.ones(d))) / math.sqrt(2)
    return lambda x, w: torch.zeros_like(x).index_add_(1, i, values * x[:, j] * w[:, source])


def beta(t: float) -> float:
    """Return beta at time t; it is linear in t."""
    return BETA_MIN + (BETA_MAX - BETA_MIN) * t


def rk4(increment: Callable[[Tensor, float], Tensor], x: Tensor, t: float, dt: float) -> Tensor:
    """Take one step of the classical Runge-Kutta method.

    Args:
        increment: Maps a state and a time to dt times the derivative there, noise included.
        x: The state.
        t: The time.
        dt: Length of the step.
    """
    k1 = increment(x, t)
    k2 = increment(x + k1 / 2, t + dt / 2)
    k3 = increment(x + k2 / 2, t + dt / 2)
    return x + (k1 + 2 * k2 + 2 * k3 + increment(x + k3, t + dt)) / 6


def heun(increment: Callable[[Tensor, float], Tensor], x: Tensor, t: float, dt: float) -> Tensor:
    """Take one step of Heun's method; arguments as of ``rk4``."""
    k1 = increment(x, t)
    return x + (k1 + increment(x + k1, t + dt)) / 2


def forward(g: Tensor, x0: Tensor, steps: int) -> Tensor:
    """Return the whole path, (steps + 1, n, d), by RK4 without correcting the norm, as theirs."""
    path, dt, product = [x0], 1 / steps, dense_product(g)
    for i in range(steps):
        noise = torch.randn_like(x0) * math.sqrt(dt)

        def increment(x: Tensor, t: float, noise: Tensor = noise) -> Tensor:
            return math.sqrt(beta(t)) * product(x, noise)

        path.append(rk4(increment, path[-1], i * dt, dt))
    return torch.stack(path)


def perturb(g: Tensor, x0: Tensor, t: Tensor, steps: int) -> Tensor:
    """Return x_t given x0 (n, d) at the last step before t (n,)."""
    return forward(g, x0, steps)[(t * steps).long().clamp(max=steps), torch.arange(len(x0))]


def perturb_row_by_row(g: Tensor, x0: Tensor, t: Tensor, steps: int) -> Tensor:
    """Do as ``perturb`` the way their code does it.

    Rows are copied one by one. A row whose t is before the first step takes a step of its own.
    """
    path, product, x = forward(g, x0, steps), dense_product(g), torch.zeros_like(x0)
    for k, index in enumerate((t * steps).long().clamp(max=steps)):
        if index > 0:
            x[k] = path[index, k]
            continue
        dt = float(t[k])
        noise = torch.randn_like(x0[k : k + 1]) * math.sqrt(dt)

        def increment(x: Tensor, s: float, noise: Tensor = noise) -> Tensor:
            return math.sqrt(beta(s)) * product(x, noise)

        x[k] = rk4(increment, x0[k : k + 1], 0.0, dt)[0]
    return x


def network_output(net: nn.Module, x: Tensor, t: Tensor, mean: float, std: float) -> Tensor:
    """Return a (n, d) from the direction, t and the standardised log-norm.

    Args:
        net: Module net(x, c_noise, log_norm=...), with c_noise and log_norm (n,).
        x: (n, d) states.
        t: (n,) times.
        mean: Of the log-norms.
        std: Of the log-norms.
    """
    norm = x.norm(dim=1, keepdim=True)
    log_norm = (torch.log(norm[:, 0]) - mean) / std
    return net(math.sqrt(x.shape[1]) * x / norm, t, log_norm=log_norm)


def loss(
    net: nn.Module,
    g: Tensor,
    x0: Tensor,
    steps: int,
    mean: float,
    std: float,
    perturb: Perturb = perturb,
) -> Tensor:
    """Return the loss of sliced score matching at uniform t.

    Args:
        net: As of ``network_output``.
        g: (d, d, d) the dense tensor.
        x0: (n, d) data.
        steps: Forward steps of a path.
        mean: Of the log-norms.
        std: Of the log-norms.
        perturb: ``perturb`` or ``perturb_row_by_row``.
    """
    n, d = x0.shape
    t = TIME_MIN + (1 - TIME_MIN) * torch.rand(n)
    x = perturb(g, x0, t, steps).requires_grad_()
    a = network_output(net, x, t, mean, std)
    v = torch.randint(0, 2, (n, d)).float() * 2 - 1
    ga = torch.sqrt(BETA_MIN + (BETA_MAX - BETA_MIN) * t)[:, None] * dense_product(g)(x, a)
    (gradient,) = torch.autograd.grad((ga * v).sum(), x, create_graph=True)
    return (a.square().sum(1) / 2 + (gradient * v).sum(1)).mean()


@torch.no_grad()
def sample(
    net: nn.Module, g: Tensor, norms: Tensor, steps: int, method: str, mean: float, std: float
) -> Tensor:
    """Integrate the reverse SDE from uniform directions and restore the norms after every step.

    Args:
        net: As of ``network_output``.
        g: (d, d, d) the dense tensor.
        norms: (n,) norms of the samples.
        steps: Reverse steps.
        method: "rk4" or "heun".
        mean: Of the log-norms.
        std: Of the log-norms.
    """
    (n, d), product, dt = (len(norms), g.shape[0]), dense_product(g), 1 / steps
    x = torch.randn(n, d)
    x = x * (norms / x.norm(dim=1))[:, None]
    for i in range(steps):
        noise = torch.randn(n, d) * math.sqrt(dt)

        def increment(x: Tensor, s: float, noise: Tensor = noise) -> Tensor:
            t = max(1 - s, TIME_MIN)
            a = network_output(net, x, torch.full((n,), t), mean, std)
            return math.sqrt(beta(t)) * product(x, a * dt + noise)

        x = {"rk4": rk4, "heun": heun}[method](increment, x, i * dt, dt)
        x = x * (norms / x.norm(dim=1))[:, None]
    return x
