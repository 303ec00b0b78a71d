"""ScoreModel: networks that do not fit, dtypes, and arguments from NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm import GBM, VP, GBMModel, Loss, Rotation, nets
from fastmsgm.model import ScoreModel
from tests.models import FAMILIES, D, positive_data

OPTIONS: dict[str, Any] = {"steps": 2, "progress": False}


def images() -> Tensor:
    return 1 + torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(model: ScoreModel, data: Tensor | None = None) -> object:
    return fastmsgm.fit(model, positive_data() if data is None else data, steps=1, progress=False)


def sampled(model: ScoreModel) -> Tensor:
    return fastmsgm.sample(model, 4, **OPTIONS)


def the_loss(model: ScoreModel) -> Tensor:
    return Loss(model)(positive_data())


USES: list[Callable[[ScoreModel], object]] = [the_loss, trained, sampled]


# ---- networks that do not fit ----


class Plain(nn.Module):
    """A layer, called with the noised data alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_network_of_another_dtype_is_refused(
    use: Callable[[ScoreModel], object], dtype: torch.dtype
) -> None:
    model = FAMILIES["gbm denoiser"](Plain(nn.Linear(D, D)).to(dtype))
    with pytest.raises(TypeError, match=rf"net failed .*, with parameters in {dtype} and an"):
        use(model)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("family", ["gbm denoiser", "gbm score", "vp"])
@pytest.mark.parametrize("convert", [ScoreModel.half, ScoreModel.bfloat16, ScoreModel.double])
def test_a_model_of_another_dtype_is_refused(
    use: Callable[[ScoreModel], object],
    family: str,
    convert: Callable[[ScoreModel], ScoreModel],
) -> None:
    model = convert(FAMILIES[family](nets.MLP(D, 8, 1)))
    with pytest.raises(TypeError, match="model must be in float32, got torch"):
        use(model)


def test_a_model_that_is_converted_back_is_taken() -> None:
    model = FAMILIES["gbm denoiser"](nets.MLP(D, 8, 1))
    expected = sampled(model)
    assert sampled(model.double().float()).shape == expected.shape


def test_a_network_that_converts_its_input_is_taken() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(D, D).double()

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.layer(x.double()).float()

    model = FAMILIES["gbm denoiser"](Double())
    assert torch.isfinite(the_loss(model))
    assert sampled(model).shape == (4, D)


def test_a_network_of_other_channels_is_refused_with_what_it_got() -> None:
    model = GBMModel.for_data(Plain(nn.Conv2d(1, 1, 3, padding=1)), GBM(0.8), images())
    message = (
        r"net failed, called with x \(128, 3, 8, 8\) torch.float32, c_noise \(128,\) .*: Given"
    )
    with pytest.raises(RuntimeError, match=message):
        trained(model, images())
    with pytest.raises(RuntimeError, match=r"net failed, called with x \(4, 3, 8, 8\)"):
        sampled(model)


def test_a_network_without_room_for_labels_says_what_it_got() -> None:
    class TooFew(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(D + 1, D)

        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
            return self.layer(torch.cat((x, label[:, None], label[:, None]), dim=1))

    model = FAMILIES["gbm denoiser"](TooFew(), classes=2)
    with pytest.raises(RuntimeError, match=r"net failed, .* label \(4,\) torch.int64: mat1"):
        sampled(model)


def test_other_errors_of_a_network_are_its_own() -> None:
    class Full(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("no memory left")

    with pytest.raises(torch.OutOfMemoryError, match=r"^no memory left$"):
        sampled(FAMILIES["gbm denoiser"](Full()))


# ---- numbers and arrays of NumPy ----

numpy: Any = np  # whose numbers the signatures do not name


@pytest.mark.parametrize(
    "build",
    [
        lambda: GBMModel.for_data(
            nets.MLP(numpy.int64(D)), GBM(numpy.float32(0.8)), positive_data()
        ),
        lambda: FAMILIES["vp"](nets.MLP(D)),
        lambda: fastmsgm.RotationModel.for_data(
            nets.MLP(D, condition={"log_norm": numpy.int8(1)}),
            Rotation(beta_max=numpy.float32(15), seed=numpy.uint8(3)),
            positive_data(),
            pareto=numpy.float64(0.1),
            offset=numpy.float32(0.5),
        ),
        lambda: fastmsgm.VPModel.for_data(
            nets.MLP(D), VP(beta_min=numpy.float64(0.2)), positive_data()
        ),
    ],
)
def test_numbers_of_numpy(build: Callable[[], ScoreModel]) -> None:
    model = fastmsgm.fit(
        build(),
        positive_data(),
        steps=numpy.int64(2),
        batch_size=numpy.int32(8),
        lr=numpy.float32(1e-3),
        ema=numpy.float64(0.9),
        warmup=numpy.int8(1),
        clip=numpy.float32(1),
        seed=numpy.uint64(3),
        progress=False,
    )
    x = fastmsgm.sample(
        model,
        numpy.int64(4),
        steps=numpy.int32(2),
        seed=numpy.uint64(2**63),
        start=numpy.int8(1),
        batch_size=numpy.int16(2),
        guidance=numpy.float32(1),
        progress=False,
    )
    again = fastmsgm.sample(model, 4, steps=2, seed=2**63, start=1, batch_size=2, progress=False)
    assert torch.equal(x, again)


def test_arrays_of_numpy_as_label_and_condition_of_samples() -> None:
    net = nets.MLP(D, 8, 1, condition={"c": 2}, classes=2)
    model = FAMILIES["gbm denoiser"](net, classes=2)
    label, c = numpy.array([0, 1, 1, 0]), numpy.ones((4, 2))
    x = fastmsgm.sample(model, 4, label=label, condition={"c": c}, **OPTIONS)
    tensors = {"label": torch.from_numpy(label), "condition": {"c": torch.from_numpy(c)}}
    assert torch.equal(x, fastmsgm.sample(model, 4, **tensors, **OPTIONS))


def test_arrays_of_numpy_as_data_are_refused_with_what_to_do() -> None:
    x, net = positive_data().numpy(), nets.MLP(D, 8, 1)
    model = FAMILIES["gbm denoiser"](net)
    uses: list[Callable[[Any], object]] = [
        Loss(model),
        functools.partial(fastmsgm.fit, model, steps=1, progress=False),
        functools.partial(GBMModel.for_data, net, GBM(0.8)),
    ]
    for use in uses:
        with pytest.raises(TypeError, match=r"data must be a tensor, got ndarray.*from_numpy"):
            use(x)


def test_arrays_of_numpy_as_labels_are_refused_with_what_to_do() -> None:
    model = FAMILIES["gbm denoiser"](nets.MLP(D, 8, 1, classes=2), classes=2)
    labels: Any = numpy.zeros(64, numpy.int64)
    with pytest.raises(TypeError, match=r"labels must be a tensor, got ndarray.*torch.as_tensor"):
        Loss(model)(positive_data(), labels=labels)


# ---- gradients off, or data that require them ----


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_fit_trains_where_gradients_are_off(context: Callable[[], Any]) -> None:
    models = [FAMILIES["gbm denoiser"](nets.MLP(D, 8, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    expected = trained(models[0])
    with context():
        model = trained(models[1])
    assert isinstance(expected, ScoreModel)
    assert isinstance(model, ScoreModel)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fit_refuses_data_that_require_a_gradient_before_the_first_step() -> None:
    model = FAMILIES["gbm denoiser"](nets.MLP(D, 8, 1))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="data must not require a gradient"):
        trained(model, positive_data().requires_grad_())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
