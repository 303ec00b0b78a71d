"""Training objectives: each is one noising pass, one network call and a mean."""

from __future__ import annotations

from torch import Tensor

from fastmsgm.additive import VPModel
from fastmsgm.gbm_model import GBMModel
from fastmsgm.model import ScoreModel
from fastmsgm.rotation_model import RotationModel

from .gbm import denoising, m_dsm
from .rotation import spherical_denoising
from .sliced import sliced

__all__ = ["denoising", "loss", "m_dsm", "sliced", "spherical_denoising"]


def loss(
    model: ScoreModel, x0: Tensor, stream: Tensor, step: int, levels: tuple[float, float] | None = None,
    labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The model's own training loss on one batch.

    Args:
        x0: (n, ...) float32 states (``model.to_state(data)``).
        stream: the noise stream, on the CPU; row i is sample ``stream[1] + i``, its position in the global batch.
        step: the optimizer step, part of the noise's address.
        levels: the distribution of noise levels of a GBM denoiser; see ``denoising``.
        labels: (n,) the classes of x0, where the model has classes.
    """
    if isinstance(model, VPModel):
        return sliced(model, x0, stream, step)
    if isinstance(model, RotationModel):
        if model.objective == "dsm":
            return spherical_denoising(model, x0, stream, step)
        return sliced(model, x0, stream, step, model.probes)
    assert isinstance(model, GBMModel)
    if model.prediction == "denoiser":
        return denoising(model, x0, stream, step, levels, labels)
    return m_dsm(model, x0, stream, step, labels)
