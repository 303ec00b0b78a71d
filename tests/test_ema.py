"""The average of a network: weights and statistics are averaged, all other numbers copied."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastmsgm import GBM, GBMModel, fit
from fastmsgm.training.ema import EMA
from tests.gbm.exact import log_normal_data

DECAY = 0.9999


class Buffers(nn.Module):
    """A network with buffers of every kind."""

    mask: Tensor
    index: Tensor
    scale: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("index", torch.arange(225))
        self.register_buffer("scale", torch.tensor(0.1))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("flag", torch.tensor(True))
        self.frozen = nn.Parameter(torch.full((3,), -torch.inf), requires_grad=False)
        self.table = nn.Parameter(torch.arange(225), requires_grad=False)
        self.calls = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.calls += self.training
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.linear(x)


def updated(steps: int, decay: float = DECAY) -> tuple[Buffers, Buffers]:
    """Return a network that counts its steps in ``mean``, and its average."""
    net = Buffers()
    average = EMA(net, decay)
    for step in range(steps):
        net.mean.fill_(step)
        average.update_parameters(net)
    return net, cast(Buffers, average.module)


def test_constant_buffers_stay_what_they_are() -> None:
    net, average = updated(50)
    for name in ("mask", "index", "scale", "flag", "frozen", "table"):
        value = getattr(net, name)
        assert getattr(average, name).dtype == value.dtype
        assert torch.equal(getattr(average, name), value), name


def test_statistics_are_averaged() -> None:
    _, average = updated(3, decay=0.5)
    expected = 0.5 * (0.5 * 0.0 + 0.5 * 1.0) + 0.5 * 2.0
    torch.testing.assert_close(average.mean, torch.full((3,), expected))


def test_what_was_not_finite_is_copied() -> None:
    net = Buffers()
    average = EMA(net, 0.5)
    for value in (torch.inf, 1.0, torch.nan, 3.0):
        net.mean.fill_(value)
        average.update_parameters(net)
    assert torch.equal(cast(Buffers, average.module).mean, torch.full((3,), 3.0))


def test_a_trained_network_keeps_its_mask() -> None:
    data = log_normal_data(50)
    model = GBMModel.for_data(Buffers(), GBM(5.0), data)
    fit(model, data, steps=4, batch_size=8, ema=DECAY, progress=False)
    assert torch.equal(model.net.mask, Buffers().mask)
    assert torch.equal(model.net.index, torch.arange(225))
    assert model.net.calls == 4
