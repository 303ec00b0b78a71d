"""``ExponentiatedGradient`` as an optimizer, and its operation at the seam."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmsgm import ops, reference
from fastmsgm.optim import ExponentiatedGradient


@pytest.fixture(autouse=True)
def no_named_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMSGM_BACKEND", raising=False)


def parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    """Weights of both signs with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    w = nn.Parameter(torch.randn(shape, generator=generator))
    w.grad = torch.randn(shape, generator=generator)
    return w


def formula(w: Tensor, g: Tensor, lr: float) -> Tensor:
    return w.detach().double() * torch.exp(-lr * w.detach().double().sign() * g.double())


# ---- the optimizer ----


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (4, 3, 2, 2)])
def test_a_step_is_the_formula(shape: tuple[int, ...]) -> None:
    w = parameter(*shape)
    expected = formula(w, w.grad, 0.25)
    optimizer = ExponentiatedGradient([w], lr=0.25)
    assert optimizer.step() is None
    torch.testing.assert_close(w.detach().double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(w.detach().sign(), expected.sign())


def test_groups_have_their_own_rates() -> None:
    a, b = parameter(4, 3), parameter(5, seed=1)
    expected = formula(a, a.grad, 0.5), formula(b, b.grad, 0.01)
    optimizer = ExponentiatedGradient([{"params": [a], "lr": 0.5}], lr=0.01)
    optimizer.add_param_group({"params": b})
    optimizer.step()
    for w, w64 in zip((a, b), expected, strict=True):
        torch.testing.assert_close(w.detach().double(), w64, rtol=1e-6, atol=0)


def test_a_scheduler_and_a_tensor_change_the_rate() -> None:
    w, same = parameter(6), parameter(6)
    optimizer, other = ExponentiatedGradient([w], lr=0.2), ExponentiatedGradient([same], lr=torch.tensor(0.2))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for rate in (0.2, 0.1, 0.05):
        other.param_groups[0]["lr"].fill_(rate)
        expected = formula(w, w.grad, rate)
        optimizer.step()
        other.step()
        scheduler.step()
        torch.testing.assert_close(w.detach().double(), expected, rtol=1e-6, atol=0)
        assert torch.equal(same, w)


def test_parameters_without_a_gradient_are_skipped() -> None:
    w, frozen = parameter(3), parameter(3, seed=1)
    frozen.grad = None
    before = frozen.detach().clone()
    optimizer = ExponentiatedGradient([frozen, w])
    optimizer.step()
    assert torch.equal(frozen, before)
    optimizer.zero_grad()
    before = w.detach().clone()
    optimizer.step()
    assert torch.equal(w, before)


def test_the_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    w = nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = ExponentiatedGradient([w], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (w**2).sum() / 2
        loss.backward()
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == 6.5
    expected = torch.tensor([2 * 0.8187307530779818, -3 * 0.7408182206817179])
    torch.testing.assert_close(w.detach(), expected, rtol=1e-6, atol=0)


def test_the_state_goes_round() -> None:
    """What is saved and loaded goes on as if nothing had happened; so do copies."""
    w, resumed = parameter(8), parameter(8)
    optimizer, loaded = ExponentiatedGradient([w], lr=0.3), ExponentiatedGradient([resumed], lr=9.0)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert loaded.param_groups[0]["lr"] == 0.3
    copied = copy.deepcopy(optimizer)
    (third,) = copied.param_groups[0]["params"]
    third.grad = w.grad
    for each in (optimizer, loaded, copied):
        each.step()
    assert torch.equal(w, resumed)
    assert torch.equal(w, third)


def test_signs_never_change() -> None:
    """Gradients that pull every weight across zero as hard as they can, then the other way."""
    w = parameter(500)
    signs = w.detach().sign()
    optimizer = ExponentiatedGradient([w], lr=1.0)
    for scale in (1.0, 100.0, 1e30, float("inf"), -1.0, -1e30, -float("inf"), 1e30):
        w.grad = scale * w.detach().sign()
        optimizer.step()
        assert torch.equal(w.detach().sign(), signs)
        assert bool(w.isfinite().all())


def test_zeros_stay_zero_and_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    norm, linear = nn.LayerNorm(4), nn.Linear(4, 3)
    optimizer = ExponentiatedGradient([*norm.parameters(), *linear.parameters()], lr=0.1)
    before = norm.weight.detach().clone()
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        optimizer.step()  # no gradients yet: nothing to count
        assert not caplog.records
        for _ in range(3):
            optimizer.zero_grad()
            linear(norm(torch.randn(5, 4))).square().sum().backward()
            assert norm.bias.grad.abs().min() > 0
            optimizer.step()
    assert not bool(norm.bias.any())
    assert not torch.equal(norm.weight, before)
    (record,) = caplog.records
    assert "4 of 23 weights are zero and will stay so" in record.getMessage()
    assert "initialise them away from zero" in record.getMessage()


def test_without_zeros_nothing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        ExponentiatedGradient([parameter(5)]).step()
    assert not caplog.records


def test_positive_least_squares() -> None:
    """Weights of one size find the positive solution, whatever its scales."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    solution = torch.tensor([0.1, 0.3, 0.5, 1.0, 3.0])
    w = nn.Parameter(torch.ones(5))
    optimizer = ExponentiatedGradient([w], lr=0.1)
    for _ in range(800):
        optimizer.zero_grad()
        (x @ (w - solution)).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(w.detach(), solution, rtol=1e-4, atol=0)


def test_a_weight_on_the_wrong_side_goes_to_zero_and_no_further() -> None:
    """min (w + 1)^2 over positive w has its solution at zero, which is approached."""
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = ExponentiatedGradient([w], lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        (w + 1).square().sum().backward()
        optimizer.step()
    assert 0 < w.item() < 1e-30


# ---- what the optimizer refuses ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"a parameter \(3, 2\) of ExponentiatedGradient must be float32, got {dtype}"):
        ExponentiatedGradient([parameter(4), nn.Parameter(torch.ones(3, 2, dtype=dtype))])
    optimizer = ExponentiatedGradient([parameter(4)])
    with pytest.raises(TypeError, match="must be float32"):
        optimizer.add_param_group({"params": nn.Parameter(torch.ones(3, dtype=dtype))})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), 1e39, "0.1", None, torch.ones(2)])
def test_a_rate_that_is_none_is_refused(lr: Any) -> None:
    with pytest.raises(ValueError, match="lr must be a finite number of 0 or more, or a tensor of one, got"):
        ExponentiatedGradient([parameter(4)], lr=lr)


def test_sparse_gradients_are_refused_before_anything_is_changed() -> None:
    w, embedding = parameter(4), nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer = ExponentiatedGradient([w, *embedding.parameters()])
    before = w.detach().clone()
    with pytest.raises(RuntimeError, match="needs dense gradients: give embeddings sparse=False"):
        optimizer.step()
    assert torch.equal(w, before)


# ---- the operation ----


def arguments(**changes: Tensor) -> dict[str, Tensor]:
    w = parameter(6, 7)
    return {"w": w.detach(), "g": w.grad, "lr": torch.tensor(0.3), **changes}


@pytest.mark.parametrize("lr", [torch.tensor(0.3), torch.tensor([0.3]), torch.tensor([[0.3]])])
def test_opcheck(lr: Tensor) -> None:
    torch.library.opcheck(ops.egd_step_, tuple(arguments(lr=lr).values()))


def test_compile_fullgraph_equals_eager() -> None:
    torch.compiler.reset()

    def loop(w: Tensor, x: Tensor, lr: Tensor) -> Tensor:
        """Three steps towards the fit of a line, with the gradient written out."""
        for _ in range(3):
            ops.egd_step_(w, x.T @ (x @ w - 1) / len(x), lr)
        return w * 2

    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return *torch.randn(2, 5, 5, generator=generator).unbind(0), torch.tensor(0.1)

    eager, compiled = inputs(), inputs()
    expected = loop(*eager)
    got = torch.compile(loop, fullgraph=True, backend="aot_eager")(*compiled)
    for a, b in zip((expected, *eager), (got, *compiled), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(eager[0], inputs()[0])


def test_axes_in_any_order() -> None:
    """Channels-last weights, and gradients of other strides than the weights': the same numbers."""
    plain = parameter(4, 3, 2, 5)
    w, g = plain.detach().clone(), plain.grad
    ops.egd_step_(w, g, torch.tensor(0.3))
    for layout in (torch.channels_last, torch.contiguous_format):
        for g_layout in (torch.channels_last, torch.contiguous_format):
            got = plain.detach().clone(memory_format=layout)
            ops.egd_step_(got, g.clone(memory_format=g_layout), torch.tensor(0.3))
            assert torch.equal(got, w)
    transposed = plain.detach()[0, 0].clone().T
    ops.egd_step_(transposed, g[0, 0].T, torch.tensor(0.3))
    assert torch.equal(transposed.T, w[0, 0])
    column = plain.detach()[:, :1, :1, :1].clone()
    ops.egd_step_(column, g.mean().expand(4, 1, 1, 1), torch.tensor(0.3))
    torch.testing.assert_close(column.double(), formula(plain[:, :1, :1, :1], g.mean(), 0.3), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"w": torch.ones(6, 7).double()}, TypeError, r"w must be float32, got torch\.float64"),
        ({"g": torch.ones(6, 7).half()}, TypeError, r"g must be float32, got torch\.float16"),
        ({"g": torch.ones(7, 6)}, ValueError, r"g must match w \(6, 7\) on cpu, got \(7, 6\) on cpu"),
        ({"w": torch.ones(6, 9)[:, :7]}, ValueError, r"w must be dense in memory, got strides \(9, 1\) for \(6, 7\)"),
        ({"w": torch.ones(1, 7).expand(6, 7)}, ValueError, r"w must be dense in memory, got strides \(0, 1\)"),
        ({"lr": torch.ones(2)}, ValueError, r"lr must be float32 of one element on cpu, got torch\.float32 \(2,\) on"),
        ({"lr": torch.tensor(0.1).double()}, ValueError, r"lr must be float32 of one element .* got torch\.float64"),
    ],
)
def test_egd_step_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.egd_step_(**arguments(**changes))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_named_backend_runs(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"reference": reference.optim, "cpu": pytest.importorskip("fastmsgm.kernels.cpu.optim")}
    called = []
    for name, module in modules.items():
        monkeypatch.setattr(module, "egd_step", lambda *_, name=name: called.append(name))
    monkeypatch.setenv("FASTMSGM_BACKEND", backend)
    ops.egd_step_(**arguments())
    assert called == [backend]
