"""What models share with their user, callbacks and threads: modes, tensors, autocast, copies."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm import rng
from fastmsgm.loop import Loop
from fastmsgm.modes import evaluation
from fastmsgm.nets import MLP
from fastmsgm.rotation import RadialPrior, RotationModel
from fastmsgm.sampling import plan_for
from tests.models import FAMILIES, D, positive_data

Build = Callable[..., fastmsgm.ScoreModel]
OPTIONS: dict[str, Any] = {"steps": 3, "batch_size": 4, "progress": False}


@pytest.fixture(params=FAMILIES)
def build(request: pytest.FixtureRequest) -> Build:
    return FAMILIES[request.param]


class Linear(nn.Module):
    """A network with dropout, which calls ``meanwhile`` before it."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer, self.dropout, self.calls = nn.Linear(D, D), nn.Dropout(dropout), 0
        self.meanwhile: Callable[[], object] = int
        with torch.no_grad():
            self.layer.weight.copy_(0.1 * torch.arange(D * D).view(D, D).sin())
            self.layer.bias.fill_(0.1)

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        self.calls += 1
        self.meanwhile()
        f = self.layer(self.dropout(x)) + c_noise[:, None]
        for name, value in condition.items():
            given = value.nan_to_num(-1) + len(name)
            f = f + 0.05 * given.view(len(x), -1).float().sum(1)[:, None]
        return 0.1 * torch.tanh(f)


def samples(model: fastmsgm.ScoreModel, n: int = 8, **options: Any) -> Tensor:
    return fastmsgm.sample(model, n, **{**OPTIONS, **options})


def once(action: Callable[[], object]) -> Callable[[], object]:
    """Return a function that acts at its first call."""
    actions = [action]
    return lambda: actions.pop()() if actions else None


def in_thread(action: Callable[[], object]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()


# ---- modes ----


@pytest.fixture
def net() -> Linear:
    return Linear(dropout=0.5)


@pytest.fixture
def model(net: Linear) -> fastmsgm.ScoreModel:
    return FAMILIES["gbm denoiser"](net).train()


@pytest.fixture
def expected(model: fastmsgm.ScoreModel) -> Tensor:
    return samples(copy.deepcopy(model).eval())


def test_interleaved_runs_of_a_model_in_training_mode(
    model: fastmsgm.ScoreModel, expected: Tensor
) -> None:
    runs = [fastmsgm.sample_iter(model, 8, **OPTIONS) for _ in range(2)]
    chunks = []
    for pair in zip(*runs, strict=True):
        model.train()
        chunks.append(pair)
    for run in zip(*chunks, strict=True):
        assert torch.equal(torch.cat(run), expected)
    assert all(module.training for module in model.modules())


def test_a_run_that_ends_first_leaves_the_other_in_evaluation_mode(
    model: fastmsgm.ScoreModel, net: Linear, expected: Tensor
) -> None:
    entered, release, results = threading.Event(), threading.Event(), []

    def second() -> None:
        results.append(samples(model))

    thread = threading.Thread(target=second)

    def meanwhile() -> None:
        if threading.current_thread() is thread:
            entered.set()
            assert release.wait(60)
        elif not entered.is_set():
            thread.start()
            assert entered.wait(60)

    net.meanwhile = meanwhile
    assert torch.equal(samples(model), expected)
    release.set()
    thread.join(timeout=60)
    assert torch.equal(results[0], expected)
    assert all(module.training for module in model.modules())


def test_a_callback_may_change_the_mode(model: fastmsgm.ScoreModel, expected: Tensor) -> None:
    model.eval()
    assert torch.equal(samples(model, callback=lambda step: model.train(step.index > 1)), expected)
    assert all(module.training for module in model.modules())


def test_a_callback_may_change_the_mode_of_the_network(
    model: fastmsgm.ScoreModel, net: Linear, expected: Tensor
) -> None:
    assert torch.equal(samples(model, callback=lambda step: net.train(step.index < 2)), expected)
    assert model.training
    assert not net.training


@pytest.mark.parametrize("mode", [True, False])
def test_another_thread_may_change_the_mode_during_a_call(
    model: fastmsgm.ScoreModel, net: Linear, expected: Tensor, mode: bool
) -> None:
    model.train(not mode)
    net.meanwhile = once(lambda: in_thread(lambda: model.train(mode)))
    assert torch.equal(samples(model), expected)
    assert all(module.training == mode for module in model.modules())


def test_a_network_put_into_training_mode_during_a_call_is_reported(
    model: fastmsgm.ScoreModel, net: Linear
) -> None:
    net.meanwhile = once(lambda: in_thread(net.train))
    with pytest.raises(RuntimeError, match="was put into training mode during its evaluation"):
        samples(model)
    assert all(module.training for module in model.modules())


def test_a_network_may_keep_its_dropout_on(model: fastmsgm.ScoreModel, net: Linear) -> None:
    """It sets the mode of a part in every call, as Monte Carlo dropout does."""
    model.eval()
    net.meanwhile = net.dropout.train
    samples(model)
    assert not any(module.training for module in model.modules())


def test_training_beside_a_sampler_is_in_training_mode() -> None:
    """Another thread samples the model all the time; both wait for each other."""
    seen: list[bool] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.dropout = nn.Linear(3, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(self.dropout.training)
            return self.dropout(self.layer(x))

    data = torch.exp(torch.randn(64, 3))
    shared = fastmsgm.GBMModel.for_data(Net(), fastmsgm.GBM(8.0), data)
    stop = threading.Event()

    def sample_on() -> None:
        while not stop.is_set():
            fastmsgm.sample(shared, 4, steps=4, progress=False)

    thread = threading.Thread(target=sample_on)
    thread.start()
    try:
        fastmsgm.fit(shared, data, steps=30, batch_size=8, progress=False)
    finally:
        stop.set()
        thread.join()
    assert seen == [True] * 30


def test_modes_come_back_after_an_error(model: fastmsgm.ScoreModel, net: Linear) -> None:
    def fail() -> None:
        raise KeyError("fault")

    net.dropout.eval()
    net.meanwhile = fail
    with pytest.raises(KeyError, match="fault"):
        samples(model)
    assert {m.training for m in (model, net, net.layer)} == {True}
    assert not net.dropout.training


def test_a_compiled_network_gets_its_modes_back(
    model: fastmsgm.ScoreModel, net: Linear, expected: Tensor
) -> None:
    model.net = torch.compile(net, backend="eager")
    net.dropout.train()
    torch.testing.assert_close(samples(model), expected)
    assert all(module.training for module in model.modules())


def test_what_a_network_keeps_is_kept(model: fastmsgm.ScoreModel, net: Linear) -> None:
    samples(model)
    assert net.calls == 6


def test_evaluations_nest(model: fastmsgm.ScoreModel) -> None:
    with evaluation(model):
        with evaluation(model):
            pass
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert all(module.training for module in model.modules())


def test_chunks_leave_gradients_and_autocast_alone(model: fastmsgm.ScoreModel) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for _ in fastmsgm.sample_iter(model, 8, **OPTIONS):
            assert torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
    torch.set_grad_enabled(True)


def test_a_callback_that_enables_gradients_changes_nothing(
    model: fastmsgm.ScoreModel, expected: Tensor
) -> None:
    x = samples(model, callback=lambda _: torch.set_grad_enabled(True))
    assert torch.equal(x, expected)
    assert not x.requires_grad


# ---- tensors that a network changes ----


class Careless(Linear):
    """Overwrites all that it gets, but for what autograd needs."""

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        f = super().forward(x, c_noise, **condition)
        with torch.no_grad():
            for tensor in (x, c_noise, *condition.values()):
                if not tensor.requires_grad:
                    tensor.zero_()
        return f


def test_a_network_may_overwrite_its_input_in_sampling(build: Build) -> None:
    assert torch.equal(samples(build(Careless())), samples(build(Linear())))


def test_a_network_may_overwrite_its_input_in_training(build: Build) -> None:
    losses = []
    for net in (Linear(), Careless()):
        losses.append(fastmsgm.Loss(build(net))(positive_data()).item())
    assert losses[0] == losses[1]


def test_a_network_may_start_with_an_operation_in_place(build: Build) -> None:
    class InPlace(Linear):
        def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
            return super().forward(x.mul_(0.5), c_noise, **condition)

    class Outside(Linear):
        def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
            return super().forward(x * 0.5, c_noise, **condition)

    gradients = []
    for net in (InPlace(), Outside()):
        model = build(net)
        fastmsgm.Loss(model)(positive_data()).backward()
        gradients.append(net.layer.weight.grad)
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("family", ["gbm denoiser", "gbm score", "isotropic", "vp"])
def test_a_network_may_overwrite_its_input_with_guidance(family: str) -> None:
    results = []
    for net in (Careless(), Linear()):
        model = FAMILIES[family](net, classes=3)
        model.drop = 0.1
        results.append(samples(model, guidance=2.0, condition={"c": torch.ones(8, 2)}))
    assert torch.equal(*results)


def test_labels_and_conditions_of_the_user_are_not_changed() -> None:
    model = FAMILIES["gbm denoiser"](Careless(), classes=3)
    labels, c = torch.full((64,), 2), torch.ones(64, 2)
    fastmsgm.Loss(model)(positive_data(), labels=labels, c=c)
    samples(model, 64, label=labels, condition={"c": c})
    assert bool((labels == 2).all())
    assert bool((c == 1).all())


def test_chunks_keep_their_values_where_a_family_returns_its_state() -> None:
    model = FAMILIES["gbm score"](Linear())
    model.to_data = lambda state: state
    chunks = list(fastmsgm.sample_iter(model, 8, **OPTIONS))
    assert torch.equal(torch.cat(chunks), samples(model))


# ---- autocast ----


class Float32(Linear):
    """A network that leaves autocast."""

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float(), c_noise, **condition)


def test_samples_under_autocast(build: Build) -> None:
    model = build(Float32())
    expected = samples(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(samples(model), expected)


def test_losses_under_autocast(build: Build) -> None:
    model = build(Float32())
    expected = fastmsgm.Loss(model)(positive_data(), reduction="none")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fastmsgm.Loss(model)(positive_data(), reduction="none"), expected)


def test_guidance_under_autocast() -> None:
    model = FAMILIES["gbm denoiser"](Float32(), classes=3)
    model.drop = 0.1
    expected = samples(model, guidance=3.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(samples(model, guidance=3.0), expected)


def test_guidance_combines_half_precision_in_float32() -> None:
    class Half(Linear):
        def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
            return super().forward(x, c_noise, **condition).bfloat16()

    class Rounded(Half):
        def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
            return super().forward(x, c_noise, **condition).float()

    results = []
    for net in (Half(), Rounded()):
        model = FAMILIES["gbm denoiser"](net, classes=3)
        model.drop = 0.1
        results.append(samples(model, guidance=7.0))
    assert torch.equal(*results)


@pytest.mark.parametrize("family", ["gbm score", "isotropic", "ring", "dense"])
def test_perturb_under_autocast(family: str) -> None:
    process, t = FAMILIES[family](Linear()).preconditioning.process, torch.full((64,), 0.5)
    expected = process.perturb(positive_data(), t)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(process.perturb(positive_data(), t), expected)


def test_a_step_of_a_family_computes_outside_autocast() -> None:
    model = FAMILIES["vp"](Float32())
    plan = plan_for(model, steps=1)
    loop = Loop(model, plan, plan.state(model, 4), False, {})
    seen: list[bool] = []
    for name in ("step", "sample_prior"):
        original = getattr(loop.state, name)

        def watch(*args: Any, original: Callable[..., Any] = original) -> None:
            seen.append(torch.is_autocast_enabled("cpu"))
            original(*args)

        setattr(loop.state, name, watch)
    with torch.autocast("cpu", torch.bfloat16):
        loop.run(rng.stream(0), {})
    assert seen == [False] * (1 + plan.nfe)


# ---- copies ----


def pickled(model: fastmsgm.ScoreModel) -> fastmsgm.ScoreModel:
    return pickle.loads(pickle.dumps(model))


def saved(model: fastmsgm.ScoreModel) -> fastmsgm.ScoreModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled, saved])
def test_copies_give_the_same_samples(build: Build, copied: Callable[[Any], Any]) -> None:
    model = build(Linear())
    assert torch.equal(samples(copied(model)), samples(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_that_loads_weights_is_the_model_of_these(
    build: Build, copied: Callable[[Any], Any]
) -> None:
    model = build(Linear())
    other = copied(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if name in ("scale", "mean", "means", "log_norms"):
            weights[name] = 2 * value
    other.load_state_dict(weights)
    before = samples(model)
    model.load_state_dict(weights)
    assert torch.equal(samples(other), samples(model))
    assert not torch.equal(samples(other), before)


def test_a_copy_of_a_rotation_has_a_centre_of_its_own() -> None:
    model = RotationModel(
        Linear(), fastmsgm.Rotation(), RadialPrior(torch.arange(3.0)), shape=(D,), objective="dsm"
    )
    other = copy.deepcopy(model)
    other.load_state_dict({**model.state_dict(), "log_norms": torch.arange(3.0) + 5})
    assert other.condition_of(torch.tensor([1.0]).exp())["log_norm"].item() < -4
    assert model.condition_of(torch.tensor([1.0]).exp())["log_norm"].item() == 0


# ---- other processes ----


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


def test_a_model_is_sampled_in_a_spawned_process(pool: ProcessPoolExecutor) -> None:
    model = RotationModel(
        MLP(D, 8, 1, condition={"log_norm": 1}),
        fastmsgm.Rotation(),
        RadialPrior(torch.arange(3.0)),
        shape=(D,),
        objective="dsm",
    )
    there = pool.submit(samples, model).result(timeout=120)
    assert torch.equal(there, samples(model))


def diverge() -> None:
    model = FAMILIES["gbm denoiser"](Linear())
    calls: list[int] = []

    def second_chunk() -> None:
        calls.append(1)
        if len(calls) > 4:
            nn.init.constant_(model.net.layer.bias, float("nan"))

    model.net.meanwhile = second_chunk
    samples(model)


def test_a_non_finite_error_comes_from_a_spawned_process(pool: ProcessPoolExecutor) -> None:
    with pytest.raises(fastmsgm.NonFiniteError, match="at step 1 in 4 samples") as caught:
        pool.submit(diverge).result(timeout=120)
    assert caught.value.step == 1
    assert caught.value.indices == [4, 5, 6, 7]
    assert caught.value.samples is not None
    assert caught.value.samples.shape == (4, D)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_non_finite_error_is_copied_whole(copied: Callable[[Any], Any]) -> None:
    error = fastmsgm.NonFiniteError(3, [5, 6], guided=True)
    error.samples = torch.ones(2, D)
    again = copied(error)
    assert str(again) == str(error)
    assert (again.step, again.indices) == (3, [5, 6])
    assert torch.equal(again.samples, error.samples)
