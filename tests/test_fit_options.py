"""What fit takes beside data and steps: callbacks, optimizers, schedules, accumulation, more."""

from __future__ import annotations

import csv
import functools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fastmsgm
from fastmsgm import GBM, GBMModel, TrainStep
from fastmsgm.loss import EVALUATION
from fastmsgm.nets import MLP, UNet

fit = functools.partial(fastmsgm.fit, progress=False)
SHORT: dict[str, Any] = {"batch_size": 16, "warmup": 2}


def data(n: int = 64) -> Tensor:
    return torch.exp(0.5 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0)))


def build(**options: Any) -> GBMModel:
    torch.manual_seed(0)
    return GBMModel.for_data(MLP(3, 16, 2), GBM(8.0), data(), **options)


def parameters(model: fastmsgm.ScoreModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def losses(folder: Path) -> list[float]:
    with open(folder / "loss.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


# ---- callbacks ----


def test_the_callback_sees_every_k_steps_and_the_last(tmp_path: Path) -> None:
    seen: list[TrainStep] = []
    fit(build(), data(), steps=7, callback=seen.append, every=3, out=tmp_path, **SHORT)
    every = losses(tmp_path)
    assert [step.step for step in seen] == [3, 6, 7]
    assert seen[0].loss == pytest.approx(sum(every[:3]) / 3, rel=1e-5)
    assert seen[1].loss == pytest.approx(sum(every[3:6]) / 3, rel=1e-5)
    assert seen[2].loss == pytest.approx(every[6], rel=1e-5)
    assert all(step.grad_norm > 0 and step.lr > 0 for step in seen)
    assert seen[0].validation_loss is None


def test_the_callback_gets_the_averaged_model() -> None:
    model, averages = build(), list[Tensor]()

    def callback(step: TrainStep) -> None:
        assert not step.model.training
        assert fastmsgm.sample(step.model, 2, steps=2, progress=False).shape == (2, 3)
        averages.append(parameters(step.model))

    fit(model, data(), steps=4, callback=callback, every=2, **SHORT)
    assert torch.equal(averages[-1], parameters(model))
    assert not torch.equal(averages[0], averages[1])


def test_a_callback_changes_nothing() -> None:
    plain, watched = build(), build()
    fit(plain, data(), steps=4, **SHORT)
    callback = lambda step: fastmsgm.sample(step.model, 2, steps=2, progress=False)  # noqa: E731
    fit(watched, data(), steps=4, callback=callback, every=1, validation=data(8), **SHORT)
    assert torch.equal(parameters(plain), parameters(watched))


def test_the_run_is_saved_before_a_callbacks_error(tmp_path: Path) -> None:
    def callback(step: TrainStep) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fit(build(), data(), steps=4, callback=callback, every=3, out=tmp_path, **SHORT)
    assert len(losses(tmp_path)) == 3


# ---- validation ----


def test_validation_is_the_averaged_models_loss_at_fixed_noise() -> None:
    seen: list[TrainStep] = []
    options: dict[str, Any] = {"steps": 2, "lr": lambda step: 0.0, "every": 1, **SHORT}
    fit(build(), data(), validation=data(20), callback=seen.append, **options)
    first, second = (step.validation_loss for step in seen)
    assert first is not None
    assert first == second  # nothing was learned: the noise is the same
    assert 0.3 < first < 3


def test_validation_counts_every_sample_once() -> None:
    model, held_out, seen = build(), data(20), list[TrainStep]()
    fit(model, data(), steps=1, validation=held_out, callback=seen.append, **SHORT)
    loss = fastmsgm.Loss(model).eval()
    step, first = EVALUATION, 0
    assert seen[0].validation_loss == pytest.approx(
        loss(held_out, step=step, first=first).item(), rel=1e-5
    )


def test_validation_needs_labels_before_the_first_step() -> None:
    model = GBMModel.for_data(MLP(3, 16, 2, classes=2), GBM(8.0), data(), classes=2)
    labels, untouched = torch.arange(64) % 2, parameters(model).clone()
    with pytest.raises(ValueError, match="labels must be given for a class-conditional model"):
        fit(model, data(), labels, steps=2, validation=data(8), **SHORT)
    assert torch.equal(parameters(model), untouched)


def test_validation_has_labels_in_its_items() -> None:
    model = GBMModel.for_data(MLP(3, 16, 2, classes=2), GBM(8.0), data(), classes=2)
    held_out = TensorDataset(data(10), torch.arange(10) % 2)
    seen: list[TrainStep] = []
    labels = torch.arange(64) % 2
    fit(model, data(), labels, steps=2, validation=held_out, callback=seen.append, **SHORT)
    assert seen[-1].validation_loss is not None


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(data())


def test_validation_is_checked_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"validation must have shape \(N, 3\), got \(N, 2\)"):
        fit(build(), data(), steps=2, validation=torch.ones(4, 2), **SHORT)
    with pytest.raises(ValueError, match="validation must have at least one sample, got none"):
        fit(build(), data(), steps=2, validation=torch.ones(0, 3), **SHORT)


def test_validation_may_be_an_iterable() -> None:
    seen: list[TrainStep] = []
    fit(build(), data(), steps=2, validation=Stream(), callback=seen.append, **SHORT)
    assert seen[0].validation_loss is not None


# ---- optimizer, schedule, accumulation ----


def test_any_optimizer_trains_and_resumes_exactly(tmp_path: Path) -> None:
    for number, optimizer in enumerate(
        (
            functools.partial(torch.optim.AdamW, weight_decay=0.1),
            functools.partial(torch.optim.SGD, momentum=0.9),
            torch.optim.RMSprop,
        )
    ):
        options: dict[str, Any] = {"lr": constant, "optimizer": optimizer, **SHORT}
        whole, half = build(), build()
        fit(whole, data(), steps=4, **options)
        fit(half, data(), steps=2, out=tmp_path / str(number), **options)
        again = build()
        fit(again, data(), steps=4, out=tmp_path / str(number), **options)
        assert torch.equal(parameters(again), parameters(whole)), optimizer


def constant(step: int) -> float:
    return 1e-3


def test_an_optimizer_may_be_an_instance() -> None:
    by_name, given = build(), build()
    fit(by_name, data(), steps=3, optimizer=torch.optim.AdamW, **SHORT)
    instance = torch.optim.AdamW(given.net.parameters())
    fit(given, data(), steps=3, optimizer=instance, **SHORT)
    assert torch.equal(parameters(by_name), parameters(given))


def test_optimizers_of_other_parameters_are_refused() -> None:
    others = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    with pytest.raises(ValueError, match="optimizer must hold parameters of the model's network"):
        fit(build(), data(), steps=1, optimizer=others)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        fit(build(), data(), steps=1, optimizer=list)  # pyright: ignore[reportArgumentType]


def test_gradients_of_parameters_that_are_not_optimized_do_not_add_up() -> None:
    seen: list[float] = []
    fit(
        build(),
        data(),
        steps=4,
        lr=lambda step: 0.0,
        optimizer=lambda parameters: torch.optim.SGD(list(parameters)[-2:]),
        callback=lambda step: seen.append(step.grad_norm),
        every=1,
        **SHORT,
    )
    assert max(seen) < 3 * min(seen)


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(TypeError, match="optimizer must take steps without a closure, got LBFGS"):
        fit(build(), data(), steps=1, optimizer=torch.optim.LBFGS)


def test_arguments_of_an_optimizer_identify_a_run(tmp_path: Path) -> None:
    for decay, error in ((0.5, None), (0.0, ValueError)):
        model = build()
        instance = torch.optim.AdamW(model.net.parameters(), weight_decay=decay)
        options: dict[str, Any] = {"steps": 2, "optimizer": instance, "out": tmp_path, **SHORT}
        if error is None:
            fit(model, data(), **options)
        else:
            with pytest.raises(error, match=r"other settings.*weight_decay"):
                fit(model, data(), **options)


def test_a_callback_may_change_the_mode() -> None:
    modes: list[bool] = []
    model = build()
    model.net.register_forward_pre_hook(lambda net, inputs: modes.append(net.training))
    fit(model, data(), steps=3, every=1, callback=lambda step: model.eval(), **SHORT)
    assert modes == [True] * 3


def test_a_schedule_of_the_users_is_followed() -> None:
    seen: list[float] = []
    fit(
        build(),
        data(),
        steps=3,
        lr=lambda step: 0.1 / (step + 1),
        every=1,
        callback=lambda step: seen.append(step.lr),
        **SHORT,
    )
    assert seen == pytest.approx([0.1, 0.05, 0.1 / 3])


def test_accumulated_batches_equal_one_large_batch() -> None:
    large, small = build(), build()
    options: dict[str, Any] = {"steps": 4, "warmup": 0, "optimizer": torch.optim.SGD}
    fit(large, data(), batch_size=16, **options)
    fit(small, data(), batch_size=4, accumulate=4, **options)
    assert (parameters(large) - parameters(small)).abs().max() < 1e-6


# ---- extended runs ----


def test_a_finished_run_is_extended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"lr": constant, "out": tmp_path, **SHORT}
    whole = build()
    fit(whole, data(), steps=6, lr=constant, **SHORT)
    fit(build(), data(), steps=3, **options)
    extended = build()
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        fit(extended, data(), steps=6, **options)
    assert torch.equal(parameters(extended), parameters(whole))
    assert "extended from 3 to 6 steps: at step 3 the learning rate goes from 0.001 to 0.001" in (
        caplog.text
    )
    assert len(losses(tmp_path)) == 6


def test_a_run_cannot_be_shortened(tmp_path: Path) -> None:
    fit(build(), data(), steps=4, out=tmp_path, **SHORT)
    with pytest.raises(ValueError, match=r"other settings \(there, here\): \{'steps': \(4, 3\)\}"):
        fit(build(), data(), steps=3, out=tmp_path, **SHORT)


# ---- data ----


def test_a_loader_a_data_set_and_a_tensor_train_alike() -> None:
    models = [build() for _ in range(3)]
    x = data()
    fit(models[0], x, steps=5, **SHORT)
    fit(models[1], TensorDataset(x), steps=5, **SHORT)
    loader = DataLoader(TensorDataset(x), batch_size=16, shuffle=True)
    fit(models[2], loader, steps=5, warmup=2)
    assert torch.equal(parameters(models[0]), parameters(models[1]))
    assert torch.equal(parameters(models[0]), parameters(models[2]))


def test_augmentation_resumes_exactly(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)

    def model() -> GBMModel:
        torch.manual_seed(0)
        net = UNet(1, 8, 8, 0, 1)
        return GBMModel.for_data(net, GBM(8.0), images, offset=1.0, bounds=(0.0, 1.0))

    options: dict[str, Any] = {"lr": constant, "batch_size": 8}
    augmented: dict[str, Any] = {**options, "transform": flipped}
    whole, plain = model(), model()
    fit(whole, images, steps=4, **augmented)
    fit(model(), images, steps=2, out=tmp_path, **augmented)
    torch.manual_seed(123)
    again = model()
    fit(again, images, steps=4, out=tmp_path, **augmented)
    assert torch.equal(parameters(again), parameters(whole))
    fit(plain, images, steps=4, **options)
    assert not torch.equal(parameters(plain), parameters(whole))


def flipped(image: Tensor) -> Tensor:
    return image.flip(-1) if torch.rand(()) < 0.5 else image


def test_an_iterable_is_told_that_it_resumes_inexactly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"lr": constant, "out": tmp_path, **SHORT}
    fit(build(), Stream(), steps=2, **options)
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        fit(build(), Stream(), steps=4, **options)
    assert "the data have no fixed order: the resumed run continues with other" in caplog.text


def test_conditions_identify_a_run(tmp_path: Path) -> None:
    def model() -> GBMModel:
        return GBMModel.for_data(MLP(3, 8, 1, condition={"size": 1}), GBM(8.0), data())

    size = torch.randn(64)
    fit(model(), data(), condition={"size": size}, steps=2, out=tmp_path, **SHORT)
    with pytest.raises(ValueError, match=r"other settings.*condition"):
        fit(model(), data(), condition={"size": size + 1}, steps=2, out=tmp_path, **SHORT)


class Sized(Dataset[Any]):
    """Images with a condition."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[index], {"size": torch.tensor(0.5)}


def test_tensorboard_gets_rates_norms_and_images(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images = 255 * torch.rand(32, 1, 8, 8)
    net, condition = UNet(1, 8, 8, 0, 1, condition={"size": 1}), {"size": torch.randn(32)}
    model = GBMModel.for_data(net, GBM(8.0), images, offset=1.0, bounds=(0.0, 255.0))
    held_out = DataLoader(Sized(images[:8]), batch_size=4)
    options: dict[str, Any] = {"validation": held_out, "tensorboard": True, "out": tmp_path}
    fit(model, images, condition=condition, steps=2, **options, **SHORT)
    events = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert set(events["scalars"]) == {"loss", "lr", "gradient norm", "validation loss"}
    assert events["images"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"accumulate": 0}, ValueError, "accumulate must be at least 1"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"callback": 3}, TypeError, "callback must be a function of a TrainStep"),
        ({"drop": 1}, ValueError, r"drop must be in \[0, 1\)"),
        ({"drop": 0.1}, ValueError, "drop needs labels or a condition to drop"),
        ({"lr": -1.0}, ValueError, "lr must be a positive number"),
        ({"transform": 3}, TypeError, "transform must be a callable"),
        ({"condition": [1]}, TypeError, "condition must map names to tensors"),
    ],
)
def test_wrong_options_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(build(), data(), steps=2, **SHORT | options)
