"""for_data of every family: one pass over tensors, bytes, data sets and loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fastmsgm import GBM, VP, GBMModel, RadialPrior, Rotation, RotationModel, ScoreModel, VPModel
from fastmsgm.nets import MLP, UNet

N = 60
BYTES = torch.randint(0, 256, (N, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
IMAGES = BYTES.float() / 255
LABELS = torch.arange(N) % 3


def gbm(data: Any, **options: Any) -> ScoreModel:
    return GBMModel.for_data(UNet(1, 8, 8), GBM(8.0), data, offset=1.0, **options)


def score(data: Any) -> ScoreModel:
    return gbm(data, prediction="score")


def rotation(data: Any, **options: Any) -> ScoreModel:
    net = UNet(1, 8, 8, condition={"log_norm": 1}, classes=options.get("classes", 0))
    return RotationModel.for_data(net, Rotation(), data, offset=1.0, **options)


def vp(data: Any, **options: Any) -> ScoreModel:
    net = UNet(1, 8, 8, classes=options.get("classes", 0))
    return VPModel.for_data(net, VP(), data, **options)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(IMAGES, LABELS, strict=True))


def assert_same(model: ScoreModel, expected: ScoreModel) -> None:
    """Compare what was fitted to the data: buffers, and numbers in the configuration."""
    buffers, others = dict(model.named_buffers()), dict(expected.named_buffers())
    assert buffers
    for name, value in buffers.items():
        torch.testing.assert_close(value, others[name], rtol=1e-6, atol=1e-6)
    for name in ("log_std", "variance"):
        number = getattr(expected, name, 0.0)
        assert getattr(model, name, 0.0) == pytest.approx(number, rel=1e-6)


@pytest.mark.parametrize("build", [gbm, score, rotation, vp])
@pytest.mark.parametrize(
    "data",
    [
        BYTES,
        IMAGES.double(),
        TensorDataset(IMAGES, LABELS),
        DataLoader(TensorDataset(BYTES, LABELS), 7, shuffle=True),
        Stream(),
    ],
)
def test_every_kind_of_data_gives_the_model_of_the_tensor(
    build: Callable[[Any], ScoreModel], data: Any
) -> None:
    model = build(data)
    assert model.shape == (1, 4, 4)
    assert_same(model, build(IMAGES))


@pytest.mark.parametrize("build", [gbm, rotation, vp])
def test_what_is_fitted_is_float32(build: Callable[[Any], ScoreModel]) -> None:
    assert {b.dtype for b in build(IMAGES.double()).buffers()} == {torch.float32}


@pytest.mark.parametrize("data", [TensorDataset(IMAGES, LABELS), Stream()])
def test_labels_of_the_items_give_the_class_average_start(data: Any) -> None:
    model = gbm(data, labels=True)
    assert_same(model, gbm(IMAGES, labels=LABELS))
    means = torch.stack([part.mean(0) + 1 for part in (IMAGES[0::3], IMAGES[1::3], IMAGES[2::3])])
    assert isinstance(model, GBMModel)
    torch.testing.assert_close(model.means, means)


def test_labels_of_the_items_must_be_classes() -> None:
    net = UNet(1, 8, 8, classes=3)
    data = TensorDataset(IMAGES, LABELS + 1)
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 1 to 3"):
        GBMModel.for_data(net, GBM(8.0), data, offset=1.0, labels=True, classes=3)


@pytest.mark.parametrize("build", [rotation, vp])
def test_classes(build: Callable[..., ScoreModel]) -> None:
    assert build(IMAGES, classes=3).classes == 3


def heavy_tails() -> Tensor:
    z = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    return z / torch.rand(400, 1, generator=torch.Generator().manual_seed(1))


def test_a_pareto_tail_of_data_with_an_offset() -> None:
    net, x = MLP(3, 8, 1, condition={"log_norm": 1}), heavy_tails()
    model = RotationModel.for_data(net, Rotation(), x, pareto=0.1, offset=0.5)
    assert model.prior == RadialPrior.fit(x + 0.5, pareto=0.1)
    assert model.prior.tail == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pareto": 0.7}, r"pareto must be a share in \[0, 0\.5\]"),
        ({"pareto": 1e-5}, "at least one of the 400 norms"),
        ({"pareto": 0.1, "prior": RadialPrior(torch.zeros(9))}, "pareto must be 0 beside a prior"),
    ],
)
def test_a_pareto_tail_is_refused(options: dict[str, Any], message: str) -> None:
    net = MLP(3, 8, 1, condition={"log_norm": 1})
    with pytest.raises(ValueError, match=message):
        RotationModel.for_data(net, Rotation(), heavy_tails(), **options)
