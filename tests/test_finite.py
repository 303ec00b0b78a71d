"""What is returned is what is tested: samples in the data's own range are finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm import GBM, VP, GBMModel, NonFiniteError, VPModel
from fastmsgm.gbm import LogNormalPrior
from fastmsgm.model import ScoreModel

OPTIONS: dict[str, Any] = {"steps": 2, "batch_size": 4, "progress": False}


class Zero(nn.Module):
    """A network that predicts zero."""

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        return torch.zeros_like(x)


def gbm(scale: float, bounds: tuple[float, float] | None = None) -> ScoreModel:
    means = torch.full((1, 3), scale)
    return GBMModel(
        Zero(),
        GBM(0.8),
        LogNormalPrior(means, 1.0),
        prediction="denoiser",
        scale=means,
        log_std=1.0,
        bounds=bounds,
    )


@pytest.mark.parametrize("bounds", [None, (0.0, 1e38)])
def test_samples_that_overflow_are_reported(bounds: tuple[float, float] | None) -> None:
    model = gbm(3e38, bounds)
    with pytest.raises(NonFiniteError, match="non-finite samples at step 2 in") as caught:
        fastmsgm.sample(model, 8, **OPTIONS)
    state = fastmsgm.sample(gbm(1.0), 8, **OPTIONS)[:4]
    wrong = ~torch.isfinite(state * 3e38).all(1)
    assert caught.value.indices == wrong.nonzero().flatten().tolist()
    assert caught.value.step == 2


def test_large_samples_that_do_not_overflow_are_returned() -> None:
    x = fastmsgm.sample(gbm(1e36, (0.0, 1e37)), 8, **OPTIONS)
    assert bool(torch.isfinite(x).all())
    assert bool((x <= 1e37).all())


def test_samples_that_the_offset_makes_infinite_are_reported() -> None:
    model = gbm(1e36)
    model.offset = -3.4e38
    model.bounds = (0.0, 3.4e38)
    with pytest.raises(NonFiniteError, match="non-finite samples"):
        fastmsgm.sample(model, 8, **OPTIONS)


@pytest.mark.parametrize("buffer", ["mean", "scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vp_with_buffers_that_are_not_finite(buffer: str, value: float) -> None:
    model = VPModel(Zero(), VP(), torch.zeros(1, 3), torch.ones(1, 3))
    getattr(model, buffer)[0, 1] = value
    with pytest.raises(NonFiniteError, match=r"step 8 in 4 samples \(0, 1, 2, 3\): all steps"):
        fastmsgm.sample(model, 8, **OPTIONS)


def test_samples_that_nobody_asked_for_may_overflow() -> None:
    largest = fastmsgm.sample(gbm(1.0), 4, **OPTIONS).amax(1).sort().values
    model = gbm(3.4e38 / float(largest[1:3].mean()))
    with pytest.raises(NonFiniteError) as caught:
        fastmsgm.sample(model, 4, **OPTIONS)
    assert len(caught.value.indices) == 2
    good = next(i for i in range(4) if i not in caught.value.indices)
    assert fastmsgm.sample(model, 1, start=good, **OPTIONS).shape == (1, 3)


def test_finished_chunks_are_kept_where_a_later_one_overflows() -> None:
    model = gbm(1.0)
    original, chunks = model.to_data, []

    def to_data(state: Tensor) -> Tensor:
        chunks.append(state)
        return original(state) if len(chunks) == 1 else original(state) / 0

    model.to_data = to_data  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"in 4 samples \(4, 5, 6, 7\)") as caught:
        fastmsgm.sample(model, 8, **OPTIONS)
    assert caught.value.samples is not None
    assert torch.equal(caught.value.samples, fastmsgm.sample(gbm(1.0), 4, **OPTIONS))
