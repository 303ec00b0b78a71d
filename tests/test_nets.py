"""The networks: shapes, conditioning, gradients, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastmsgm.nets import MLP, FourierFeatures, UNet


def shaken(net: Any) -> Any:
    """Random weights everywhere, also where a layer starts at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + (p.ndim == 1))
    return net


NETS: list[tuple[Callable[[], MLP | UNet], tuple[int, ...]]] = [
    (lambda: MLP(3), (3,)),
    (lambda: MLP(1, width=8, depth=1), (1,)),
    (lambda: UNet(1, 16, 32, 1, 2), (1, 8, 8)),
    (lambda: UNet(3, 16, 64, 2, 3), (3, 12, 4)),
]


@pytest.mark.parametrize(("build", "shape"), NETS)
def test_output_shape_and_conditioning(
    build: Callable[[], MLP | UNet], shape: tuple[int, ...]
) -> None:
    net = shaken(build())
    x, c = torch.randn(4, *shape), torch.tensor([-1.5, 0.0, 0.3, 0.6])
    f = net(x, c)
    assert f.shape == x.shape
    other = net(x, c + torch.tensor([0.0, 0.0, 0.2, 0.0]))
    changed = (f - other).flatten(1).abs().amax(1)
    assert changed[2] > 1e-3
    torch.testing.assert_close(other[[0, 1, 3]], f[[0, 1, 3]])


@pytest.mark.parametrize(("build", "shape"), NETS)
def test_every_parameter_is_used(build: Callable[[], MLP | UNet], shape: tuple[int, ...]) -> None:
    net = shaken(build())
    net(torch.randn(4, *shape), torch.rand(4)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


@pytest.mark.parametrize(("build", "shape"), NETS)
def test_config_builds_the_same_network(
    build: Callable[[], MLP | UNet], shape: tuple[int, ...]
) -> None:
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
def test_an_untrained_unet_ignores_its_input() -> None:
    """The weights of its last layer are zero."""
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


def test_the_embedding_separates_close_noise_levels() -> None:
    """log(s) / 4 of neighbours on a grid differs by about 0.05, that of the whole range by 2.2."""
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


# ---- conditioning ----


@pytest.mark.parametrize(("build", "shape"), NETS)
def test_another_number_of_conditioning_numbers_is_refused(
    build: Callable[[], MLP | UNet], shape: tuple[int, ...]
) -> None:
    message = "built for 1 conditioning numbers a sample, got 2: build it with cond_dim=2"
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(4, *shape), torch.zeros(4, 2))


def test_conditioning_numbers_after_the_first_are_taken_as_they_are() -> None:
    features = FourierFeatures(cond_dim=3, count=4)
    cond = torch.tensor([[0.1, 5.0, -7.0], [0.1, 2.0, 3.0]])
    out = features(cond)
    assert out.shape == (2, features.size) == (2, 10)
    assert torch.equal(out[:, 8:], cond[:, 1:])
    assert torch.equal(out[0, :8], out[1, :8])


def test_a_unet_with_classes_needs_the_label() -> None:
    with pytest.raises(ValueError, match=r"needs cond of shape \(n, 2\), .* got \(3,\)"):
        UNet(1, 16, 32, 1, 2, classes=3)(torch.zeros(3, 1, 8, 8), torch.zeros(3))


# ---- arguments ----


def test_widths_are_multiples_of_eight() -> None:
    for width in (-8, 0, 12):
        for name in ("width", "deep"):
            options: dict[str, Any] = {name: width}
            message = f"{name} must be at least 8" if width < 8 else "must be multiples of 8"
            with pytest.raises(ValueError, match=message):
                UNet(**options)


@pytest.mark.parametrize(
    ("net", "name", "least"),
    [
        *((MLP, name, 1) for name in ("dim", "width", "depth", "cond_dim")),
        (UNet, "channels", 1),
        (UNet, "width", 8),
        (UNet, "deep", 8),
        (UNet, "blocks", 0),
        (UNet, "deep_blocks", 1),
        (UNet, "cond_dim", 1),
        (UNet, "classes", 0),
    ],
)
def test_sizes_are_integers(net: Callable[..., MLP | UNet], name: str, least: int) -> None:
    least_size: dict[str, Any] = {"dim": 3} if net is MLP else {"width": 8, "deep": 8}
    for wrong in (2.0, True, "2", None):
        with pytest.raises(TypeError, match=f"{name} must be an int, got {wrong!r}"):
            net(**{**least_size, name: wrong})
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        net(**{**least_size, name: least - 1})
    built = net(**{**least_size, name: np.int64(least)})
    assert type(built.config[name]) is int
    json.dumps(built.config)
