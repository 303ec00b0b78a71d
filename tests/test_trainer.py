"""fit: it learns, it stops and goes on as if it had not stopped, and it keeps what it has when things go wrong."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact import log_normal_data
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fastmsgm import GBM, GBMModel, fit, load, losses, rng, trainer
from fastmsgm.nets import MLP, UNet
from fastmsgm.trainer import _DataOrder, _same

FIXTURE = Path(__file__).parent / "data" / "fashion_fixture.safetensors"
DATA = log_normal_data(50)


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return load_file(FIXTURE)["images"].float() / 255


def image_model(clothes: Tensor, prediction: str = "denoiser") -> GBMModel:
    torch.manual_seed(0)
    net = UNet(width=16, deep=32, blocks=1, deep_blocks=2)
    return GBMModel.for_data(net, GBM(10.0), clothes, prediction=prediction, offset=1.0, bounds=(0.0, 1.0))


def vector_model() -> GBMModel:
    torch.manual_seed(0)
    return GBMModel.for_data(MLP(3, 8, 1), GBM(5.0), DATA)


def train(model: GBMModel, data: Any = DATA, **options: Any) -> GBMModel:
    return fit(model, data, **{"steps": 10, "batch_size": 16, "warmup": 2, "progress": False, **options})


def loss_curve(folder: Path) -> list[tuple[str, str]]:
    with open(folder / "loss.csv", newline="") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Tensor | None]) -> None:
    """Do something in the middle of an optimizer step, and return its result as the loss if it has one."""
    original = losses.loss

    def hooked(model: GBMModel, x0: Tensor, stream: Tensor, k: int, *rest: Any) -> Tensor:
        value = original(model, x0, stream, k, *rest)
        replaced = action() if k == step else None
        return value if replaced is None else value * replaced

    monkeypatch.setattr(losses, "loss", hooked)


# ---- learning ----


def test_loss_decreases_on_clothes(clothes: Tensor, tmp_path: Path) -> None:
    model = image_model(clothes)
    returned = fit(
        model, clothes, steps=40, batch_size=32, lr=3e-3, ema=0.9, warmup=5, out=tmp_path, seed=1, progress=False
    )
    assert returned is model
    assert not model.training
    curve = [float(loss) for _, loss in loss_curve(tmp_path)]
    assert len(curve) == 40
    # Noise that says nothing of the image keeps the loss above 0.6 or so.
    assert sum(curve[-10:]) / 10 < 0.85 * sum(curve[:3]) / 3
    # The model holds the average of its weights, and it too has learned.
    states = model.to_state(clothes[:128])
    with torch.no_grad():
        after, before = (float(losses.loss(m, states, rng.stream(99), 0)) for m in (model, image_model(clothes)))
    assert after < 0.9 * before
    again = load(tmp_path)
    for k, v in model.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[k], v)


def test_every_prediction_learns() -> None:
    # A denoiser's preconditioning leaves little to learn on data as simple as these: the least loss is 0.92.
    for prediction, sigma, share in (("denoiser", 5.0, 0.95), ("hyvarinen", 0.8, 0.8), ("score", 0.8, 0.8)):
        torch.manual_seed(0)
        model = GBMModel.for_data(MLP(3, 32, 2), GBM(sigma), DATA, prediction=prediction)
        before = losses.loss(model, model.to_state(DATA), rng.stream(7), 0).item()
        train(model, steps=150, lr=3e-3, ema=0.9, batch_size=64)
        after = losses.loss(model, model.to_state(DATA), rng.stream(7), 0).item()
        assert after < share * before, prediction


def test_the_average_is_exponential(tmp_path: Path) -> None:
    """With ema = 0 it is the last weights; with ema = 0.9 it follows the recursion a <- 0.9 a + 0.1 w."""
    snapshots: list[Tensor] = []
    original = torch.optim.Adam.step
    with pytest.MonkeyPatch.context() as patch:

        def step(self: torch.optim.Adam, *args: Any) -> Any:
            result = original(self, *args)
            snapshots.append(self.param_groups[0]["params"][0].detach().clone())
            return result

        patch.setattr(torch.optim.Adam, "step", step)
        last = next(train(vector_model(), ema=0.0).net.parameters())
        assert torch.equal(last, snapshots[-1])
        snapshots.clear()
        average = next(train(vector_model(), ema=0.9).net.parameters())
    expected = snapshots[0]
    for weights in snapshots[1:]:
        expected = 0.9 * expected + 0.1 * weights
    torch.testing.assert_close(average.detach(), expected)


def test_learning_rate_warms_up_and_decays() -> None:
    rates = []
    original = torch.optim.Adam.step
    with pytest.MonkeyPatch.context() as patch:

        def step(self: torch.optim.Adam, *args: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return original(self, *args)

        patch.setattr(torch.optim.Adam, "step", step)
        train(vector_model(), steps=100, warmup=10, lr=0.01)
    cosine = [(1 + math.cos(math.pi * k / 100)) / 2 for k in range(100)]
    expected = [0.01 * c * min(1, (k + 1) / 10) for k, c in enumerate(cosine)]
    assert rates == pytest.approx(expected)


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *args: Any) -> Any:
        grads = [p.grad.flatten() for p in self.param_groups[0]["params"]]
        norms.append(float(torch.cat(grads).norm()))
        return original(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    train(vector_model(), clip=0.01)
    assert norms == pytest.approx([0.01] * 10, rel=1e-3)


# ---- stop and resume ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_a_resumed_run_is_the_uninterrupted_one(
    number: signal.Signals, kind: str, clothes: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of step 6 of 14: loss curve and files are equal to the last bit, across an epoch's end."""
    build, data = (vector_model, DATA) if kind == "vectors" else (lambda: image_model(clothes), clothes[:50])
    options: dict[str, Any] = {"steps": 14, "batch_size": 8, "seed": 3, "ema": 0.8}
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    whole = train(build(), data, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt, match="stopped after step 7"):
            train(build(), data, out=tmp_path / "halved", **options)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert loss_curve(tmp_path / "halved") == loss_curve(tmp_path / "whole")[:7]
    resumed = train(build(), data, out=tmp_path / "halved", **options)
    assert loss_curve(tmp_path / "halved") == loss_curve(tmp_path / "whole")
    assert len(loss_curve(tmp_path / "whole")) == 14
    for k, v in whole.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[k], v)
    for name in ("model.safetensors", "training.safetensors"):
        first, second = (load_file(tmp_path / run / name) for run in ("whole", "halved"))
        assert first.keys() == second.keys()
        for k in first:
            assert torch.equal(first[k], second[k]), k


def test_a_finished_run_is_only_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(vector_model(), out=tmp_path)
    monkeypatch.setattr(losses, "loss", lambda *_: pytest.fail("trained again"))
    second = train(vector_model(), out=tmp_path)
    for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_are_written_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every CHECKPOINT_SECONDS: what is there in the middle of a run continues it, as after a power cut."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(trainer, "FLUSH_EVERY", 4)
    whole = train(vector_model(), out=tmp_path / "whole")

    def cut() -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        at_step(patch, 9, cut)
        with pytest.raises(OSError, match="power cut"):
            train(vector_model(), out=tmp_path / "cut")
    assert len(loss_curve(tmp_path / "cut")) == 8
    resumed = train(vector_model(), out=tmp_path / "cut")
    assert loss_curve(tmp_path / "cut") == loss_curve(tmp_path / "whole")
    for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("files", range(10))
def test_a_cut_between_two_files_of_a_checkpoint(files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many files, of the first checkpoint or a later one, the power fails: the run still goes on exactly."""
    monkeypatch.setattr(trainer, "FLUSH_EVERY", 4)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    whole = train(vector_model(), out=tmp_path / "whole")
    written = []

    def replace(source: Any, target: Any) -> None:
        if len(written) == files:
            raise OSError("power cut")
        written.append(target)
        original(source, target)

    original = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="power cut"):
            train(vector_model(), out=tmp_path / "cut")
    resumed = train(vector_model(), out=tmp_path / "cut")
    assert loss_curve(tmp_path / "cut") == loss_curve(tmp_path / "whole")
    for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_thread_may_train() -> None:
    """Signals belong to the main thread; elsewhere fit does without them."""
    results: list[GBMModel] = []
    thread = threading.Thread(target=lambda: results.append(train(vector_model())))
    thread.start()
    thread.join()
    expected = train(vector_model())
    assert torch.equal(next(results[0].net.parameters()), next(expected.net.parameters()))


@pytest.mark.parametrize(
    "changes",
    [{"steps": 11}, {"batch_size": 8}, {"lr": 2e-3}, {"ema": 0.5}, {"seed": 1}, {"warmup": 3}, {"clip": 2.0},
     {"precision": "bf16"}, {"levels": (-1.0, 1.0)}],
)  # fmt: skip
def test_other_settings_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    train(vector_model(), out=tmp_path)
    before = (tmp_path / "training.safetensors").read_bytes()
    (name,) = changes
    with pytest.raises(ValueError, match=rf"out=.* holds a run with other settings .*'{name}': .* use a new folder"):
        train(vector_model(), out=tmp_path, **changes)
    assert (tmp_path / "training.safetensors").read_bytes() == before


def test_a_checkpoint_is_json_csv_and_safetensors(tmp_path: Path) -> None:
    train(vector_model(), out=tmp_path / "run")
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "model.safetensors", "training.json", "training.safetensors", "loss.csv"}
    for path in (tmp_path / "run").glob("*.json"):
        json.loads(path.read_text())
    for path in (tmp_path / "run").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert len(list(file.keys())) > 3
    assert [step for step, _ in loss_curve(tmp_path / "run")] == [str(k) for k in range(1, 11)]


# ---- when things go wrong ----


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "FLUSH_EVERY", 4)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: torch.tensor(value))
        with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step 8: lower lr \(now 0\.001\)"):
            train(vector_model(), out=tmp_path / "broken")
    assert len(loss_curve(tmp_path / "broken")) == 4
    assert all(bool(v.isfinite().all()) for v in load_file(tmp_path / "broken" / "training.safetensors").values())
    # The cause removed, the run goes on from there as if nothing had been.
    resumed, whole = (train(vector_model(), out=tmp_path / run) for run in ("broken", "whole"))
    assert loss_curve(tmp_path / "broken") == loss_curve(tmp_path / "whole")
    assert torch.equal(next(resumed.net.parameters()), next(whole.net.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be .*at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be .*at least 1, got 0"),
        ({"lr": 0.0}, r"lr must be positive and finite, got 0\.0"),
        ({"lr": -1.0}, r"lr must be positive and finite, got -1\.0"),
        ({"lr": math.inf}, "lr must be positive and finite, got inf"),
        ({"lr": math.nan}, "lr must be positive and finite, got nan"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1\.0"),
        ({"ema": -0.1}, r"ema must be in \[0, 1\), got -0\.1"),
        ({"clip": 0.0}, r"clip must be positive, got 0\.0"),
        ({"clip": -1.0}, r"clip must be positive, got -1\.0"),
        ({"levels": (0.0, 0.0)}, r"levels must be a finite mean and a positive standard deviation.*got \(0\.0, 0\.0\)"),
        ({"levels": (math.nan, 1.0)}, "levels must be a finite mean"),
        ({"levels": 3}, "levels must be a finite mean and a positive standard deviation, got 3"),
        ({"warmup": -1}, "warmup must be .*at least 0, got -1"),
        ({"precision": "fp8"}, "precision must be fp32 or bf16, since fp16 gradients underflow, got 'fp8'"),
        ({"precision": "fp16"}, "precision must be fp32 or bf16"),
        ({"tensorboard": True}, "tensorboard must be given together with out, got True"),
        ({"seed": -1}, "seed must be in 0"),
        ({"data": torch.ones(9, 4)}, r"data must be float32 of shape \(N, 3\), got torch\.float32 \(9, 4\)"),
        ({"data": torch.ones(9, 3).double()}, r"data must be float32 of shape \(N, 3\), got torch\.float64"),
        ({"data": torch.ones(9, 3, dtype=torch.uint8)}, r"data must be float32 of shape \(N, 3\), got torch\.uint8"),
        ({"data": torch.ones(0, 3)}, "data must"),
        ({"data": torch.tensor([[1.0, 0.0, 1.0]])}, "data must have no zeros"),
        ({"data": torch.tensor([[1.0, math.nan, 1.0]])}, "data must be finite"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = vector_model()
    before = [p.clone() for p in model.parameters()]
    options = {"data": DATA, **({} if "tensorboard" in options else {"out": tmp_path / "new"}), **options}
    with pytest.raises((ValueError, TypeError), match=message):
        train(model, options.pop("data"), **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.precision == "fp32"
    assert not (tmp_path / "new").exists()


def test_a_network_of_ones_own_may_have_any_config() -> None:
    model = vector_model()
    model.net = type("Own", (MLP,), {})(3, 8)
    model.net.config = {"activation": torch.nn.SiLU}
    before = model.net.out.weight.clone()
    assert not torch.equal(train(model, steps=2).net.out.weight, before)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be a ScoreModel, got str: build one with"):
        train("fashion-gbm")  # type: ignore[arg-type]


def test_a_run_of_another_network_is_refused(tmp_path: Path) -> None:
    train(vector_model(), out=tmp_path)
    other = vector_model()
    other.net = MLP(3, 24)
    with pytest.raises(ValueError, match=r"holds a run with other settings .*'net': \(.*'width': 24.*use a new folder"):
        train(other, out=tmp_path)


def test_an_infinite_gradient_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    """Of a finite loss, in the last step: clipping makes NaN of it, and the weights would be kept."""
    model = vector_model()
    next(model.net.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FloatingPointError, match=r"the gradient's norm is (nan|inf) at step 1: lower lr"):
        train(model, out=tmp_path, steps=1)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["steps", "batch_size"])
def test_counts_are_integers(name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
        train(vector_model(), **{name: 2.5})


# ---- order of the data ----


@pytest.mark.parametrize(("rows", "size"), [(10, 4), (64, 16), (5, 12), (1, 3), (37, 37)])
def test_every_epoch_is_its_own_permutation(rows: int, size: int) -> None:
    order, epochs = _DataOrder(rows, seed=2), 12
    indices = torch.cat([order.batch(k, size) for k in range(-(-rows * epochs // size))])[: rows * epochs]
    passes = indices.reshape(epochs, rows)
    assert torch.equal(passes.sort(1).values, torch.arange(rows).expand(epochs, rows))
    if rows > 4:
        assert len(passes.unique(dim=0)) == epochs
        assert not torch.equal(indices[:rows], _DataOrder(rows, seed=3).batch(0, rows))


def test_the_order_does_not_depend_on_the_past() -> None:
    order = _DataOrder(10, seed=2)
    batches = [order.batch(k, 4) for k in range(9)]
    for k in (8, 2, 5, 0):
        assert torch.equal(_DataOrder(10, seed=2).batch(k, 4), batches[k])
        assert torch.equal(order.batch(k, 4), batches[k])


def test_positions_in_an_epoch_are_uniform() -> None:
    """Where each row comes in 600 epochs of 6 rows: a chi-squared test at 1e-5."""
    order = _DataOrder(6, seed=0)
    counts = torch.zeros(6, 6)
    for epoch in range(600):
        counts[torch.arange(6), order.batch(epoch, 6)] += 1
    assert float(((counts - 100) ** 2 / 100).sum()) < 70  # 25 degrees of freedom


# ---- other data, other models ----


@pytest.mark.parametrize("other", ["process", "prediction", "rows"])
def test_a_run_of_another_model_or_data_set_is_refused(other: str, tmp_path: Path) -> None:
    train(vector_model(), out=tmp_path)
    process = GBM(2.0) if other == "process" else GBM(5.0)
    prediction = "score" if other == "prediction" else "denoiser"
    torch.manual_seed(0)
    model = GBMModel.for_data(MLP(3, 8, 1), process, DATA, prediction=prediction)
    with pytest.raises(ValueError, match=rf"other settings .*'{other}'"):
        train(model, DATA[:40] if other == "rows" else DATA, out=tmp_path)


def test_a_run_goes_on_though_what_was_fitted_differs_in_late_digits(tmp_path: Path) -> None:
    """As where log_std is summed by another number of threads."""
    first = train(vector_model(), out=tmp_path)
    model = vector_model()
    model.log_std *= 1 + 1e-9
    for a, b in zip(first.net.parameters(), train(model, out=tmp_path).net.parameters(), strict=True):
        assert torch.equal(a, b)
    model = vector_model()
    model.log_std *= 1 + 1e-5
    with pytest.raises(ValueError, match=r"other settings .*'log_std'"):
        train(model, out=tmp_path)


def test_settings_are_compared_in_depth() -> None:
    note = {"a": {"b": [1.0, None, "x", True]}, "c": 3}
    assert _same(note, {"a": {"b": [1 + 1e-9, None, "x", True]}, "c": 3})
    for other in ([1 + 1e-5, None, "x", True], [1.0, None, "x"], [1.0, 0.0, "x", True], [1.0, None, "y", True]):
        assert not _same(note, {"a": {"b": other}, "c": 3})
    assert not _same(note, {"a": {"b": [1.0, None, "x", True]}})
    assert not _same(note, {**note, "c": 4})


def test_numbers_of_numpy_are_written_down(tmp_path: Path) -> None:
    train(vector_model(), steps=2, out=tmp_path, lr=np.float32(0.25), levels=(np.float32(-1.0), np.float32(0.5)))
    note = json.loads((tmp_path / "training.json").read_text())
    assert (note["lr"], note["levels"]) == (0.25, [-1.0, 0.5])


@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
def test_levels_are_for_denoisers(prediction: str) -> None:
    model = GBMModel.for_data(MLP(3, 8, 1), GBM(0.8), DATA, prediction=prediction)
    with pytest.raises(ValueError, match=r"levels must be None but for a GBM denoiser: .*, got \(0\.0, 1\.0\)"):
        train(model, levels=(0.0, 1.0))


def test_images_with_channels_last_can_be_trained_on() -> None:
    data = torch.rand(20, 8, 8, 3).permute(0, 3, 1, 2)
    model = GBMModel.for_data(UNet(3, 16, 32, 1, 2), GBM(8.0), data, offset=1.0)
    train(model, data, steps=2, batch_size=4)


def test_a_compiled_network_is_saved_as_what_it_is(tmp_path: Path) -> None:
    model = vector_model()
    model.net = torch.compile(model.net, backend="eager")
    train(model, steps=2, out=tmp_path)
    x, c = torch.ones(2, 3), torch.zeros(2)
    assert torch.equal(load(tmp_path)(x, c), model(x, c))
