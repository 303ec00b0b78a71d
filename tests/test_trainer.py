"""fit: it learns, its schedule and average, losses of one's own, order of the data, errors."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastmsgm import Loss, ScoreModel, fit, load, rng
from fastmsgm.data import DataOrder
from fastmsgm.gbm import GBM, DenoisingLoss, GBMModel, MDSMLoss
from fastmsgm.names import name_of
from fastmsgm.nets import MLP, UNet
from fastmsgm.rotation import SphericalDenoisingLoss
from fastmsgm.sde import SlicedScoreMatching
from fastmsgm.tensors import load_tensors
from fastmsgm.training import trainer
from tests.gbm.exact import log_normal_data
from tests.rotation.exact import heavy_tails
from tests.rotation.exact import vectors as rotation_model

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

FIXTURE = Path(__file__).parent / "data" / "fashion_fixture.safetensors"
DATA = log_normal_data(50)


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return load_file(FIXTURE)["images"].float() / 255


def settings_of(folder: Path) -> dict[str, Any]:
    _, metadata = load_tensors(folder / "training.safetensors")
    return json.loads(metadata["settings"])


def image_model(clothes: Tensor) -> GBMModel:
    torch.manual_seed(0)
    net = UNet(width=16, deep=32, blocks=1, deep_blocks=2)
    return GBMModel.for_data(net, GBM(10.0), clothes, offset=1.0, bounds=(0.0, 1.0))


def vector_model(**options: Any) -> GBMModel:
    torch.manual_seed(0)
    return GBMModel.for_data(MLP(3, 8, 1), GBM(5.0), DATA, **options)


def train(model: Any, data: Any = DATA, **options: Any) -> Any:
    return fit(
        model, data, **{"steps": 10, "batch_size": 16, "warmup": 2, "progress": False, **options}
    )


def loss_curve(folder: Path) -> list[tuple[str, str]]:
    with open(folder / "loss.csv", newline="") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def weights(model: ScoreModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


# ---- learning ----


def test_loss_decreases_on_clothes(clothes: Tensor, tmp_path: Path) -> None:
    model, options = image_model(clothes), {"lr": 3e-3, "ema": 0.9, "warmup": 5, "seed": 1}
    returned = train(model, clothes, steps=40, batch_size=32, out=tmp_path, **options)
    assert returned is model
    assert not model.training
    curve = [float(loss) for _, loss in loss_curve(tmp_path)]
    assert len(curve) == 40
    # At high noise levels, where the image is lost, the loss stays above about 0.6.
    assert sum(curve[-10:]) / 10 < 0.85 * sum(curve[:3]) / 3
    # The model holds the average of its weights, which has learned, too.
    states = model.to_state(clothes[:128])
    with torch.no_grad():
        after, before = (
            float(m.default_loss(m, states, rng.stream(99), 0).mean())
            for m in (model, image_model(clothes))
        )
    assert after < 0.9 * before
    again = load(tmp_path)
    for k, v in model.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[k], v)


@pytest.mark.parametrize(
    # A denoiser's preconditioning leaves little to learn on such data: its least loss is 0.92.
    ("prediction", "sigma", "share"),
    [("denoiser", 5.0, 0.95), ("hyvarinen", 0.8, 0.8), ("score", 0.8, 0.8)],
)
def test_every_prediction_learns(prediction: str, sigma: float, share: float) -> None:
    torch.manual_seed(0)
    model = GBMModel.for_data(MLP(3, 32, 2), GBM(sigma), DATA, prediction=prediction)
    loss = Loss(model, seed=7)
    before = loss(DATA, step=0).item()
    train(model, steps=150, lr=3e-3, ema=0.9, batch_size=64)
    assert loss(DATA, step=0).item() < share * before


def after_every_step(
    monkeypatch: pytest.MonkeyPatch, action: Callable[[torch.optim.Adam], None]
) -> None:
    """Do something after every step of the optimizer."""
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *args: Any) -> Any:
        result = original(self, *args)
        action(self)
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", step)


def test_the_average_is_exponential(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ema = 0 it is the last weights; with 0.9 it follows a <- 0.9 a + 0.1 w."""
    snapshots: list[Tensor] = []
    after_every_step(
        monkeypatch, lambda adam: snapshots.append(adam.param_groups[0]["params"][0].clone())
    )
    last = next(train(vector_model(), ema=0.0).net.parameters())
    assert torch.equal(last, snapshots[-1])
    snapshots.clear()
    average = next(train(vector_model(), ema=0.9).net.parameters())
    expected = snapshots[0]
    for snapshot in snapshots[1:]:
        expected = 0.9 * expected + 0.1 * snapshot
    torch.testing.assert_close(average.detach(), expected.detach())


def test_learning_rate_warms_up_and_decays(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    after_every_step(monkeypatch, lambda adam: rates.append(adam.param_groups[0]["lr"]))
    train(vector_model(), steps=100, warmup=10, lr=0.01)
    cosine = [(1 + math.cos(math.pi * k / 100)) / 2 for k in range(100)]
    expected = [0.01 * c * min(1, (k + 1) / 10) for k, c in enumerate(cosine)]
    assert rates == pytest.approx(expected)


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def remember(adam: torch.optim.Adam) -> None:
        gradients = [p.grad.flatten() for p in adam.param_groups[0]["params"]]
        norms.append(float(torch.cat(gradients).norm()))

    after_every_step(monkeypatch, remember)
    train(vector_model(), clip=0.01)
    assert norms == pytest.approx([0.01] * 10, rel=1e-3)


def test_a_thread_may_train() -> None:
    """Signals reach the main thread alone; elsewhere fit runs without them."""
    results: list[GBMModel] = []
    thread = threading.Thread(target=lambda: results.append(train(vector_model())))
    thread.start()
    thread.join()
    assert torch.equal(weights(results[0]), weights(train(vector_model())))


def test_images_with_channels_last_can_be_trained_on() -> None:
    data = torch.rand(20, 8, 8, 3).permute(0, 3, 1, 2)
    model = GBMModel.for_data(UNet(3, 16, 32, 1, 2), GBM(8.0), data, offset=1.0)
    train(model, data, steps=2, batch_size=4)


def test_a_network_of_ones_own_may_have_any_config() -> None:
    model = vector_model()
    model.net = type("Own", (MLP,), {})(3, 8)
    model.net.config = {"activation": torch.nn.SiLU}
    before = model.net.out.weight.clone()
    assert not torch.equal(train(model, steps=2).net.out.weight, before)


# ---- losses ----


def test_without_a_loss_it_is_that_of_the_model() -> None:
    """The model's own loss given by hand makes the same run."""
    assert torch.equal(
        weights(train(vector_model())), weights(train(vector_model(), loss=DenoisingLoss()))
    )
    models = [vector_model(prediction="hyvarinen") for _ in range(2)]
    train(models[0])
    train(models[1], loss=MDSMLoss())
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_noise_levels_of_training_can_be_chosen(tmp_path: Path) -> None:
    """Another p_mean and p_std make another run, which is not resumed with other ones."""
    default = train(vector_model())
    loss = DenoisingLoss(p_mean=-0.5, p_std=1.4)
    chosen = train(vector_model(), loss=loss, out=tmp_path)
    assert not torch.isclose(weights(default), weights(chosen)).all()
    settings = settings_of(tmp_path)
    assert settings["loss"] == "DenoisingLoss(p_mean=-0.5, p_std=1.4)"
    again = train(vector_model(), loss=DenoisingLoss(p_mean=-0.5, p_std=1.4), out=tmp_path)
    assert torch.equal(weights(again), weights(chosen))
    for other in (None, DenoisingLoss(), DenoisingLoss(p_mean=-0.5, p_std=1.3)):
        with pytest.raises(ValueError, match=r"holds a run with other settings .*'loss'"):
            train(vector_model(), loss=other, out=tmp_path)


def test_fit_trains_at_the_noise_levels_of_the_loss() -> None:
    model, seen = vector_model(), list[Tensor]()
    forward = model.net.forward
    model.net.forward = lambda x, c: (seen.append(c), forward(x, c))[1]
    train(model, steps=50, batch_size=200, loss=DenoisingLoss(p_mean=-0.5, p_std=0.4))
    log_s = 4 * torch.cat(seen).double()
    assert float(log_s.mean()) == pytest.approx(-0.5, abs=4.5 * 0.4 / len(log_s) ** 0.5)
    assert float(log_s.std()) == pytest.approx(0.4, rel=0.03)


def absolute_error(
    model: GBMModel, x0: Tensor, stream: Tensor, step: int, **condition: Tensor
) -> Tensor:
    """A loss of one's own, of a network without noise."""
    assert not condition
    y = torch.log(x0)
    return (model(y, torch.zeros(len(x0))) - y).abs().mean(1)


def test_a_plain_function_is_a_loss(tmp_path: Path) -> None:
    model = vector_model()
    y = torch.log(model.to_state(DATA))

    def error() -> float:
        with torch.no_grad():
            return float((model(y, torch.zeros(len(y))) - y).abs().mean())

    before = error()
    train(model, steps=60, lr=1e-2, ema=0.5, loss=absolute_error, out=tmp_path)
    assert error() < 0.5 * before
    settings = settings_of(tmp_path)
    assert settings["loss"] == f"{__name__}.absolute_error"
    with pytest.raises(ValueError, match=r"holds a run with other settings .*'loss'"):
        train(vector_model(), steps=60, lr=1e-2, ema=0.5, out=tmp_path)


@pytest.mark.parametrize("loss", [3, "dsm", (0.0, 1.0), torch.ones(3)])
def test_what_cannot_be_called_is_no_loss(loss: Any) -> None:
    message = (
        rf"loss must be a function \(.*\) or None, got {type(loss).__name__}: give an instance"
    )
    with pytest.raises(TypeError, match=message):
        train(vector_model(), loss=loss)


@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
def test_chosen_noise_levels_are_for_denoisers(prediction: str) -> None:
    model = vector_model(prediction=prediction)
    message = f"DenoisingLoss is for prediction='denoiser', got '{prediction}': use MDSMLoss"
    with pytest.raises(TypeError, match=message):
        train(model, loss=DenoisingLoss(p_mean=0.0, p_std=1.0))


@pytest.mark.parametrize(
    ("build", "data", "loss", "message"),
    [
        (rotation_model, heavy_tails(), DenoisingLoss(), "must be a GBMModel for this loss, got R"),
        (rotation_model, heavy_tails(), MDSMLoss(), "must be a GBMModel for this loss, got Rotati"),
        (vector_model, DATA, SphericalDenoisingLoss(), "must be a RotationModel of isotropic noi"),
        (vector_model, DATA, SlicedScoreMatching(), "must be a RotationModel or a VPModel for sli"),
    ],
)
def test_losses_of_other_families_are_refused(
    build: Callable[[], ScoreModel], data: Tensor, loss: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        train(build(), data, loss=loss)


def test_a_rotation_can_be_trained_by_either_loss() -> None:
    models = [rotation_model() for _ in range(3)]
    train(models[0], heavy_tails())
    train(models[1], heavy_tails(), loss=SphericalDenoisingLoss())
    train(models[2], heavy_tails(), loss=SlicedScoreMatching())
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


# ---- failures ----


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()  # a checkpoint is due at every fourth step
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 3.5)
    original = DenoisingLoss.__call__

    def broken(self: Any, model: Any, x0: Tensor, stream: Tensor, step: int) -> Tensor:
        losses = original(self, model, x0, stream, step)
        return losses * value if step == 6 else losses

    with monkeypatch.context() as patch:
        patch.setattr(DenoisingLoss, "__call__", broken)
        with pytest.raises(
            FloatingPointError,
            match=r"the loss is (nan|inf) at step 8: lower lr \(now 0\.000206\) or use fp32",
        ):
            train(vector_model(), out=tmp_path / "broken")
    assert len(loss_curve(tmp_path / "broken")) == 4
    stored = load_file(tmp_path / "broken" / "training.safetensors")
    assert all(bool(v.isfinite().all()) for v in stored.values())
    # Without the cause, the run goes on exactly.
    resumed, whole = (train(vector_model(), out=tmp_path / run) for run in ("broken", "whole"))
    assert loss_curve(tmp_path / "broken") == loss_curve(tmp_path / "whole")
    assert torch.equal(weights(resumed), weights(whole))


def test_an_infinite_gradient_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    """In the last step, of a finite loss: clipping turns it into NaN, which must not be saved."""
    model = vector_model()
    next(model.net.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        FloatingPointError, match=r"the gradient norm is (nan|inf) at step 1: lower lr"
    ):
        train(model, out=tmp_path, steps=1)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("last", [False, True])
def test_an_update_that_is_not_finite_is_not_saved(
    last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient are those before the update."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)
    wrong = 9 if last else 5

    def rate(step: int) -> float:
        return 3e38 if step == wrong else 1e-3

    optimizer = functools.partial(torch.optim.SGD, momentum=0.9)
    with pytest.raises(
        FloatingPointError, match=r"net\..* is not finite at step|is (nan|inf) at step"
    ):
        train(vector_model(), lr=rate, optimizer=optimizer, clip=math.inf, out=tmp_path)
    stored = load_file(tmp_path / "training.safetensors")
    assert all(bool(v.isfinite().all()) for v in stored.values())


def test_a_model_of_inference_tensors_is_refused() -> None:
    with torch.inference_mode():
        model = vector_model()
    with pytest.raises(ValueError, match=r"model must be built outside torch\.inference_mode"):
        train(model)


# ---- arguments ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be in 1 .. 2147483648, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, r"lr must be a positive number, got 0\.0"),
        ({"lr": -1.0}, r"lr must be a positive number, got -1\.0"),
        ({"lr": math.inf}, "lr must be a positive number, got inf"),
        ({"lr": math.nan}, "lr must be a positive number, got nan"),
        ({"lr": True}, "lr must be a positive number, got True"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1\.0"),
        ({"ema": -0.1}, r"ema must be in \[0, 1\), got -0\.1"),
        ({"ema": math.nan}, r"ema must be in \[0, 1\), got nan"),
        ({"clip": 0.0}, r"clip must be positive, got 0\.0"),
        ({"clip": -1.0}, r"clip must be positive, got -1\.0"),
        ({"clip": math.nan}, "clip must be positive, got nan"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        (
            {"precision": "fp8"},
            "precision must be fp32 or bf16, since fp16 gradients underflow, got 'fp8'",
        ),
        ({"precision": "fp16"}, "precision must be fp32 or bf16"),
        ({"tensorboard": True}, "tensorboard must be given together with out, got True"),
        ({"seed": -1}, r"seed must be in 0 \.\. 2\^64 - 1, got -1"),
        ({"seed": 2**64}, r"seed must be in 0 \.\. 2\^64 - 1, got 18446744073709551616"),
        (
            {"data": torch.ones(9, 4)},
            r"data must have shape \(N, 3\), got \(N, 4\)",
        ),
        (
            {"data": torch.ones(9, 3).double()},
            r"data must be float32 or uint8, got torch\.float64 \(9, 3\): convert with \.float\(\)",
        ),
        (
            {"data": torch.ones(9, 3, dtype=torch.int64)},
            r"data must be float32 or uint8, got torch\.int64",
        ),
        ({"data": torch.ones(0, 3)}, "data must"),
        ({"data": torch.tensor([[1.0, 0.0, 1.0]])}, "data must have no zeros"),
        ({"data": torch.tensor([[1.0, math.nan, 1.0]])}, "data must be finite"),
        ({"data": -DATA}, "data must keep, in every feature, the sign of the data"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """They are refused before anything is changed or written."""
    model = vector_model()
    before = weights(model)
    out = {} if "tensorboard" in options else {"out": tmp_path / "new"}
    with pytest.raises(ValueError, match=message):
        train(model, **{"data": DATA, **out, **options})
    assert torch.equal(weights(model), before)
    assert model.precision == "fp32"
    assert not (tmp_path / "new").exists()


COUNTS = ("steps", "batch_size", "accumulate", "warmup", "every", "seed")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pair
        for pair in itertools.product(COUNTS, (2.0, 2.5, True, "2", None))
        if pair != ("batch_size", None)  # which is 128
    ],
)
def test_counts_are_integers(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an int, got {value!r}"):
        train(vector_model(), **{name: value}, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", COUNTS)
def test_counts_may_be_numpy_integers(name: str, tmp_path: Path) -> None:
    """A run with them is that of Python's integers, which resumes it."""
    first = train(vector_model(), **{name: np.int64(3)}, out=tmp_path)
    second = train(vector_model(), **{name: 3})
    assert torch.equal(weights(first), weights(second))
    again = train(vector_model(), **{name: 3}, out=tmp_path)
    assert torch.equal(weights(again), weights(first))


@pytest.mark.parametrize("model", ["fashion-gbm", None, MLP(3)])
def test_what_is_no_model_is_refused(model: Any) -> None:
    message = f"model must be a ScoreModel, got {type(model).__name__}: build one with"
    with pytest.raises(TypeError, match=message):
        train(model)


def test_data_must_be_a_tensor() -> None:
    with pytest.raises(TypeError, match="data must be a tensor, got ndarray: convert arrays with"):
        train(vector_model(), DATA.numpy())


def test_positions_in_an_epoch_are_uniform() -> None:
    """Where each sample comes in 600 epochs of 6 samples: a chi-squared test at 1e-5."""
    order = DataOrder(6, batch_size=6, seed=0)
    counts = torch.zeros(6, 6)
    for epoch in range(600):
        counts[torch.arange(6), order.batch(epoch)] += 1
    assert float(((counts - 100) ** 2 / 100).sum()) < 70  # 25 degrees of freedom


class Plain:
    """A loss without a repr of its own."""

    def __call__(self, model: Any, *rest: Any) -> Tensor:
        return model.default_loss(model, *rest)


def test_what_identifies_a_loss() -> None:
    """Neither an address nor a name that several losses share."""
    low, high = DenoisingLoss(p_mean=-1.0), DenoisingLoss(p_mean=1.0)
    assert name_of(low) == "DenoisingLoss(p_mean=-1.0, p_std=1.2)"
    assert name_of(low.__call__) != name_of(high.__call__)
    for loss in (Plain(), functools.partial(Plain()), Plain().__call__):
        assert name_of(loss) == name_of(loss)
        assert " at 0x" not in str(name_of(loss))
    assert " at 0x" not in str(name_of(functools.partial(train, Plain())))
    assert name_of(Plain()) == name_of(Plain())
    with pytest.raises(TypeError, match=r"loss must be a function .* give an instance"):
        train(vector_model(), loss=DenoisingLoss)
