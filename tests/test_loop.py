"""The loop of a chunk: nothing of the host in it, one compiled function for all steps and chunks, the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from exact import log_normal_data
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from fastmsgm import GBM, VP, GBMModel, Rotation, RotationModel, VPModel, rng, sample, sample_iter, simulated
from fastmsgm.loop import Loop
from fastmsgm.model import ScoreModel
from fastmsgm.nets import MLP, UNet
from fastmsgm.sampling import plan_for
from fastmsgm.walks import walk_of


def shaken(model: ScoreModel) -> ScoreModel:
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def vectors() -> ScoreModel:
    return shaken(GBMModel.for_data(MLP(3, 8, 1), GBM(5.0), log_normal_data(60)))


def images() -> ScoreModel:
    labels = torch.arange(30) % 3
    net = UNet(1, 16, 32, 1, 2, classes=3)
    data = torch.rand(30, 1, 8, 8)
    return shaken(GBMModel.for_data(net, GBM(8.0), data, labels=labels, classes=3, offset=1.0))


def rotation(noise: str) -> ScoreModel:
    data = simulated.correlated_cauchy(100, 4)
    return shaken(RotationModel.for_data(MLP(4, 8, 1, conditions=2), Rotation(noise=noise), data))


CASES: dict[str, tuple[Callable[[], ScoreModel], str]] = {
    "gbm": (vectors, "sde-dpm++2m"),
    "heun": (vectors, "heun"),
    "classes": (images, "dpm++2m"),
    "isotropic": (lambda: rotation("isotropic"), "sde-dpm++2m"),
    "ring": (lambda: rotation("ring"), "sde-ring-splitting"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ScoreModel, str]:
    build, solver = CASES[request.param]
    return build(), solver


# ---- nothing of the host ----


class Watch(TorchDispatchMode):
    """Fails on what makes the host wait for the device, or draws from a generator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount")
        draws = ("rand", "normal_", "uniform_", "bernoulli", "multinomial", "exponential_", "dropout")
        if any(name.split("::")[1].startswith(word) for word in (*waits, *draws)):
            raise AssertionError(f"{name} within the loop")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forbidden(name: str) -> Callable[..., None]:
        def call(*_: Any, **__: Any) -> None:
            raise AssertionError(f"Tensor.{name} within the loop")

        return call

    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, name, forbidden(name))
    with Watch(), torch.no_grad():
        yield


def loop_of(model: ScoreModel, solver: str) -> Loop:
    loop = Loop(walk_of(model, plan_for(model, solver, 4), 8), compiled=False)
    loop.run(rng.stream(3))
    return loop


def test_nothing_waits_and_nothing_draws(
    case: tuple[ScoreModel, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", "reference")  # in PyTorch all the way down, so that all of it is seen
    with torch.no_grad():
        loop = loop_of(*case)
    request.getfixturevalue("watched")
    loop.steps()


@pytest.mark.parametrize(
    "act", [lambda x: x.sum().item(), lambda x: (x > 0).nonzero(), torch.randn_like, lambda x: x.cpu()]
)
def test_the_watch_sees_what_it_must(act: Callable[[Tensor], object], request: pytest.FixtureRequest) -> None:
    x = torch.ones(3)
    request.getfixturevalue("watched")
    with pytest.raises(AssertionError, match="within the loop"):
        act(x)


# ---- compiled ----


def test_one_compilation_for_each_form(case: tuple[ScoreModel, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, solver = case
    counter = CompileCounterWithBackend("aot_eager")
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: original(f, backend=counter, fullgraph=True, **options))
    torch._dynamo.reset()
    forms = set(walk_of(model, plan_for(model, solver, 6), 4).forms)
    options = {"n": 30, "start": 3, "seed": 7, "steps": 6, "solver": solver, "batch_size": 8, "progress": False}
    got = sample(model, compile=True, **options)
    assert counter.frame_count == len(forms)
    assert torch.equal(got, sample(model, **options))


def test_compiled_samples_are_the_samples() -> None:
    torch._dynamo.reset()
    model = vectors()
    options = {"n": 20, "seed": 1, "steps": 5, "batch_size": 8, "progress": False}
    chunks = list(sample_iter(model, compile=True, **options))
    torch.testing.assert_close(torch.cat(chunks), sample(model, **options), rtol=1e-5, atol=0)


def test_compile_refuses_solvers_in_plain_pytorch() -> None:
    data = simulated.correlated_cauchy(50, 4)
    model = VPModel(MLP(4), VP(), torch.zeros(1, 4), data.std(0, keepdim=True))
    with pytest.raises(ValueError, match="compile must be False for this solver"):
        sample(model, 4, steps=2, compile=True, progress=False)


def test_more_shapes_than_pytorch_would_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of steps is a variant of one compiled function, whose limit is 8 by default."""
    counter, original = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: original(f, backend=counter, fullgraph=True, **options))
    torch._dynamo.reset()
    model = vectors()
    for steps in range(2, 13):
        sample(model, 3, steps=steps, batch_size=4, compile=True, progress=False)
    assert counter.frame_count == 11


class Recorder:
    """What a CUDA graph would be, on a CPU: it remembers what happens while it captures, and how often it is played."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def replay(self) -> None:
        self.calls.append("replay")


def test_a_graph_is_captured_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    model = vectors()
    loop = Loop(walk_of(model, plan_for(model, None, 3), 4), compiled=False)
    loop.captures = True

    def capture() -> Recorder:
        calls.append("capture")
        return Recorder(calls)

    def remember(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (calls.append(name), original(*args))[1]

    monkeypatch.setattr(loop, "_capture", capture)
    monkeypatch.setattr(loop.walk, "draw", remember("draw", loop.walk.draw))
    monkeypatch.setattr(loop, "steps", remember("steps", loop.steps))
    with torch.no_grad():
        for first in (0, 4, 8):
            loop.bad.fill_(2)
            loop.run(rng.stream(1, first))
            assert bool((loop.bad == -1).all())
            assert loop.streams.tolist() == [[1, first, k] for k in range(3)]
        loop.run(rng.stream(1, 12), lambda index: calls.append(f"show {index}"))
    chunks = ["draw", "steps", "draw", "capture", "replay", "draw", "replay"]
    assert calls == [*chunks, "draw", "steps", "show 0", "show 1", "show 2", "show 3"]


# ---- the stream ----


def test_streams_by_step_stand_where_the_steps_are() -> None:
    rows = rng.by_step(rng.stream(5, 9), 4)
    assert rows[:, 0].tolist() == [5] * 4
    assert rows[:, 1].tolist() == [9] * 4
    assert rows[:, 2].tolist() == [0, 1, 2, 3]
    assert all(row.data_ptr() % 16 == 0 and row.is_contiguous() for row in rows)
    z = rng.normals(2, 3, rows[3], rng.Kind.STEP, 0)
    assert torch.equal(z, rng.normals(2, 3, rng.stream(5, 9), rng.Kind.STEP, 3))
