"""Score matching of GBM beside ``MDSMLoss``: with the true score, and with no noise as a target.

With q = x grad_x log p_t(x), elementwise, and the noise levels and weights s^4 of ``MDSMLoss``:

    M-DSM           E s^4 |q_net - q(x_t | x_0)|^2                       (``MDSMLoss``)
    M-ESM           E s^4 |q_net - q(x_t)|^2                             (``MESMLoss``)
    non-negative    E s^4 [|q_net|^2 + sum_i (2 q_i + 2 x_i d q_i / d x_i)]

They differ by constants, so they have one minimum. The first two are equations of "Dale meets
Langevin" (arXiv 2510.02730); the last is score matching for non-negative data (Hyvarinen, 2007,
"Some extensions of score matching"), twice its J. In y = log x it is implicit score matching.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm.gbm.loss import broadcast, perturb_to_paper_levels, score_preconditioning
from fastmsgm.model import ScoreModel
from fastmsgm.names import name_of
from fastmsgm.probes import check_probes, sample_probes

EXACT = "exact"


@dataclass(frozen=True, repr=False)
class MESMLoss:
    """Multiplicative explicit score matching: the distance to the true score, where it is known.

    For a model with ``prediction="hyvarinen"`` or ``"score"``, at the noise levels and with the
    weights of ``MDSMLoss``.

    Args:
        score: Function (x, t) -> grad_x log p_t(x), the Stein score of the noised data, like x
            (n, ...), for times t (n,) in [0, T] and x in the units of the process.

    Raises:
        TypeError: score is not callable.
    """

    score: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise TypeError(
                f"score must be a function (x, t) -> score, got {type(self.score).__name__}"
            )

    def __repr__(self) -> str:
        return f"MESMLoss(score={name_of(self.score)})"

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        stream: Tensor,
        step: int,
        **condition: Tensor,
    ) -> Tensor:
        """Return (n,) losses of a batch; see ``ScoreModel.default_loss``.

        Raises:
            TypeError: The model is not a score network of GBM.
            ValueError: The true score has another shape than x.
        """
        preconditioning = score_preconditioning(self, model)
        x_t, _, s, t = perturb_to_paper_levels(preconditioning, x0, stream, step)
        f = model(x_t, t, **condition).float()
        with torch.no_grad():
            truth = self.score(x_t, t)
        if truth.shape != x_t.shape:
            raise ValueError(
                f"score must return a tensor of the shape of x, {tuple(x_t.shape)}, got "
                f"{tuple(truth.shape)}"
            )
        q = x_t * f if preconditioning.prediction == "score" else f
        (square,) = broadcast(x0, s**2)
        return (square * (q - x_t * truth)).square().flatten(1).mean(1)


@dataclass(frozen=True)
class NonNegativeScoreMatching:
    """Implicit score matching of the noised data for non-negative data (Hyvarinen, 2007).

    For a model with ``prediction="hyvarinen"`` or ``"score"``, at the noise levels and with the
    weights of ``MDSMLoss``. It needs neither the true score nor the noise, but a derivative of the
    network in its input. Its variance is larger than that of M-DSM.

    Args:
        probes: Distribution of the probes of Hutchinson's estimate of the divergence,
            "rademacher", "gaussian" or "sphere", or "exact" for the divergence itself, which takes
            a backward pass for every feature.

    Raises:
        ValueError: An unknown distribution.
    """

    probes: str = "rademacher"

    def __post_init__(self) -> None:
        check_probes(self.probes, others=(EXACT,))

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        stream: Tensor,
        step: int,
        **condition: Tensor,
    ) -> Tensor:
        """Return (n,) losses of a batch; see ``ScoreModel.default_loss``.

        Raises:
            TypeError: The model is not a score network of GBM.
        """
        preconditioning = score_preconditioning(self, model)
        x_t, _, s, t = perturb_to_paper_levels(preconditioning, x0, stream, step)
        n, d = x0.flatten(1).shape
        v = (
            None
            if self.probes == EXACT
            else sample_probes(self.probes, n, d, stream.to(x0.device), step)
        )
        training = torch.is_grad_enabled()
        with torch.enable_grad():  # the divergence is a derivative in an evaluation too
            x = x_t.flatten(1).requires_grad_()
            f = model(x.view_as(x0), t, **condition).float().flatten(1)
            q = x * f if preconditioning.prediction == "score" else f
            integrand = non_negative_integrand(q, x, v, training)
        square = broadcast(integrand, s**2)[0]
        return square.square() * integrand / d


def non_negative_integrand(q: Tensor, x: Tensor, v: Tensor | None, training: bool) -> Tensor:
    """Return |q|^2 + sum_i (2 q_i + 2 x_i d q_i / d x_i), (n,).

    Args:
        q: (n, d), computed from x with gradients.
        x: (n, d).
        v: (n, d) probes of Hutchinson's estimate, or None for the exact divergence.
        training: Whether the result is to have a gradient.
    """
    with torch.autocast(x.device.type, enabled=False):  # which reaches backward passes too
        if v is not None:
            (gradient,) = torch.autograd.grad((q * v).sum(), x, create_graph=training)
            divergence = (v * x * gradient).sum(1)
        else:
            columns = [
                torch.autograd.grad(q[:, i].sum(), x, create_graph=training, retain_graph=True)[0][
                    :, i
                ]
                for i in range(x.shape[1])
            ]
            divergence = (x * torch.stack(columns, dim=1)).sum(1)
    return (q.square() + 2 * q).sum(1) + 2 * divergence
