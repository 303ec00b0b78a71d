"""The MSGM authors' formulas, written anew from their repository: what ``Rotation`` is compared with.

    dx = sqrt(beta) G(x) o dW,  G(x)_ik = sum_j G_ijk x_j,  G of squared norm d: of d^3 normals, made skew ("dense"), or
    of the 2 d entries of a ring, which they multiply with by gathering and scattering ("sparse")

Forward and reverse are integrated by the classical Runge-Kutta method (or Heun's) with the noise of a step held, in
Stratonovich form; the loss is sliced score matching with Rademacher probes, |a|^2 / 2 + div(sqrt(beta) G a), on the
network's a = sqrt(beta) G^T score. Two of their slips are not repeated: the drift for lambda > 0, of which nothing is
used here, and (but for ``noised_by_rows``, which is only timed) the Python loop over rows of every training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

BETA_MIN, BETA_MAX, TIME_MIN = 0.1, 20.0, 1e-3
Product = Callable[[Tensor, Tensor], Tensor]  # G(x) w of x (n, d) and w (n, d)
Noising = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def dense_tensor(d: int, seed: int) -> Tensor:
    """(d, d, d), G^k = [:, :, k] skew."""
    g = torch.randn(d, d, d, generator=torch.Generator().manual_seed(seed))
    g = g - g.transpose(0, 1)
    return g * (math.sqrt(d) / g.norm())


def dense_product(g: Tensor) -> Product:
    """G(x) w = sum_jk G_ijk x_j w_k, by way of G(x), d^2 numbers a sample."""
    return lambda x, w: torch.einsum("nik,nk->ni", torch.einsum("ijk,nj->nik", g, x), w)


def sparse_product(d: int) -> Product:
    """G(x) w of the ring, whose G^k turns features k and k + 1 into each other."""
    k = torch.arange(d)
    ahead = (k + 1) % d
    i, j, of = torch.cat((k, ahead)), torch.cat((ahead, k)), torch.cat((k, k))
    values = torch.cat((torch.ones(d), -torch.ones(d))) / math.sqrt(2)
    return lambda x, w: torch.zeros_like(x).index_add_(1, i, values * x[:, j] * w[:, of])


def beta(t: float) -> float:
    """Linear in t."""
    return BETA_MIN + (BETA_MAX - BETA_MIN) * t


def rk4(move: Callable[[Tensor, float], Tensor], x: Tensor, t: float, dt: float) -> Tensor:
    """One step of the classical Runge-Kutta method, ``move`` being the whole increment at a state and a time."""
    k1 = move(x, t)
    k2 = move(x + k1 / 2, t + dt / 2)
    k3 = move(x + k2 / 2, t + dt / 2)
    return x + (k1 + 2 * k2 + 2 * k3 + move(x + k3, t + dt)) / 6


def heun(move: Callable[[Tensor, float], Tensor], x: Tensor, t: float, dt: float) -> Tensor:
    """One step of Heun's method."""
    k1 = move(x, t)
    return x + (k1 + move(x + k1, t + dt)) / 2


def forward(g: Tensor, x0: Tensor, steps: int) -> Tensor:
    """The whole path, (steps + 1, n, d), by RK4 without any correction of the norm, as theirs."""
    path, dt, product = [x0], 1 / steps, dense_product(g)
    for i in range(steps):
        noise = torch.randn_like(x0) * math.sqrt(dt)
        path.append(rk4(lambda x, t, noise=noise: math.sqrt(beta(t)) * product(x, noise), path[-1], i * dt, dt))
    return torch.stack(path)


def noised(g: Tensor, x0: Tensor, t: Tensor, steps: int) -> Tensor:
    """x_t of x0 (n, d) at the step below t (n,)."""
    return forward(g, x0, steps)[(t * steps).long().clamp(max=steps), torch.arange(len(x0))]


def noised_by_rows(g: Tensor, x0: Tensor, t: Tensor, steps: int) -> Tensor:
    """``noised`` as their code goes about it: copied row by row, and one step for itself where t is below the first."""
    path, product, x = forward(g, x0, steps), dense_product(g), torch.zeros_like(x0)
    for k, index in enumerate((t * steps).long().clamp(max=steps)):
        if index > 0:
            x[k] = path[index, k]
            continue
        dt = float(t[k])
        noise = torch.randn_like(x0[k : k + 1]) * math.sqrt(dt)
        x[k] = rk4(lambda x, s, noise=noise: math.sqrt(beta(s)) * product(x, noise), x0[k : k + 1], 0.0, dt)[0]
    return x


def network_output(net: nn.Module, x: Tensor, t: Tensor, centre: float, spread: float) -> Tensor:
    """a (n, d) from the direction, the standardised log-norm and t."""
    norm = x.norm(dim=1, keepdim=True)
    condition = torch.stack((t, (torch.log(norm[:, 0]) - centre) / spread), dim=1)
    return net(math.sqrt(x.shape[1]) * x / norm, condition)


def loss(
    net: nn.Module, g: Tensor, x0: Tensor, steps: int, centre: float, spread: float, noising: Noising = noised
) -> Tensor:
    """Sliced score matching at uniform t on a path of so many steps."""
    n, d = x0.shape
    t = TIME_MIN + (1 - TIME_MIN) * torch.rand(n)
    x = noising(g, x0, t, steps).requires_grad_()
    a = network_output(net, x, t, centre, spread)
    v = torch.randint(0, 2, (n, d)).float() * 2 - 1
    ga = torch.sqrt(BETA_MIN + (BETA_MAX - BETA_MIN) * t)[:, None] * dense_product(g)(x, a)
    (gradient,) = torch.autograd.grad((ga * v).sum(), x, create_graph=True)
    return (a.square().sum(1) / 2 + (gradient * v).sum(1)).mean()


@torch.no_grad()
def sample(net: nn.Module, g: Tensor, norms: Tensor, steps: int, method: str, centre: float, spread: float) -> Tensor:
    """The reverse SDE (lambda = 0) from uniform directions times ``norms``, by "rk4" or "heun", norms restored."""
    (n, d), product, dt = (len(norms), g.shape[0]), dense_product(g), 1 / steps
    x = torch.randn(n, d)
    x = x * (norms / x.norm(dim=1))[:, None]
    for i in range(steps):
        noise = torch.randn(n, d) * math.sqrt(dt)

        def move(x: Tensor, s: float, noise: Tensor = noise) -> Tensor:
            t = max(1 - s, TIME_MIN)
            a = network_output(net, x, torch.full((n,), t), centre, spread)
            return math.sqrt(beta(t)) * product(x, a * dt + noise)

        x = {"rk4": rk4, "heun": heun}[method](move, x, i * dt, dt)
        x = x * (norms / x.norm(dim=1))[:, None]
    return x
