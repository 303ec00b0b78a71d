"""fit(tail=...): what is oversampled, by default and when asked, without a bias, and errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fastmsgm import Loss, ScoreModel, fit
from fastmsgm.data import Batches, OversampledOrder
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.nets import MLP
from fastmsgm.rotation import Rotation, RotationModel, SphericalDenoisingLoss
from fastmsgm.sde import VP, VPModel
from fastmsgm.training.oversampling import oversample

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")


def vectors(n: int = 10_000, heavy: bool = True, seed: int = 0) -> Tensor:
    """Vectors (n, 3): Cauchy or Gaussian, and more of them on one side."""
    z = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return (z[:, :3] + 1) / z[:, 3:].abs() if heavy else z[:, :3] + 1


DATA = vectors()
TOP = DATA.norm(dim=1).argsort()[-100:]


def rotation(data: Tensor = DATA, **options: Any) -> RotationModel:
    torch.manual_seed(0)
    net = MLP(3, 8, 1, condition={"log_norm": 1, **options.pop("condition", {})})
    return RotationModel.for_data(net, Rotation(), data, **options)


class Spy:
    """The default loss, which keeps what it is called with, and its losses."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.condition: list[dict[str, Tensor]] = []

    def __call__(
        self, model: ScoreModel, x0: Tensor, stream: Tensor, step: int, **condition: Tensor
    ) -> Tensor:
        losses = SphericalDenoisingLoss()(model, x0, stream, step, **condition)
        self.x.append(x0.clone())
        self.losses.append(losses.detach())
        self.condition.append(condition)
        return losses

    def of_top(self) -> list[int]:
        """Return how many samples of each batch are of the largest norms of ``DATA``."""
        limit = float(DATA[TOP].norm(dim=1).min())
        return [int((x.norm(dim=1) >= limit).sum()) for x in self.x]


def trained(
    data: Any = DATA, model: ScoreModel | None = None, labels: Tensor | None = None, **options: Any
) -> Spy:
    spy = Spy()
    settings = {"steps": 6, "batch_size": 32, "progress": False, "loss": spy, **options}
    fit(model or rotation(), data, labels, **settings)
    return spy


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(DATA)


# ---- which samples ----


@pytest.mark.parametrize("tail", [0.25, 0.5, 0.9])
def test_a_share_of_every_batch_is_of_the_largest_norms(tail: float) -> None:
    """And a few of the others, which are of all samples."""
    spy, count = trained(tail=tail), round(32 * tail)
    limit = float(DATA[TOP].norm(dim=1).min())
    assert all((x[:count].norm(dim=1) >= limit).all() for x in spy.x)
    assert sum(spy.of_top()) - 6 * count <= 6


def test_heavy_tails_are_oversampled_by_default() -> None:
    assert min(trained().of_top()) >= 16


def test_nothing_is_oversampled_at_0() -> None:
    assert max(trained(tail=0).of_top()) <= 3


LIGHT = vectors(heavy=False)


@pytest.mark.parametrize(("data", "tail"), [(LIGHT, 0.0), (DATA[:9000], 0.0), (DATA, 0.5)])
@pytest.mark.parametrize("built_for", [LIGHT, DATA])
def test_the_default_is_for_many_data_of_heavy_tails_whatever_the_model_was_built_for(
    data: Tensor, tail: float, built_for: Tensor
) -> None:
    """Fine-tuning keeps the prior of a model's first data."""
    batches = Batches(data, batch_size=32)
    assert oversample(rotation(built_for), data, batches, None, transformed=False) == tail
    assert batches.oversampled == bool(tail)


def test_the_default_is_for_models_that_keep_norms() -> None:
    model = VPModel.for_data(MLP(3, 8, 1), VP(), DATA)
    assert oversample(model, DATA, Batches(DATA), None, transformed=False) == 0


def test_nothing_is_oversampled_by_default_with_a_transform(caplog: Any) -> None:
    """Which may change norms: here every one becomes 1."""
    with caplog.at_level(logging.WARNING, logger="fastmsgm"):
        spy = trained(transform=lambda x: x / x.norm())
    assert [r.message for r in caplog.records if "oversampled" in r.message] == [
        "the largest norms of the data are not oversampled: tail must be 0 with a transform, which "
        "may change norms and would then bias what the model learns, got 0.5: transform the data "
        "before the training, or leave one out"
    ]
    plain = trained(tail=0)
    for x, expected in zip(spy.x, plain.x, strict=True):
        torch.testing.assert_close(x, expected / expected.norm(dim=1, keepdim=True))


def test_light_tails_with_a_transform_are_not_told_of(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="fastmsgm"):
        trained(LIGHT, rotation(LIGHT), transform=torch.neg)
    assert not caplog.records


def test_a_loader_that_oversamples_by_itself_is_not_oversampled_by_default() -> None:
    order = OversampledOrder(len(DATA), 32, subset=torch.tensor([0]), count=10)
    spy = trained(DataLoader(TensorDataset(DATA), batch_sampler=order), batch_size=None)
    assert all((x[:10] == DATA[0]).all() for x in spy.x)
    assert max(spy.of_top()) <= 3


def test_the_offset_moves_the_norms() -> None:
    """Data around -5000, whose norms after the offset are heavy-tailed."""
    data = DATA.clamp(-1e3, 1e3) - 5000
    top = (data + 5000).norm(dim=1).argsort()[-100:]
    spy = trained(data, rotation(data, offset=5000.0), tail=0.5)
    limit = float((data[top] + 5000).norm(dim=1).min())
    assert all((x[:16].norm(dim=1) >= limit).all() for x in spy.x)


def test_labels_and_conditions_are_those_of_their_samples() -> None:
    norms, labels = DATA.norm(dim=1), torch.arange(len(DATA)) % 3
    torch.manual_seed(0)
    net = MLP(3, 8, 1, condition={"log_norm": 1, "r": 1}, classes=3)
    model = RotationModel.for_data(net, Rotation(), DATA, classes=3)
    spy = trained(DATA, model, labels, condition={"r": norms})
    for x, condition in zip(spy.x, spy.condition, strict=True):
        torch.testing.assert_close(condition["r"], x.norm(dim=1))
        index = (x[:, None] == DATA).all(2).int().argmax(1)
        assert torch.equal(condition["label"], labels[index])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_batches_of_a_tensor(workers: int) -> None:
    loader = DataLoader(TensorDataset(DATA), 32, shuffle=True, num_workers=workers)
    for x, expected in zip(trained(loader).x, trained().x, strict=True):
        assert torch.equal(x, expected)


def test_a_stopped_run_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: Any) -> None:
        raise Stop

    settings: dict[str, Any] = {"steps": 6, "batch_size": 32, "progress": False, "warmup": 1}
    fit(rotation(), DATA, out=tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        fit(rotation(), DATA, out=tmp_path / "cut", callback=stop, every=3, **settings)
    fit(rotation(), DATA, out=tmp_path / "cut", **settings)
    whole, cut = (load_file(tmp_path / name / "training.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


# ---- no bias ----


class ByNorm(nn.Module):
    """A network with one parameter, whose loss depends on the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, c: Tensor, log_norm: Tensor, **condition: Tensor) -> Tensor:
        return self.out * log_norm[:, None]


def losses_by_norm(tail: float) -> tuple[Tensor, Tensor]:
    """Return the losses of many samples of the largest norms, and of the others."""
    model = RotationModel.for_data(ByNorm(), Rotation(), DATA)
    options: dict[str, Any] = {"steps": 60, "batch_size": 512, "lr": lambda step: 0.0}
    spy = trained(DATA, model, tail=tail, **options)
    norms, losses = torch.cat(spy.x).norm(dim=1), torch.cat(spy.losses)
    top = norms >= float(DATA[TOP].norm(dim=1).min())
    return losses[top].double(), losses[~top].double()


def test_the_loss_given_the_norm_does_not_depend_on_the_share() -> None:
    plain, oversampled = losses_by_norm(0.0), losses_by_norm(0.5)
    assert len(oversampled[0]) > 40 * len(plain[0])
    for some, others in zip(plain, oversampled, strict=True):
        error = (some.var() / len(some) + others.var() / len(others)).sqrt()
        assert abs(float((some.mean() - others.mean()) / error)) < 4.5
    # The loss does depend on the norm, so that a mixture of both would be seen.
    top, others = oversampled
    assert float(top.mean() - others.mean()) > 50 * float(others.std() / len(others) ** 0.5)


def test_every_one_of_the_largest_norms_is_trained_equally_often() -> None:
    """Each is once in every half batch of 100, and all are once in the other halves."""
    model = RotationModel.for_data(ByNorm(), Rotation(), DATA)
    index = torch.arange(float(len(DATA)))
    spy = trained(DATA, model, condition={"index": index}, tail=0.5, steps=100, batch_size=200)
    counts = torch.cat([condition["index"] for condition in spy.condition]).long().bincount()
    expected = torch.ones(len(DATA), dtype=torch.int64)
    expected[TOP] += 100
    assert torch.equal(counts, expected)


def test_validation_is_of_the_data_as_they_are() -> None:
    model, seen = rotation(), list[float | None]()
    held_out = vectors(100, seed=1)
    settings: dict[str, Any] = {"steps": 1, "batch_size": 32, "progress": False}
    callback = lambda step: seen.append(step.validation_loss)  # noqa: E731
    fit(model, DATA, tail=0.5, validation=held_out, callback=callback, **settings)
    loss = Loss(model).eval()
    assert seen[0] == pytest.approx(loss(held_out, step=2**31, first=0).item(), rel=1e-5)


def test_few_norms_that_are_oversampled_are_told_of(caplog: Any) -> None:
    data = vectors(2000)
    with caplog.at_level(logging.WARNING, logger="fastmsgm"):
        trained(data, rotation(data), tail=0.25)
    assert [record.message for record in caplog.records] == [
        "tail=0.25 makes 8 samples of every batch out of the same 20, which the network may "
        "memorise: lower tail, or give at least 10,000 samples"
    ]


# ---- errors ----


@pytest.mark.parametrize("tail", [-0.1, 1, float("nan"), "half", True])
def test_a_share_out_of_range(tail: Any) -> None:
    with pytest.raises(ValueError, match=r"tail must be in \[0, 1\) or None, got "):
        trained(tail=tail)


@pytest.mark.parametrize("family", ["GBMModel", "VPModel"])
def test_a_model_that_does_not_keep_norms(family: str) -> None:
    data = DATA.abs()
    model: ScoreModel = GBMModel.for_data(MLP(3, 8, 1), GBM(5.0), data)
    if family == "VPModel":
        model = VPModel.for_data(MLP(3, 8, 1), VP(), data)
    message = f"tail must be 0 for a {family}, which does not keep norms .* got 0.5: leave it out"
    with pytest.raises(ValueError, match=message):
        fit(model, data, steps=1, tail=0.5, progress=False)


def test_a_share_out_of_range_says_what_to_do() -> None:
    message = "got 1.5: give a share of every batch, such as 0.5, or leave it out"
    with pytest.raises(ValueError, match=message):
        trained(tail=1.5)


def test_a_share_beside_a_transform() -> None:
    message = "tail must be 0 with a transform, which may change norms .* got 0.25: transform the"
    with pytest.raises(ValueError, match=message):
        trained(tail=0.25, transform=torch.neg)


def test_a_share_beside_a_loader_that_oversamples_by_itself() -> None:
    order = OversampledOrder(len(DATA), 32, subset=torch.tensor([0]), count=10)
    loader = DataLoader(TensorDataset(DATA), batch_sampler=order)
    with pytest.raises(ValueError, match="tail must be 0 for a loader with an OversampledOrder"):
        trained(loader, batch_size=None, tail=0.25)


def test_data_in_an_order_of_their_own_cannot_be_oversampled() -> None:
    message = "data must have a fixed order for samples to be chosen .* own: give a tensor"
    with pytest.raises(ValueError, match=message):
        trained(Stream(), rotation(), tail=0.5)


def test_data_in_an_order_of_their_own_are_not_by_default(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="fastmsgm"):
        spy = trained(Stream(), rotation())
    assert [r.message for r in caplog.records if "oversampled" in r.message] == [
        "the largest norms of the data are not oversampled: their order is their own, and the "
        "largest norms are not known: if they are heavy-tailed, give a tensor or a map-style data "
        "set"
    ]
    assert torch.equal(spy.x[0], DATA[:32])


@pytest.mark.parametrize(("tail", "batch_size"), [(0.01, 32), (0.99, 8)])
def test_a_share_of_no_sample_or_all_of_a_batch(tail: float, batch_size: int) -> None:
    message = f"tail must be a share of at least one and not of all of the {batch_size} samples"
    with pytest.raises(ValueError, match=message):
        trained(tail=tail, batch_size=batch_size)


def test_a_run_with_another_share_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 32, "progress": False, "out": tmp_path}
    fit(rotation(), DATA, **settings)
    with pytest.raises(ValueError, match=r"other settings .*'tail': \(0\.5, 0\.25\)"):
        fit(rotation(), DATA, tail=0.25, **settings)
