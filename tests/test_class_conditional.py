"""Labelled data: class-conditional networks, training with labels, samples of every class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmsgm import fit, load, sample
from fastmsgm.gbm import GBM, DenoisingLoss, GBMModel
from fastmsgm.nets import UNet
from tests.gbm.exact import log_normal_data

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = torch.arange(60) % 3


def images() -> Tensor:
    """Class k is as bright as k / 4, but for a little noise."""
    torch.manual_seed(0)
    return (LABELS[:, None, None, None] / 4 + 0.1 * torch.rand(60, 1, 8, 8)).clamp(0, 1)


def image_model() -> GBMModel:
    torch.manual_seed(0)
    net, data = UNet(1, 16, 32, 1, 2, classes=3), images()
    options: dict[str, Any] = {"labels": LABELS, "classes": 3, "offset": 1.0, "bounds": (0.0, 1.0)}
    return GBMModel.for_data(net, GBM(8.0), data, **options).eval()


def unconditional_model() -> GBMModel:
    return GBMModel.for_data(UNet(1, 16, 32, 1, 2), GBM(8.0), images(), offset=1.0)


class ClassBrightness(nn.Module):
    """The denoiser of data that are exp(class / 10), whatever the noise.

    It keeps the class labels that it was called with.
    """

    log_std: float

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        s, classes = torch.exp(4 * c_noise), label.float()
        self.labels.append(label.clone())
        sd, total = self.log_std, torch.sqrt(s**2 + self.log_std**2)
        skip, gain = (sd / total) ** 2, s * sd / total
        y = total[:, None] * x.flatten(1)
        return ((classes[:, None] / 10 - skip[:, None] * y) / gain[:, None]).view_as(x)


def vector_model() -> tuple[GBMModel, ClassBrightness]:
    x0, net = log_normal_data(60), ClassBrightness()
    model = GBMModel.for_data(net, GBM(5.0), x0, labels=LABELS, classes=3).eval()
    net.log_std = model.log_std
    return model, net


# ---- the network ----


def test_the_network_depends_on_class_and_noise_level() -> None:
    torch.manual_seed(0)
    net = UNet(1, 16, 32, 1, 2, classes=3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    x, c_noise = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 0.1, 0.1, 0.5])
    label = torch.tensor([0, 1, 2, 2])
    f = net(x[:1].expand(4, -1, -1, -1), c_noise, label=label).flatten(1)
    assert float(torch.pdist(f.detach()).min()) > 1e-3
    net(x, c_noise, label=label).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())


def test_a_larger_network_continues_a_smaller_one() -> None:
    """More blocks at the coarse level, and classes, begin as zero."""
    small, large = UNet(1, 16, 32, 1, 2), UNet(1, 16, 32, 1, 3, classes=3)
    for p in small.parameters():
        nn.init.normal_(p, std=0.1)
    large.load_state_dict(small.state_dict(), strict=False)
    x, c_noise = torch.randn(3, 1, 8, 8), torch.rand(3)
    torch.testing.assert_close(large(x, c_noise, label=torch.arange(3)), small(x, c_noise))


# ---- training ----


def test_training_learns_from_the_class_alone() -> None:
    """At large noise nothing but the class determines how bright an image is."""
    options: dict[str, Any] = {"steps": 150, "batch_size": 32, "warmup": 5, "ema": 0.9}
    loss = DenoisingLoss(p_mean=2.0, p_std=0.3)
    model = fit(image_model(), images(), LABELS, loss=loss, progress=False, **options)
    x0 = model.to_state(images()[:3])
    s = torch.full((3,), 8.0)
    k0, k1, _, c_in = model.preconditioning.coefficients(s[:1].numpy())[0].tolist()
    y = torch.log(x0) + 8.0 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        f = model(c_in * y, torch.log(s) / 4, label=LABELS[:3])
    brightness = (k0 * y + k1 * f).flatten(1).mean(1)
    torch.testing.assert_close(brightness, torch.log(x0).flatten(1).mean(1), rtol=0, atol=0.06)


def test_a_run_with_labels_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmsgm.training.trainer.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("fastmsgm.training.trainer.FLUSH_EVERY", 2)
    options: dict[str, Any] = {"steps": 6, "batch_size": 16, "warmup": 1, "progress": False}
    fit(image_model(), images(), LABELS, out=tmp_path / "whole", **options)
    original = DenoisingLoss.__call__

    def cut(self: Any, model: Any, x0: Tensor, stream: Tensor, step: int, **more: Any) -> Tensor:
        if step == 4:
            raise OSError("power cut")
        return original(self, model, x0, stream, step, **more)

    with monkeypatch.context() as patch:
        patch.setattr(DenoisingLoss, "__call__", cut)
        with pytest.raises(OSError, match="power cut"):
            fit(image_model(), images(), LABELS, out=tmp_path / "cut", **options)
    fit(image_model(), images(), LABELS, out=tmp_path / "cut", **options)
    curves = [(tmp_path / run / "loss.csv").read_text() for run in ("cut", "whole")]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            None,
            ValueError,
            "labels must be given for a class-conditional model and for no other: the model has 3 "
            "classes, got labels=None",
        ),
        (
            LABELS[:5],
            ValueError,
            r"labels must have shape \(60,\), one for each sample, got \(5,\)",
        ),
        (LABELS.float(), TypeError, r"labels must be integers, got torch\.float32: .*\.long\(\)"),
        (
            LABELS.numpy(),
            TypeError,
            r"labels must be a tensor, got ndarray: convert with torch\.as_tensor",
        ),
        (LABELS + 1, ValueError, "labels must be from 0 to 2, got 1 to 3"),
        (LABELS - 1, ValueError, "labels must be from 0 to 2, got -1 to 1"),
    ],
)
def test_fit_refuses_wrong_labels(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(image_model(), images(), labels, steps=1, progress=False)


def test_fit_refuses_labels_for_an_unconditional_model() -> None:
    with pytest.raises(ValueError, match="the model has 0 classes, got labels=a tensor"):
        fit(unconditional_model(), images(), LABELS, steps=1, progress=False)


def test_fit_does_not_resume_with_other_labels(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 2, "batch_size": 8, "progress": False, "out": tmp_path}
    fit(image_model(), images(), LABELS, **options)
    with pytest.raises(ValueError, match=r"other settings \(there, here\): \{'labels'"):
        fit(image_model(), images(), LABELS.flip(0), **options)


# ---- for_data ----


@pytest.mark.parametrize(
    ("known", "changes", "message"),
    [
        (5, {"classes": 5}, "classes must match the prior, which has 3 means; got 5"),
        (
            0,
            {"classes": 3},
            "classes must be the network's, 0, got 3: build the network with classes=3",
        ),
        (3, {"classes": 0}, "classes must be the network's, 3, got 0"),
        (3, {"classes": -1}, "classes must be at least 0, got -1"),
        (
            3,
            {"classes": 3, "labels": LABELS + 1},
            "labels must be from 0 to 2, got 1 to 3: number the classes from 0",
        ),
    ],
)
def test_for_data_refuses_classes_that_do_not_fit(
    known: int, changes: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"labels": LABELS, "offset": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        GBMModel.for_data(UNet(1, 16, 32, 1, 2, classes=known), GBM(8.0), images(), **options)


# ---- sampling ----


def test_samples_are_of_every_class_in_turn() -> None:
    model, net = vector_model()
    samples = sample(model, 10, start=4, batch_size=8, steps=2, progress=False)
    classes = (torch.arange(4, 14) % 3)[:, None]
    expected = model.to_data(torch.exp(classes / 10).expand(10, 3).contiguous())
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=0)
    assert torch.equal(torch.cat(net.labels[::2]), torch.arange(16) % 3)


def test_a_label_gives_samples_of_one_class() -> None:
    model, net = vector_model()
    sample(model, 10, label=2, batch_size=8, steps=2, progress=False)
    assert all(bool((labels == 2).all()) for labels in net.labels)


@pytest.mark.parametrize("label", [None, 1])
def test_labelled_samples_do_not_depend_on_where_they_start(label: int | None) -> None:
    options: dict[str, Any] = {"label": label, "seed": 3, "batch_size": 8, "steps": 3}
    model = image_model()
    nn.init.normal_(model.net.label.weight)
    nn.init.normal_(model.net.out.weight, std=0.05)
    whole = sample(model, 30, progress=False, **options)
    assert torch.equal(whole[13:20], sample(model, 7, start=13, progress=False, **options))


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (3, ValueError, r"label must be in 0 \.\. 2, got 3"),
        (-1, ValueError, r"label must be in 0 \.\. 2, got -1"),
        (1.0, TypeError, r"label must be an int, got 1\.0 \(float\)"),
        (True, TypeError, r"label must be an int, got True \(bool\)"),
    ],
)
def test_sample_refuses_a_label_that_is_no_class(
    label: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sample(image_model(), 3, label=label, progress=False)


def test_sample_refuses_a_label_for_a_model_without_classes() -> None:
    with pytest.raises(ValueError, match="label must be None for a model without classes, got 1"):
        sample(unconditional_model(), 3, label=1, progress=False)


def test_a_saved_model_keeps_its_classes(tmp_path: Path) -> None:
    model = image_model()
    nn.init.normal_(model.net.label.weight)
    nn.init.normal_(model.net.out.weight, std=0.05)
    model.save(tmp_path)
    again = load(tmp_path)
    assert again.classes == 3
    options: dict[str, Any] = {"label": 1, "steps": 3, "progress": False}
    assert torch.equal(sample(again, 4, **options), sample(model, 4, **options))
