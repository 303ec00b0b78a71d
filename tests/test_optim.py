"""``ExponentiatedGradient`` as an optimizer."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def formula(w: nn.Parameter, lr: float) -> Tensor:
    """Return what a step makes of a parameter, in float64."""
    assert w.grad is not None
    exact = w.detach().double()
    return exact * torch.exp(-lr * exact.sign() * w.grad.double())


# ---- the optimizer ----


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (4, 3, 2, 2)])
def test_a_step_is_the_formula(shape: tuple[int, ...]) -> None:
    w = parameter(*shape)
    expected = formula(w, 0.25)
    optimizer = ExponentiatedGradient([w], lr=0.25)
    assert optimizer.step() is None
    torch.testing.assert_close(w.detach().double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(w.detach().sign(), expected.sign())


def test_groups_have_their_own_rates() -> None:
    a, b = parameter(4, 3), parameter(5, seed=1)
    expected = formula(a, 0.5), formula(b, 0.01)
    optimizer = ExponentiatedGradient([{"params": [a], "lr": 0.5}], lr=0.01)
    optimizer.add_param_group({"params": b})
    optimizer.step()
    for w, w64 in zip((a, b), expected, strict=True):
        torch.testing.assert_close(w.detach().double(), w64, rtol=1e-6, atol=0)


def test_a_scheduler_and_a_tensor_change_the_rate() -> None:
    w, same = parameter(6), parameter(6)
    optimizer, other = (
        ExponentiatedGradient([w], lr=0.2),
        ExponentiatedGradient([same], lr=torch.tensor(0.2)),
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for rate in (0.2, 0.1, 0.05):
        other.param_groups[0]["lr"].fill_(rate)
        expected = formula(w, rate)
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


def test_the_state_is_saved_and_loaded() -> None:
    """A loaded state takes the same steps, and so does a copy."""
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
            assert norm.bias.grad is not None
            assert norm.bias.grad.abs().min() > 0
            optimizer.step()
    assert not bool(norm.bias.any())
    assert not torch.equal(norm.weight, before)
    # A new machine's first call also says that kernels are compiled.
    (record,) = (record for record in caplog.records if "zero" in record.getMessage())
    assert "4 of 23 weights are zero and will stay so" in record.getMessage()
    assert "initialise them away from zero" in record.getMessage()


def test_without_zeros_nothing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        ExponentiatedGradient([parameter(5)]).step()
    assert "zero" not in caplog.text


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
    with pytest.raises(
        TypeError,
        match=rf"a parameter \(3, 2\) of ExponentiatedGradient must be float32, got {dtype}",
    ):
        ExponentiatedGradient([parameter(4), nn.Parameter(torch.ones(3, 2, dtype=dtype))])
    optimizer = ExponentiatedGradient([parameter(4)])
    with pytest.raises(TypeError, match="must be float32"):
        optimizer.add_param_group({"params": nn.Parameter(torch.ones(3, dtype=dtype))})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), 1e39, "0.1", None, torch.ones(2)])
def test_a_rate_that_is_none_is_refused(lr: Any) -> None:
    with pytest.raises(
        ValueError, match="lr must be a finite number of 0 or more, or a tensor of one, got"
    ):
        ExponentiatedGradient([parameter(4)], lr=lr)


def test_sparse_gradients_are_refused_before_anything_is_changed() -> None:
    w, embedding = parameter(4), nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer = ExponentiatedGradient([w, *embedding.parameters()])
    before = w.detach().clone()
    with pytest.raises(RuntimeError, match="needs dense gradients: give embeddings sparse=False"):
        optimizer.step()
    assert torch.equal(w, before)
