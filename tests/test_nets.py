"""The networks: shapes, conditioning, gradients, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmsgm.nets import MLP, FourierFeatures, UNet


def shaken(net: nn.Module) -> nn.Module:
    """Random weights everywhere, also where a layer starts at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + (p.ndim == 1))
    return net


NETS = [
    (lambda: MLP(3), (3,)),
    (lambda: MLP(1, width=8, depth=1), (1,)),
    (lambda: UNet(1, 16, 32, 1, 2), (1, 8, 8)),
    (lambda: UNet(3, 16, 64, 2, 3), (3, 12, 4)),
]


@pytest.mark.parametrize(("build", "shape"), NETS)
def test_output_shape_and_conditioning(build, shape) -> None:
    net = shaken(build())
    x, c = torch.randn(4, *shape), torch.tensor([-1.5, 0.0, 0.3, 0.6])
    f = net(x, c)
    assert f.shape == x.shape
    other = net(x, c + torch.tensor([0.0, 0.0, 0.2, 0.0]))
    changed = (f - other).flatten(1).abs().amax(1)
    assert changed[2] > 1e-3
    torch.testing.assert_close(other[[0, 1, 3]], f[[0, 1, 3]])


@pytest.mark.parametrize(("build", "shape"), NETS)
def test_every_parameter_is_used(build, shape) -> None:
    net = shaken(build())
    net(torch.randn(4, *shape), torch.rand(4)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


@pytest.mark.parametrize(("build", "shape"), NETS)
def test_config_builds_the_same_network(build, shape) -> None:
    net = shaken(build())
    again = type(net)(**net.config)
    again.load_state_dict(net.state_dict())
    x, c = torch.randn(2, *shape), torch.rand(2)
    assert torch.equal(again(x, c), net(x, c))


@pytest.mark.parametrize("shape", [(1, 1, 7, 8), (1, 1, 8, 10), (1, 1, 28, 30), (1, 1, 9, 9)])
def test_unet_refuses_odd_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 1, \d+, \d+\): pad"):
        UNet(1, 16, 32, 1, 2)(torch.zeros(shape), torch.zeros(1))


@torch.no_grad()
def test_unet_starts_blind() -> None:
    """The last layer's weights are zero: an untrained network predicts the same, whatever it sees."""
    f = UNet(1, 16, 32, 1, 2)(torch.randn(2, 1, 8, 8), torch.rand(2))
    assert torch.equal(f[0], f[1])
    assert float(f.abs().max()) < 0.2


def test_unet_sees_the_whole_image() -> None:
    """Attention on the coarse level: every output pixel depends on every input pixel."""
    net = shaken(UNet(1, 16, 32, 1, 2)).double()
    x = torch.randn(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    net(x, torch.zeros(1, dtype=torch.float64))[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert bool((x.grad.abs() > 0).all())


def test_embedding_tells_close_noise_levels_apart() -> None:
    """log(s)/4 of neighbouring grid levels differs by about 0.05; that of the whole range by 2.2."""
    embedding = FourierFeatures()
    angle = torch.tensor([-1.55, -1.5, 0.62])[:, None] * embedding.frequencies
    waves = torch.cat((angle.cos(), angle.sin()), dim=1)
    distances = torch.cdist(waves, waves)
    assert float(distances[0, 1]) > 0.5
    assert float(distances[0, 2]) > 0.5


def test_mlp_refuses_what_would_mix_samples() -> None:
    with pytest.raises(ValueError, match=r"MLP needs vectors \(n, dim\), got \(28, 28, 28\)"):
        MLP(28, 8)(torch.ones(28, 28, 28), torch.zeros(28))
    with pytest.raises(ValueError, match="MLP was built for 4 features, got 3"):
        MLP(4, 8)(torch.ones(5, 3), torch.zeros(5))


def test_networks_have_a_width() -> None:
    for width in (-8, 0, 12):
        with pytest.raises(ValueError, match=f"width and deep must be multiples of 8, at least 8, got {width}"):
            UNet(width=width)
    with pytest.raises(ValueError, match="dim, width and depth must be at least 1, got 3, 0 and 3"):
        MLP(3, 0)
