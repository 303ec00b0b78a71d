"""SamplerState: what every plan's state provides, and arrays that a captured graph finds again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.gbm import GBM, GBMModel
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
    net = MLP(3, 8, 1, cond_dim=2 if classes else 1)
    labels = torch.arange(60) % classes if classes else None
    return GBMModel.for_data(
        net, process, DATA, prediction=prediction, labels=labels, classes=classes
    )


def rotation(noise: str) -> RotationModel:
    return RotationModel.for_data(MLP(3, 8, 1, cond_dim=2), Rotation(noise), DATA)


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
    return Loop(model, plan, plan.state(model, SIZE), compiled=False)


def tensors(loop: Loop) -> Iterator[Tensor]:
    """Yield every tensor that a step reads or writes."""
    yield loop.first_nonfinite_step
    yield loop.streams
    for value in vars(loop.state).values():
        parts: Any = value if isinstance(value, (list, tuple)) else (value,)
        yield from (part for part in parts if isinstance(part, Tensor))


@torch.no_grad()
def test_a_state_provides_what_the_loop_needs(loop: Loop) -> None:
    state, model = loop.state, loop.model
    loop.run(rng.stream(1))
    assert state.size == SIZE
    assert state.model_input.shape == (SIZE, *model.shape)
    assert state.model_input.dtype == model.input_dtype
    assert len(state.cond) == len(state.flags) == loop.plan.nfe
    assert all(cond.shape[0] == SIZE and cond.dtype == torch.float32 for cond in state.cond)
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
    loop.run(rng.stream(1))
    first = [(x.data_ptr(), x.shape, x.stride()) for x in tensors(loop)]
    loop.run(rng.stream(1, SIZE))
    second = [(x.data_ptr(), x.shape, x.stride()) for x in tensors(loop)]
    assert (first == second) == loop.state.fused


@torch.no_grad()
def test_conditioning_of_fused_steps_is_aligned(loop: Loop) -> None:
    """Each step's tensors begin at multiples of 16 bytes, as captured graphs want them."""
    loop.run(rng.stream(1))
    if loop.state.fused:
        assert all(cond.data_ptr() % 16 == 0 for cond in loop.state.cond)


@torch.no_grad()
def test_a_chunk_leaves_no_trace_in_the_next(loop: Loop) -> None:
    """Also where all its samples were NaN."""
    loop.run(rng.stream(1))
    expected = loop.state.x(slice(None)).clone()
    forward = loop.model.net.forward
    loop.model.net.forward = lambda x, c: torch.full_like(x, torch.nan)
    loop.run(rng.stream(2))
    assert bool((loop.first_nonfinite_step == 0).all())
    loop.model.net.forward = forward
    loop.run(rng.stream(1))
    assert torch.equal(loop.state.x(slice(None)), expected)
    assert bool((loop.first_nonfinite_step == -1).all())


@torch.no_grad()
def test_the_conditioning_is_that_of_the_plan() -> None:
    model = gbm("denoiser", 3)
    plan = plan_for(model, "dpm++2m", 5)
    for label, classes in ((None, torch.arange(SIZE) % 3), (2, torch.full((SIZE,), 2))):
        state = plan.state(model, SIZE, label)
        state.sample_prior(rng.stream(1, 3))
        cond = torch.stack(list(state.cond))
        expected = torch.from_numpy(plan.c_noise).float()[:, None].expand(-1, SIZE)
        assert torch.equal(cond[:, :, 0], expected)
        shifted = classes if label is not None else (torch.arange(SIZE) + 3) % 3
        assert torch.equal(cond[:, :, 1], shifted.float().expand(plan.nfe, SIZE))
