"""Labelled data: a network that is told the class, training with labels, samples of every class in turn or of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact import log_normal_data
from torch import Tensor, nn

from fastmsgm import GBM, GBMModel, fit, load, losses, sample
from fastmsgm.nets import UNet

LABELS = torch.arange(60) % 3


def images() -> Tensor:
    """Class k is as bright as k / 4, but for a little noise."""
    torch.manual_seed(0)
    return (LABELS[:, None, None, None] / 4 + 0.1 * torch.rand(60, 1, 8, 8)).clamp(0, 1)


def model(net: nn.Module | None = None) -> GBMModel:
    torch.manual_seed(0)
    net = net or UNet(1, 16, 32, 1, 2, classes=3)
    return GBMModel.for_data(
        net, GBM(8.0), images(), labels=LABELS, classes=3, offset=1.0, bounds=(0.0, 1.0)
    ).eval()  # fmt: skip


class ClassBrightness(nn.Module):
    """The denoiser of data that are exp(class / 10), whatever the noise; remembers the classes that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        s, classes = torch.exp(4 * c[:, 0]), c[:, 1]
        self.told.append(classes.long())
        sd, total = self.log_std, torch.sqrt(s**2 + self.log_std**2)
        skip, gain = (sd / total) ** 2, s * sd / total
        y = total[:, None] * x.flatten(1)
        return ((classes[:, None] / 10 - skip[:, None] * y) / gain[:, None]).view_as(x)

    log_std: float


def vectors() -> tuple[GBMModel, ClassBrightness]:
    x0, net = log_normal_data(60), ClassBrightness()
    made = GBMModel.for_data(net, GBM(5.0), x0, labels=LABELS, classes=3).eval()
    net.log_std = made.log_std
    return made, net


# ---- the network ----


def test_the_network_hears_the_class_and_the_level() -> None:
    net = UNet(1, 16, 32, 1, 2, classes=3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    x, c = torch.randn(4, 1, 8, 8), torch.tensor([[0.1, 0.0], [0.1, 1.0], [0.1, 2.0], [0.5, 2.0]])
    f = net(x[:1].expand(4, -1, -1, -1), c).flatten(1)
    assert float(torch.pdist(f.detach()).min()) > 1e-3
    net(x, c).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())


# ---- training ----


def test_training_learns_what_only_the_class_tells() -> None:
    """At large noise nothing but the class says how bright an image is."""
    options = {"steps": 150, "batch_size": 32, "levels": (2.0, 0.3), "warmup": 5, "ema": 0.9, "progress": False}
    trained = fit(model(), images(), LABELS, **options)
    x0 = trained.to_state(images()[:3])
    s = torch.full((3,), 8.0)
    c_in = float(trained.preconditioning(s.numpy())[0, 3])
    k0, k1 = trained.preconditioning(s.numpy())[0, :2]
    y = torch.log(x0) + 8.0 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        f = trained(c_in * y, torch.stack((torch.log(s) / 4, LABELS[:3].float()), dim=1))
    brightness = (k0 * y + k1 * f).flatten(1).mean(1)
    torch.testing.assert_close(brightness, torch.log(x0).flatten(1).mean(1), rtol=0, atol=0.06)


def test_a_run_with_labels_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmsgm.trainer.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("fastmsgm.trainer.FLUSH_EVERY", 2)
    options = {"steps": 6, "batch_size": 16, "warmup": 1, "progress": False}
    fit(model(), images(), LABELS, out=tmp_path / "whole", **options)
    original = losses.loss

    def cut(*args: object) -> Tensor:
        if args[3] == 4:
            raise OSError("power cut")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "loss", cut)
        with pytest.raises(OSError, match="power cut"):
            fit(model(), images(), LABELS, out=tmp_path / "cut", **options)
    fit(model(), images(), LABELS, out=tmp_path / "cut", **options)
    assert (tmp_path / "cut" / "loss.csv").read_text() == (tmp_path / "whole" / "loss.csv").read_text()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"labels must be given for a model with classes and for no other: the model has 3, got labels=None"),
        (LABELS[:5], r"labels must have shape \(60,\), one for each sample, got \(5,\)"),
        (LABELS.float(), r"labels must be integers, got torch.float32: convert them with .long\(\)"),
        (LABELS.numpy(), r"labels must be a tensor, got ndarray: convert them with torch.as_tensor"),
        (LABELS + 1, r"labels must be from 0 to 2, got 1 to 3"),
        (LABELS - 1, r"labels must be from 0 to 2, got -1 to 1"),
    ],
)
def test_fit_refuses_wrong_labels(labels: Tensor | None, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fit(model(), images(), labels, steps=1, progress=False)


def test_fit_refuses_labels_that_no_network_hears() -> None:
    unlabelled = GBMModel.for_data(UNet(1, 16, 32, 1, 2), GBM(8.0), images(), offset=1.0)
    with pytest.raises(ValueError, match="the model has 0, got labels=a tensor"):
        fit(unlabelled, images(), LABELS, steps=1, progress=False)


@pytest.mark.parametrize(
    ("known", "changes", "message"),
    [
        (5, {"classes": 5}, "classes must match the prior, which has 3 centres; got 5"),
        (0, {"classes": 3}, "classes must be the network's, 0, got 3: build the network with classes=3"),
        (3, {"classes": 0}, "classes must be the network's, 3, got 0"),
        (3, {"classes": -1}, "classes must be an int, 0 for unlabelled data, got -1"),
        (3, {"classes": 3, "labels": LABELS + 1}, "labels must be from 0 to 2, got 1 to 3: number the classes from 0"),
    ],
)
def test_for_data_refuses_classes_that_do_not_fit(known: int, changes: dict[str, Any], message: str) -> None:
    options = {"labels": LABELS, "offset": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        GBMModel.for_data(UNet(1, 16, 32, 1, 2, classes=known), GBM(8.0), images(), **options)


def test_fit_does_not_resume_with_other_labels(tmp_path: Path) -> None:
    options = {"steps": 2, "batch_size": 8, "progress": False, "out": tmp_path}
    fit(model(), images(), LABELS, **options)
    with pytest.raises(ValueError, match=r"other settings \(there, here\): \{'labels'"):
        fit(model(), images(), LABELS.flip(0), **options)


def test_a_network_grows_without_a_change() -> None:
    """More blocks at the coarse level, and classes, begin as zero: training goes on where the smaller network ended."""
    small, grown = UNet(1, 16, 32, 1, 2), UNet(1, 16, 32, 1, 3, classes=3)
    for p in small.parameters():
        nn.init.normal_(p, std=0.1)
    grown.load_state_dict(small.state_dict(), strict=False)
    x, level = torch.randn(3, 1, 8, 8), torch.rand(3)
    told = torch.stack((level, torch.arange(3.0)), dim=1)
    torch.testing.assert_close(grown(x, told), small(x, level))


# ---- sampling ----


def test_samples_are_of_every_class_in_turn() -> None:
    made, net = vectors()
    samples = sample(made, 10, start=4, batch_size=8, steps=2, progress=False)
    expected = made.to_data(torch.exp((torch.arange(4, 14) % 3)[:, None] / 10).expand(10, 3).contiguous())
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=0)
    assert torch.equal(torch.cat(net.told[::2]), torch.arange(16) % 3)


def test_a_label_asks_for_one_class() -> None:
    made, net = vectors()
    sample(made, 10, label=2, batch_size=8, steps=2, progress=False)
    assert all(bool((told == 2).all()) for told in net.told)


@pytest.mark.parametrize("label", [None, 1])
def test_labelled_samples_do_not_depend_on_where_they_start(label: int | None) -> None:
    options = {"label": label, "seed": 3, "batch_size": 8, "steps": 3, "progress": False}
    made = model()
    nn.init.normal_(made.net.label.weight)
    nn.init.normal_(made.net.out.weight, std=0.05)
    whole = sample(made, 30, **options)
    assert torch.equal(whole[13:20], sample(made, 7, start=13, **options))


@pytest.mark.parametrize(("label", "error"), [(3, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_sample_refuses_a_label_that_is_no_class(label: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="label must be"):
        sample(model(), 3, label=label, progress=False)


def test_sample_refuses_a_label_for_a_model_without_classes() -> None:
    unlabelled = GBMModel.for_data(UNet(1, 16, 32, 1, 2), GBM(8.0), images(), offset=1.0)
    with pytest.raises(ValueError, match="label must be None for a model without classes, got 1"):
        sample(unlabelled, 3, label=1, progress=False)


def test_a_saved_model_keeps_its_classes(tmp_path: Path) -> None:
    made = model()
    nn.init.normal_(made.net.label.weight)
    nn.init.normal_(made.net.out.weight, std=0.05)
    made.save(tmp_path)
    again = load(tmp_path)
    assert again.classes == 3
    options = {"label": 1, "steps": 3, "progress": False}
    assert torch.equal(sample(again, 4, **options), sample(made, 4, **options))
