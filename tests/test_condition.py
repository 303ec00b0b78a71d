"""Conditions and guidance: asked and obtained, chunks and slices, every family, compiled."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm import GBM, VP, GBMModel, NonFiniteError, Rotation, RotationModel, ScoreModel, VPModel
from fastmsgm.nets import MLP, UNet

sample = functools.partial(fastmsgm.sample, progress=False)
FAMILIES = ("gbm", "rotation", "vp")


class Conditioned(nn.Module):
    """An output that depends on every condition, and on its absence."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.layer = nn.Linear(d + 1, d)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor, size: Tensor, **other: Tensor
    ) -> Tensor:
        number = torch.where(size.isnan(), 3.0, size) + label
        inputs = torch.cat((x.flatten(1), number[:, None].to(x.dtype)), dim=1)
        return 0.1 * self.layer(inputs).view_as(x)


def positive(n: int = 200) -> Tensor:
    return torch.exp(0.3 * torch.randn(n, 4, generator=torch.Generator().manual_seed(0)))


@functools.cache
def conditioned(family: str) -> ScoreModel:
    torch.manual_seed(0)
    net, x = Conditioned(4), positive()
    if family == "gbm":
        model: ScoreModel = GBMModel.for_data(net, GBM(8.0), x, classes=3)
    elif family == "rotation":
        model = RotationModel.for_data(net, Rotation(), x, classes=3)
    else:
        model = VPModel.for_data(net, VP(), x, classes=3)
    model.drop = 0.1
    return model


def asked(n: int = 40) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "label": torch.randint(3, (n,), generator=generator),
        "condition": {"size": torch.randn(n, generator=generator)},
    }


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_slices_are_bit_equal_with_their_conditions(family: str, guidance: float) -> None:
    model, wanted = conditioned(family), asked()
    options: dict[str, Any] = {"steps": 3, "seed": 5, "batch_size": 16, "guidance": guidance}
    whole = sample(model, 40, **wanted, **options)
    part = sample(
        model,
        13,
        start=11,
        label=wanted["label"][11:24],
        condition={"size": wanted["condition"]["size"][11:24]},
        **options,
    )
    assert torch.equal(part, whole[11:24])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sample_has_its_own_condition(family: str) -> None:
    model, wanted = conditioned(family), asked()
    before = sample(model, 40, steps=3, batch_size=16, **wanted)
    wanted["condition"]["size"][20] += 1.0
    after = sample(model, 40, steps=3, batch_size=16, **wanted)
    changed = (before != after).any(1).nonzero().flatten().tolist()
    assert changed == [20]


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_extrapolates_from_the_null_condition(family: str) -> None:
    model, wanted = conditioned(family), asked()
    once = functools.partial(sample, model, 40, steps=1, batch_size=40, **wanted)
    none, one, two = (once(guidance=w) for w in (0.0, 1.0, 2.0))
    nowhere = {"label": wanted["label"], "condition": {"size": torch.full((40,), 3.0)}}
    assert not torch.equal(none, one)
    assert not torch.equal(two, one)
    # Null: label 3 and a size of 3. The same sum from another label.
    nowhere["condition"]["size"] += 3 - wanted["label"].float()
    unconditional = sample(model, 40, steps=1, batch_size=40, **nowhere)
    torch.testing.assert_close(none, unconditional, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gbm", "rotation"])
def test_compiled_sampling_takes_conditions_and_guidance(family: str) -> None:
    model, wanted = conditioned(family), asked(20)
    options: dict[str, Any] = {"steps": 3, "batch_size": 20, "guidance": 1.5, **wanted}
    plain, compiled = sample(model, 20, **options), sample(model, 20, compile=True, **options)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_labels_may_be_a_number_a_list_an_array_or_a_tensor() -> None:
    model = conditioned("gbm")
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, **{"condition": {"size": [0.5] * 4}}}
    labels: list[Any] = [[1, 1, 1, 1], np.ones(4, np.int64), torch.ones(4).long(), np.int64(1)]
    one = sample(model, 4, label=1, **options)
    assert all(torch.equal(one, sample(model, 4, label=label, **options)) for label in labels)


def test_without_labels_classes_come_in_turn() -> None:
    model, size = conditioned("gbm"), torch.zeros(8)
    turn = sample(model, 8, start=4, steps=2, batch_size=4, condition={"size": size})
    given = sample(
        model,
        8,
        start=4,
        steps=2,
        batch_size=4,
        condition={"size": size},
        label=(torch.arange(4, 12) % 3),
    )
    assert torch.equal(turn, given)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label": 3}, ValueError, r"label must be in 0 .. 2, got 3"),
        ({"label": [0, 1]}, ValueError, r"label must have shape \(4,\)"),
        ({"label": [0, 1, 2, 3]}, ValueError, "label must be from 0 to 2, got 0 to 3"),
        ({"label": "a"}, TypeError, "label must be"),
        ({"condition": torch.zeros(4)}, TypeError, "condition must map names to tensors"),
        ({"condition": {"size": torch.zeros(3)}}, ValueError, r"'size' must have shape \(4, ...\)"),
        ({"condition": {"size": "a"}}, TypeError, "'size' must be a tensor"),
        ({"condition": {"size": torch.full((4,), torch.nan)}}, ValueError, "must be finite"),
        ({"condition": {"label": torch.zeros(4)}}, ValueError, "must not be named 'label'"),
        ({"guidance": float("nan")}, ValueError, "guidance must be a finite number"),
        ({"guidance": "2"}, ValueError, "guidance must be a finite number"),
    ],
)
def test_wrong_conditions_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sample(conditioned("gbm"), 4, steps=2, **options)


def test_guidance_needs_a_model_trained_for_it() -> None:
    net, x = MLP(4, 8, 1, classes=3), positive()
    labels = torch.arange(200) % 3
    model = GBMModel.for_data(net, GBM(8.0), x, classes=3)
    with pytest.raises(ValueError, match=r"guidance needs a model that was trained with dropped"):
        sample(model, 4, steps=2, guidance=2.0)
    fastmsgm.fit(model, x, labels, steps=1, batch_size=8, drop=0.1, progress=False)
    assert sample(model, 4, steps=2, guidance=2.0).shape == (4, 4)


def test_guidance_needs_a_condition() -> None:
    model = GBMModel.for_data(MLP(4, 8, 1), GBM(8.0), positive())
    with pytest.raises(ValueError, match="guidance needs a condition or a class-conditional model"):
        sample(model, 4, steps=2, guidance=2.0)


def test_a_non_finite_network_output_for_the_null_class_is_found() -> None:
    class NoNull(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, size: Tensor) -> Tensor:
            return x * size[:, None]

    model = GBMModel.for_data(NoNull(), GBM(8.0), positive())
    model.drop = 0.1
    with pytest.raises(NonFiniteError):
        sample(model, 4, steps=2, guidance=2.0, condition={"size": torch.ones(4)})


# ---- a trained model ----


def test_guidance_pushes_further() -> None:
    torch.manual_seed(0)
    size = torch.randn(4_096)
    x = torch.exp(torch.randn(4_096, 2) + size[:, None])  # log-mean and condition are the same
    model = GBMModel.for_data(MLP(2, 64, 2, condition={"size": 1}), GBM(8.0), x)
    options: dict[str, Any] = {"steps": 500, "batch_size": 256, "lr": 3e-3, "warmup": 50}
    condition = {"size": size}
    fastmsgm.fit(model, x, condition=condition, drop=0.1, ema=0.98, progress=False, **options)
    ones = {"size": torch.ones(2_000)}
    means = [sample(model, 2_000, condition=ones, guidance=w).log().mean() for w in (0, 1, 2)]
    assert means == pytest.approx([0.0, 1.0, 4 / 3], abs=0.25)  # exactly 2 w / (1 + w)
    assert means[2] > means[1] + 0.15


def test_a_function_may_change_all_that_it_gets() -> None:
    def clean(x: Tensor, s: Tensor, size: Tensor) -> Tensor:
        return 0.1 * torch.tanh(x) * size[:, None] * s[:, None]

    def dirty(x: Tensor, s: Tensor, size: Tensor) -> Tensor:
        result = clean(x, s, size)
        for tensor in (x, s, size):
            tensor.mul_(1000)
        return result

    options: dict[str, Any] = {"shape": (3,), "time": "sigma", "condition": {"size": torch.ones(5)}}
    for process in (GBM(2.0), Rotation()):
        for prediction in ("epsilon", "denoised", "v"):
            arguments = {"process": process, "prediction": prediction, "steps": 3, **options}
            assert torch.equal(sample(clean, 5, **arguments), sample(dirty, 5, **arguments))


def test_images_of_classes_and_conditions_train_and_sample() -> None:
    images, labels = torch.rand(32, 1, 8, 8), torch.arange(32) % 2
    net = UNet(1, 8, 8, 1, 1, classes=2, condition={"size": 3})
    model = GBMModel.for_data(net, GBM(8.0), images, offset=1.0, classes=2)
    condition = {"size": torch.randn(32, 3)}
    fastmsgm.fit(
        model, images, labels, condition=condition, drop=0.2, steps=2, batch_size=8, progress=False
    )
    samples = sample(
        model, 4, label=[0, 1, 0, 1], condition={"size": torch.zeros(4, 3)}, guidance=2.0, steps=2
    )
    assert samples.shape == (4, 1, 8, 8)
