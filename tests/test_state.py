"""SamplerState: what every plan's state provides, and arrays that a captured graph finds again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.gbm import GBM, GBMModel, LogNormalPrior
from fastmsgm.loop import Loop
from fastmsgm.model import ScoreModel
from fastmsgm.nets import MLP
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.sampling import plan_for
from fastmsgm.sde import VP, VPModel
from tests.gbm.exact import log_normal_data

DATA = log_normal_data(60)


def gbm(prediction: str, classes: int = 0) -> GBMModel:
    process = GBM(5.0 if prediction == "denoiser" else 0.8)
    net = MLP(3, 8, 1, classes=classes)
    labels = torch.arange(60) % classes if classes else None
    return GBMModel.for_data(
        net, process, DATA, prediction=prediction, labels=labels, classes=classes
    )


def rotation(noise: str) -> RotationModel:
    return RotationModel.for_data(MLP(3, 8, 1, condition={"log_norm": 1}), Rotation(noise), DATA)


CASES: dict[str, tuple[Callable[[], ScoreModel], str]] = {
    "denoiser": (lambda: gbm("denoiser"), "dpm++2m"),
    "denoiser, one step": (lambda: gbm("denoiser"), "euler"),
    "score": (lambda: gbm("score"), "dale-langevin"),
    "hyvarinen": (lambda: gbm("hyvarinen"), "sign-agnostic"),
    "classes": (lambda: gbm("denoiser", 3), "heun"),
    "spherical": (lambda: rotation("isotropic"), "sde-dpm++2m"),
    "geodesic": (lambda: rotation("isotropic"), "geodesic-heun"),
    "ring": (lambda: rotation("ring"), "sde-ring-splitting"),
    "ring, runge-kutta": (lambda: rotation("ring"), "stratonovich-heun"),
    "vp": (lambda: VPModel.for_data(MLP(3, 8, 1), VP(), DATA), "euler-maruyama"),
}
SIZE = 8


@pytest.fixture(params=CASES)
def loop(request: pytest.FixtureRequest) -> Loop:
    """The loop of a chunk of eight samples and five steps."""
    build, solver = CASES[request.param]
    torch.manual_seed(0)
    model = build().eval()
    plan = plan_for(model, solver, 5)
    return Loop(model, plan, plan.state(model, SIZE), compiled=False, condition=labels(model))


def labels(model: ScoreModel, first: int = 0) -> dict[str, Tensor]:
    return {"label": torch.arange(first, first + SIZE) % model.classes} if model.classes else {}


def tensors(loop: Loop) -> Iterator[Tensor]:
    """Yield every tensor that a step reads or writes."""
    yield loop.first_nonfinite_step
    yield loop.streams
    yield from loop.condition.values()
    for value in vars(loop.state).values():
        parts: Any = value if isinstance(value, (list, tuple)) else (value,)
        parts = value.values() if isinstance(value, dict) else parts
        yield from (part for part in parts if isinstance(part, Tensor))


@torch.no_grad()
def test_a_state_provides_what_the_loop_needs(loop: Loop) -> None:
    state, model = loop.state, loop.model
    loop.run(rng.stream(1), labels(model))
    assert state.size == SIZE
    assert state.model_input.shape == (SIZE, *model.shape)
    assert state.model_input.dtype == model.input_dtype
    assert len(state.c_noise) == len(state.flags) == loop.plan.nfe
    for inputs in (*state.c_noise, *state.condition.values()):
        assert inputs.shape == (SIZE,)
        assert inputs.dtype == torch.float32
    assert set(state.condition) == ({"log_norm"} if model.family == "Rotation" else set())
    assert all(isinstance(flags, tuple) and hash(flags) for flags in state.flags)
    x = state.x(slice(None))
    assert x.shape == (SIZE, *model.shape)
    assert torch.equal(state.x(slice(2, 5)), x[2:5])
    assert bool(x.isfinite().all())
    denoised = state.denoised()
    assert denoised is None or denoised.shape == x.shape
    assert bool((loop.first_nonfinite_step == -1).all())


@torch.no_grad()
def test_arrays_of_fused_steps_stay_where_they_are(loop: Loop) -> None:
    """A captured CUDA graph replays the addresses of the first chunk."""
    loop.run(rng.stream(1), labels(loop.model))
    first = [(x.data_ptr(), x.shape, x.stride()) for x in tensors(loop)]
    loop.run(rng.stream(1, SIZE), labels(loop.model, SIZE))
    second = [(x.data_ptr(), x.shape, x.stride()) for x in tensors(loop)]
    assert (first == second) == loop.state.fused


@torch.no_grad()
def test_conditioning_of_fused_steps_is_aligned(loop: Loop) -> None:
    """Each step's tensors begin at multiples of 16 bytes, as captured graphs want them."""
    loop.run(rng.stream(1), labels(loop.model))
    if loop.state.fused:
        inputs = (*loop.state.c_noise, *loop.state.condition.values(), *loop.condition.values())
        assert all(x.data_ptr() % 16 == 0 for x in inputs)


@torch.no_grad()
def test_a_chunk_leaves_no_trace_in_the_next(loop: Loop) -> None:
    """Also where all its samples were NaN."""
    condition = labels(loop.model)
    loop.run(rng.stream(1), condition)
    expected = loop.state.x(slice(None)).clone()
    forward = loop.model.net.forward
    loop.model.net.forward = lambda x, c, **_: torch.full_like(x, torch.nan)
    loop.run(rng.stream(2), condition)
    assert bool((loop.first_nonfinite_step == 0).all())
    loop.model.net.forward = forward
    loop.run(rng.stream(1), condition)
    assert torch.equal(loop.state.x(slice(None)), expected)
    assert bool((loop.first_nonfinite_step == -1).all())


@torch.no_grad()
def test_the_noise_levels_are_those_of_the_plan(loop: Loop) -> None:
    loop.run(rng.stream(1, 3), labels(loop.model))
    expected = torch.from_numpy(loop.plan.c_noise).float()[:, None].expand(-1, SIZE)
    assert torch.equal(torch.stack(list(loop.state.c_noise)), expected)


@torch.no_grad()
@pytest.mark.parametrize("classes", [torch.arange(SIZE) % 3, torch.full((SIZE,), 2), None])
def test_the_prior_is_that_of_the_label(classes: Tensor | None) -> None:
    """Without labels sample i starts from mean i mod 3; the stream begins at sample 4."""
    means = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [100.0, 200.0, 300.0]])
    prior, net = LogNormalPrior(means, 0.0), MLP(3, 8, 1)
    model = GBMModel.for_data(net, GBM(1e-4), DATA, prediction="score", prior=prior)
    state = plan_for(model, "dale-langevin", 5).state(model, SIZE)
    state.sample_prior(rng.stream(1, 4), classes)
    index = (torch.arange(SIZE) + 4) % 3 if classes is None else classes
    torch.testing.assert_close(state.x(slice(None)), means[index], rtol=2e-3, atol=0)


@torch.no_grad()
def test_the_condition_of_a_rotation_is_the_log_norm_of_the_chunk() -> None:
    model = rotation("isotropic")
    state = plan_for(model, "dpm++2m", 5).state(model, SIZE)
    for first in (0, SIZE):
        state.sample_prior(rng.stream(1, first), None)
        norms = model.prior.sample(SIZE, rng.stream(1, first))
        assert torch.equal(state.condition["log_norm"], model.condition_of(norms)["log_norm"])
