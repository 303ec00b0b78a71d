"""Loop: no wait for the host, one compiled function for all steps and chunks, equal samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from fastmsgm import rng, sample, sample_iter
from fastmsgm.data.synthetic import correlated_cauchy
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.loop import Loop
from fastmsgm.model import ScoreModel
from fastmsgm.nets import MLP, UNet
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.sampling import plan_for
from fastmsgm.sde import VP, VPModel
from tests.gbm.exact import log_normal_data


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
    data = correlated_cauchy(100, 4)
    return shaken(
        RotationModel.for_data(MLP(4, 8, 1, condition={"log_norm": 1}), Rotation(noise=noise), data)
    )


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


# ---- no wait for the host ----


class Watch(TorchDispatchMode):
    """Fails on what makes the host wait for the device, or samples from a generator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount")
        generators = (
            "rand",
            "normal_",
            "uniform_",
            "bernoulli",
            "multinomial",
            "exponential_",
            "dropout",
        )
        if any(name.split("::")[1].startswith(word) for word in (*waits, *generators)):
            raise AssertionError(f"{name} within the loop")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forbidden(name: str) -> Callable[..., None]:
        def call(*_: Any, **__: Any) -> None:
            raise AssertionError(f"Tensor.{name} within the loop")

        return call

    for name in (
        "item",
        "tolist",
        "cpu",
        "numpy",
        "nonzero",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
    ):
        monkeypatch.setattr(Tensor, name, forbidden(name))
    with Watch(), torch.no_grad():
        yield


def loop_of(model: ScoreModel, solver: str | None, steps: int, size: int) -> Loop:
    plan = plan_for(model, solver, steps)
    return Loop(model, plan, plan.state(model, size), compiled=False, condition=labels(model, size))


def labels(model: ScoreModel, size: int) -> dict[str, Tensor]:
    return {"label": torch.arange(size) % model.classes} if model.classes else {}


def test_no_step_waits_or_samples_from_a_generator(
    case: tuple[ScoreModel, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", "reference")  # PyTorch all the way down is watched
    with torch.no_grad():
        loop = loop_of(*case, steps=4, size=8)
        loop.run(rng.stream(3), labels(loop.model, 8))
    request.getfixturevalue("watched")
    loop.steps()


@pytest.mark.parametrize(
    "act",
    [lambda x: x.sum().item(), lambda x: (x > 0).nonzero(), torch.randn_like, lambda x: x.cpu()],
)
def test_the_watch_finds_waits_and_generators(
    act: Callable[[Tensor], object], request: pytest.FixtureRequest
) -> None:
    x = torch.ones(3)
    request.getfixturevalue("watched")
    with pytest.raises(AssertionError, match="within the loop"):
        act(x)


# ---- compiled ----


def count_compilations(monkeypatch: pytest.MonkeyPatch, backend: str) -> CompileCounterWithBackend:
    """Make torch.compile count its frames, and refuse graph breaks."""
    counter, original = CompileCounterWithBackend(backend), torch.compile

    def compile(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return original(f, backend=counter, fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", compile)
    torch._dynamo.reset()
    return counter


def test_steps_of_equal_flags_share_one_compilation(
    case: tuple[ScoreModel, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, solver = case
    counter = count_compilations(monkeypatch, "aot_eager")
    flags = set(loop_of(model, solver, steps=6, size=4).state.flags)
    options: dict[str, Any] = {"n": 30, "start": 3, "seed": 7, "steps": 6, "batch_size": 8}
    options |= {"solver": solver, "progress": False}
    got = sample(model, compile=True, **options)
    assert counter.frame_count == len(flags)
    assert torch.equal(got, sample(model, **options))


def test_compiled_samples_are_the_samples() -> None:
    torch._dynamo.reset()
    model = vectors()
    options: dict[str, Any] = {"n": 20, "seed": 1, "steps": 5, "batch_size": 8, "progress": False}
    chunks = list(sample_iter(model, compile=True, **options))
    torch.testing.assert_close(torch.cat(chunks), sample(model, **options), rtol=1e-5, atol=0)


def test_compile_refuses_solvers_in_plain_pytorch() -> None:
    model = VPModel.for_data(MLP(4), VP(), correlated_cauchy(50, 4))
    with pytest.raises(ValueError, match="compile must be False for this solver"):
        sample(model, 4, steps=2, compile=True, progress=False)


def test_more_shapes_than_pytorch_would_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of steps is a variant of one compiled function, whose limit is 8 by default."""
    counter, model = count_compilations(monkeypatch, "eager"), vectors()
    for steps in range(2, 13):
        sample(model, 3, steps=steps, batch_size=4, compile=True, progress=False)
    assert counter.frame_count == 11


class Recorder:
    """In place of a CUDA graph: it remembers when it is replayed."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def replay(self) -> None:
        self.calls.append("replay")


def test_a_graph_is_captured_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    model = vectors()
    loop = loop_of(model, None, steps=3, size=4)
    loop.captures = True

    def capture() -> Recorder:
        calls.append("capture")
        return Recorder(calls)

    def remember(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (calls.append(name), original(*args))[1]

    monkeypatch.setattr(loop, "_capture", capture)
    monkeypatch.setattr(loop.state, "sample_prior", remember("prior", loop.state.sample_prior))
    monkeypatch.setattr(loop, "steps", remember("steps", loop.steps))
    with torch.no_grad():
        for first in (0, 4, 8):
            loop.first_nonfinite_step.fill_(2)
            loop.run(rng.stream(1, first), {})
            assert bool((loop.first_nonfinite_step == -1).all())
            assert loop.streams.tolist() == [[1, first, k] for k in range(3)]
        loop.run(rng.stream(1, 12), {}, lambda index: calls.append(f"show {index}"))
    chunks = ["prior", "steps", "prior", "capture", "replay", "prior", "replay"]
    assert calls == [*chunks, "prior", "steps", "show 0", "show 1", "show 2", "show 3"]


# ---- the stream ----


def test_streams_by_step_are_at_their_steps() -> None:
    streams = rng.by_step(rng.stream(5, 9), 4)
    assert streams.tolist() == [[5, 9, k] for k in range(4)]
    assert all(s.data_ptr() % 16 == 0 and s.is_contiguous() for s in streams)
    z = rng.normals(2, 3, streams[3], rng.Purpose.STEP, 0)
    assert torch.equal(z, rng.normals(2, 3, rng.stream(5, 9), rng.Purpose.STEP, 3))
