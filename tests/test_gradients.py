"""Where a gradient is asked for, it is right or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import fastmsgm
from fastmsgm import GBM, GBMModel, Rotation, RotationModel, VPModel, nets, ops, rng
from fastmsgm.gbm import LogNormalPrior
from fastmsgm.model import ScoreModel
from fastmsgm.rotation import RadialPrior
from tests.models import FAMILIES, D, positive_data

TIMES = torch.tensor([0.2, 0.5, 0.9])


def points(*shape: int) -> Tensor:
    return 1 + torch.rand(3, *shape, generator=torch.Generator().manual_seed(2))


def assert_gradient(f: Callable[[Tensor], Tensor], x: Tensor, step: float) -> None:
    """Compare the gradient of a random mean of f with central difference quotients."""
    x = x.clone().requires_grad_()
    y = f(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    with torch.no_grad():
        directions = step * torch.eye(x.numel(), dtype=torch.float32).view(-1, *x.shape)
        quotients = [
            ((f(x + e).double() - f(x - e).double()) * weights).sum() / (2 * step)
            for e in directions
        ]
    expected = torch.stack(quotients).view_as(x).float()
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-3)


# ---- processes ----


@pytest.mark.parametrize("process", [GBM(0.8), GBM(1.5, mu=0.3, T=0.95)], ids=str)
def test_gbm_perturb_in_the_data(process: GBM) -> None:
    assert_gradient(lambda x: process.perturb(x, TIMES, seed=4), points(2, 3), 1e-2)
    assert_gradient(lambda x: process.perturb(x, TIMES, seed=4), -points(2), 1e-2)


@pytest.mark.parametrize("process", [GBM(0.8), GBM(1.5, mu=0.3)], ids=str)
def test_gbm_perturb_in_time(process: GBM) -> None:
    assert_gradient(lambda t: process.perturb(points(2, 3), t, seed=4), TIMES, 1e-3)


def test_gbm_perturb_in_time_before_conversion() -> None:
    t = TIMES.double().requires_grad_()
    GBM(0.8).perturb(points(2), t).sum().backward()
    assert t.grad is not None
    assert t.grad.dtype == torch.float64


def test_gbm_perturb_has_the_same_values_with_a_gradient() -> None:
    x = points(5)
    expected = GBM(0.8).perturb(x, TIMES, seed=4)
    assert torch.equal(GBM(0.8).perturb(x.requires_grad_(), TIMES, seed=4), expected)


def test_gbm_perturb_has_second_derivatives() -> None:
    x, t = points(2).requires_grad_(), TIMES.clone().requires_grad_()
    (by_x,) = torch.autograd.grad(GBM(0.8).perturb(x, t, seed=4).sum(), x, create_graph=True)
    (mixed,) = torch.autograd.grad(by_x.sum(), t)
    h = 1e-3
    with torch.no_grad():
        late, early = (GBM(0.8).perturb(x, t + e, seed=4) / x for e in (h, -h))
    torch.testing.assert_close(mixed, ((late - early) / (2 * h)).sum(1), rtol=1e-2, atol=1e-3)


def test_gbm_perturb_under_torch_func() -> None:
    x = points(2)
    gradient = torch.func.grad(lambda x: GBM(0.8).perturb(x, TIMES, seed=4).sum())(x)
    torch.testing.assert_close(gradient, GBM(0.8).perturb(x, TIMES, seed=4) / x)


@pytest.mark.parametrize("shape", [(2,), (5,), (1, 2, 3)], ids=str)
def test_isotropic_perturb(shape: tuple[int, ...]) -> None:
    assert_gradient(lambda x: Rotation().perturb(x, TIMES, seed=4), points(*shape), 1e-2)


@pytest.mark.parametrize("noise", ["ring", "dense"])
def test_simulated_perturb(noise: str) -> None:
    process = Rotation(noise=noise)
    assert_gradient(lambda x: process.perturb(x, TIMES, seed=4, steps=8), points(4), 1e-2)


def test_isotropic_perturb_has_the_same_values_with_a_gradient() -> None:
    x = points(5)
    expected = Rotation().perturb(x, TIMES, seed=4)
    assert torch.equal(Rotation().perturb(x.requires_grad_(), TIMES, seed=4), expected)


def test_isotropic_perturb_has_second_derivatives() -> None:
    def gradient(x: Tensor) -> Tensor:
        cube = Rotation().perturb(x, TIMES, seed=4) ** 3
        return torch.autograd.grad(cube.sum(), x, create_graph=True)[0]

    x, e = points(4).requires_grad_(), 1e-2 * torch.tensor([1.0, -1.0, 0.5, 0.2])
    (second,) = torch.autograd.grad((gradient(x) * e).sum(), x)
    change = (gradient(x + e) - gradient(x - e)) / 2
    torch.testing.assert_close(second, change.detach(), rtol=1e-2, atol=1e-3)


def test_rotations_have_no_gradient_in_time() -> None:
    with pytest.raises(RuntimeError, match=r"no gradient in t.*give t.detach\(\)"):
        Rotation().perturb(points(4), TIMES.clone().requires_grad_())


def test_the_target_has_no_gradient() -> None:
    x, B = points(4).requires_grad_(), np.ones(3)
    with pytest.raises(RuntimeError, match=r"target have no gradient.*x0.detach\(\)"):
        Rotation().perturb_by_heat_kernel(x, B, rng.stream(0), 0, target=torch.empty_like(x))


@pytest.mark.parametrize("noise", ["isotropic", "ring", "dense"])
@pytest.mark.parametrize("name", ["g_prod", "g_transpose_prod", "covariance"])
def test_products_of_the_noise(noise: str, name: str) -> None:
    product, x, v = getattr(Rotation(noise=noise), name), points(4), points(4) - 1
    assert_gradient(lambda x: product(x, v), x, 1e-2)
    assert_gradient(lambda v: product(x, v), v, 1e-2)


# ---- models ----


@pytest.mark.parametrize("family", FAMILIES)
def test_units_of_the_data(family: str) -> None:
    model = FAMILIES[family](nn.Identity())
    assert_gradient(model.to_state, points(D), 1e-2)
    assert_gradient(model.to_process, points(D), 1e-2)
    assert_gradient(model.to_data, points(D), 1e-2)


@pytest.mark.parametrize("family", ["isotropic", "dense", "vp"])
def test_scores(family: str) -> None:
    preconditioning = FAMILIES[family](nn.Identity()).preconditioning
    assert_gradient(lambda f: preconditioning.score(f, np.array([1.0, 2.0, 3.0])), points(D), 1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_refuses_data_that_require_a_gradient(family: str) -> None:
    loss = fastmsgm.Loss(FAMILIES[family](nn.Identity()))
    with pytest.raises(ValueError, match=r"data must not require a gradient.*data.detach\(\)"):
        loss(positive_data().requires_grad_())


def test_the_loss_has_a_gradient_in_conditions() -> None:
    net = nets.MLP(D, 8, 1, condition={"c": 2})
    nn.init.normal_(net.out.weight)
    model = FAMILIES["gbm denoiser"](net)
    loss, data = fastmsgm.Loss(model), positive_data(3)
    assert_gradient(lambda c: loss(data, c=c, step=3, reduction="none"), points(2), 1e-2)


def test_a_loss_refuses_states_that_require_a_gradient() -> None:
    model = FAMILIES["gbm denoiser"](nets.MLP(D, 8, 1))
    x0 = positive_data().requires_grad_()
    with pytest.raises(RuntimeError, match="gbm_perturb_ has no gradient"):
        model.default_loss(model, x0, rng.stream(0), 0)


def test_models_fitted_to_data_that_require_a_gradient() -> None:
    x = positive_data().requires_grad_()
    models: list[ScoreModel] = [
        GBMModel.for_data(nn.Identity(), GBM(0.8), x),
        RotationModel.for_data(nn.Identity(), Rotation(), x),
        VPModel.for_data(nn.Identity(), fastmsgm.VP(), x),
    ]
    assert not any(buffer.requires_grad for model in models for buffer in model.buffers())


def test_models_of_priors_that_require_a_gradient() -> None:
    means, log_norms = points(D)[:1].requires_grad_(), torch.arange(3.0, requires_grad=True)
    gbm = GBMModel(
        nn.Identity(),
        GBM(0.8),
        LogNormalPrior(means, 0.1),
        prediction="hyvarinen",
        scale=torch.ones(1, D).requires_grad_(),
        log_std=0.1,
    )
    rotation = RotationModel(
        nn.Identity(), Rotation(), RadialPrior(log_norms), shape=(D,), objective="dsm"
    )
    assert not any(b.requires_grad for b in (*gbm.buffers(), *rotation.buffers()))


def test_samples_with_a_condition_that_requires_a_gradient() -> None:
    model = FAMILIES["gbm denoiser"](nets.MLP(D, 8, 1, condition={"c": 2}))
    c = torch.ones(3, 2).requires_grad_()
    x = fastmsgm.sample(model, 3, condition={"c": c}, steps=2, progress=False)
    assert not x.requires_grad


# ---- operations ----


OPERATIONS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "fill_normal_": (
        ops.fill_normal_,
        {"out": torch.zeros(3, D), "stream": rng.stream(0), "purpose": 0, "step": 0},
        "out",
    ),
    "gbm_perturb_": (
        ops.gbm_perturb_,
        {
            "x0": torch.ones(3, D),
            "coefficients": torch.ones(3, 3),
            "stream": rng.stream(0),
            "purpose": 0,
            "step": 0,
            "x_t": torch.ones(3, D),
            "model_input": None,
            "z": None,
        },
        "x0",
    ),
    "egd_step_": (
        ops.egd_step_,
        {"w": torch.ones(3), "g": torch.ones(3), "lr": torch.ones(())},
        "w",
    ),
    **{
        name: (
            getattr(ops, name),
            {
                "u" if "rotation" in name else "x": torch.ones(3, D),
                "model_output": torch.ones(3, D),
                "table": torch.ones(2, columns),
                "stream": rng.stream(0),
                "step": 0,
                "first_nonfinite_step": torch.full((3,), -1, dtype=torch.int32),
                "model_input": None,
                **rest,
            },
            "model_output",
        )
        for names, columns, rest in (
            (
                ("gbm_step", "gbm_step_"),
                9,
                {
                    "prev_denoised": None,
                    "stein_score": False,
                    "sign_agnostic": False,
                    "log_state": True,
                },
            ),
            (
                ("rotation_step", "rotation_step_"),
                9,
                {"angles": None, "prev_denoised": None, "geodesic": False},
            ),
            (
                ("ring_step", "ring_step_"),
                3,
                {"step_start": None, "restart": False, "noisy": False},
            ),
        )
        for name in names
    },
    "rotation_perturb_": (
        ops.rotation_perturb_,
        {
            "u0": torch.ones(3, D),
            "coefficients": torch.ones(3, 4),
            "table": torch.ones(2, 3, 3),
            "stream": rng.stream(0),
            "step": 0,
            "u_t": torch.ones(3, D),
            "model_input": None,
            "target": None,
        },
        "u0",
    ),
}


def test_all_operations_are_listed() -> None:
    assert set(OPERATIONS) == set(ops.__all__) - {"OUTPUT_DTYPES", "backend"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_refuse_a_gradient(name: str) -> None:
    op, arguments, differentiated = OPERATIONS[name]
    arguments = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, Tensor)}
    arguments[differentiated].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"^{name} has no gradient.*value.detach\(\)"):
        op(**arguments)
    assert all(torch.equal(arguments[k], v) for k, v in before.items())
    with torch.no_grad():
        op(**arguments)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # of PyTorch itself
def test_operations_refuse_forward_mode() -> None:
    op, arguments, _ = OPERATIONS["gbm_step"]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(3, D), torch.ones(3, D))
        with pytest.raises(RuntimeError, match="gbm_step has no gradient"):
            op(**{**arguments, "model_output": dual})


def test_a_compiled_operation_refuses_a_gradient() -> None:
    op, arguments, _ = OPERATIONS["gbm_step"]

    @torch.compile(backend="eager")
    def step(f: Tensor) -> Tensor:
        return op(**{**arguments, "model_output": f})

    with pytest.raises(Exception, match="gbm_step has no gradient"):
        step(torch.ones(3, D).requires_grad_())


# ---- inference mode ----


def test_what_inference_mode_caches_can_train() -> None:
    process = Rotation(noise="dense", seed=77)
    with torch.inference_mode():
        process.perturb(points(4), TIMES, steps=2)
    x = points(4).requires_grad_()
    process.perturb(x, TIMES, steps=2).sum().backward()
    assert x.grad is not None
