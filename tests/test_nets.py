"""The networks: shapes, conditioning, gradients, and what they refuse."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import functional
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmsgm.nets import MLP, DirectionMLP, UNet
from fastmsgm.nets.conditioning import FourierFeatures
from fastmsgm.nets.unet import FUSED_TOKENS, Attention
from fastmsgm.rotation import Rotation
from fastmsgm.rotation.preconditioning import RotationPreconditioning


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def shaken(net: Any) -> Any:
    """Random weights everywhere, also where a layer starts at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + (p.ndim == 1))
    return net


def conditioning(net: MLP | UNet, n: int) -> dict[str, Tensor]:
    """Random conditions and labels, of which those of the last sample are dropped."""
    given = {k: torch.randn(n, size) for k, size in net.condition.items()}
    for value in given.values():
        value[-1] = torch.nan
    if net.classes:
        given["label"] = torch.arange(n) % net.classes
        given["label"][-1] = net.classes
    return given


def tiny_unet(channels: int = 1, **options: Any) -> UNet:
    return UNet(channels, **{"width": 8, "deep": 16, "blocks": 1, "deep_blocks": 2, **options})


CONDITION = {"log_norm": 1, "text": 3}
NETS: list[tuple[Callable[[], MLP | UNet], tuple[int, ...]]] = [
    (lambda: MLP(3), (3,)),
    (lambda: MLP(1, width=8, depth=1), (1,)),
    (lambda: MLP(3, 16, 2, condition=CONDITION, classes=3), (3,)),
    (lambda: UNet(1, 16, 32, 1, 2), (1, 8, 8)),
    (lambda: UNet(3, 16, 64, 2, 3, condition=CONDITION), (3, 12, 4)),
    (lambda: tiny_unet(levels=3, condition=CONDITION, classes=3), (1, 9, 8)),
]
each_net = pytest.mark.parametrize(("build", "shape"), NETS)


@each_net
def test_output_shape_and_conditioning(
    build: Callable[[], MLP | UNet], shape: tuple[int, ...]
) -> None:
    net = shaken(build())
    given = conditioning(net, 4)
    x, c = torch.randn(4, *shape), torch.tensor([-1.5, 0.0, 0.3, 0.6])
    f = net(x, c, **given)
    assert f.shape == x.shape
    other = net(x, c + torch.tensor([0.0, 0.0, 0.2, 0.0]), **given)
    changed = (f - other).flatten(1).abs().amax(1)
    assert changed[2] > 1e-3
    torch.testing.assert_close(other[[0, 1, 3]], f[[0, 1, 3]])


@each_net
def test_every_parameter_is_used(build: Callable[[], MLP | UNet], shape: tuple[int, ...]) -> None:
    net = shaken(build())
    f = net(torch.randn(5, *shape), torch.rand(5), **conditioning(net, 5))
    f.square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
        assert float(p.grad.abs().max()) > 0, name


@each_net
def test_config_builds_the_same_network(
    build: Callable[[], MLP | UNet], shape: tuple[int, ...]
) -> None:
    net = shaken(build())
    again = type(net)(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    x, c, given = torch.randn(2, *shape), torch.rand(2), conditioning(net, 2)
    assert torch.equal(again(x, c, **given), net(x, c, **given))


@torch.no_grad()
@pytest.mark.parametrize(("build", "shape"), [NETS[2], NETS[5]])
def test_torch_compile_takes_it_whole(
    build: Callable[[], MLP | UNet], shape: tuple[int, ...]
) -> None:
    """In one graph, which also serves where other samples have their conditions dropped."""
    net = shaken(build())
    compiled: Any = torch.compile(net, fullgraph=True, backend="eager")
    x, c, given = torch.randn(3, *shape), torch.rand(3), conditioning(net, 3)
    compiled(x, c, **given)
    other = {k: v.flip(0) for k, v in given.items()}
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(compiled(x, c, **other), net(x, c, **other))


@torch.no_grad()
@each_net
def test_autocast(build: Callable[[], MLP | UNet], shape: tuple[int, ...]) -> None:
    net = shaken(build())
    x, c, given = torch.randn(3, *shape), torch.rand(3), conditioning(net, 3)
    with torch.autocast("cpu", torch.bfloat16):
        f = net(x, c, **given)
    assert f.dtype == torch.bfloat16
    exact = net(x, c, **given)
    assert float((f.float() - exact).norm() / exact.norm()) < 0.02


# ---- conditioning ----


def test_the_embedding_separates_close_noise_levels() -> None:
    """log(s) / 4 of neighbours on a grid differs by about 0.05, that of the whole range by 2.2."""
    waves = FourierFeatures()(torch.tensor([-1.55, -1.5, 0.62]))
    distances = torch.cdist(waves, waves)
    assert float(distances[0, 1]) > 0.5
    assert float(distances[0, 2]) > 0.5


@torch.no_grad()
@each_net
def test_each_condition_changes_its_own_sample(
    build: Callable[[], MLP | UNet], shape: tuple[int, ...]
) -> None:
    net = shaken(build())
    x, c, given = torch.randn(4, *shape), torch.rand(4), conditioning(net, 4)
    f = net(x, c, **given)
    for name, value in given.items():
        changed = value.clone()
        changed[1] += 1
        difference = (net(x, c, **{**given, name: changed}) - f).flatten(1).abs().amax(1)
        assert difference[1] > 1e-4, name
        assert float(difference[[0, 2, 3]].max()) < 1e-5, name


def test_conditions_are_taken_by_name() -> None:
    net = shaken(MLP(3, condition={"a": 1, "b": 1}))
    x, c, a, b = torch.randn(4, 3), torch.rand(4), torch.randn(4), torch.randn(4)
    assert torch.equal(net(x, c, a=a, b=b), net(x, c, b=b, a=a))
    assert not torch.equal(net(x, c, a=a, b=b), net(x, c, a=b, b=a))


def test_a_condition_of_one_number_may_have_one_axis() -> None:
    net, a = shaken(MLP(3, condition={"a": 1})), torch.randn(4)
    x, c = torch.randn(4, 3), torch.rand(4)
    assert torch.equal(net(x, c, a=a), net(x, c, a=a[:, None]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_a_condition_of_another_dtype_is_converted(dtype: torch.dtype) -> None:
    net, a = shaken(MLP(3, condition={"a": 1})), torch.arange(4.0)
    x, c = torch.randn(4, 3), torch.rand(4)
    assert torch.equal(net(x, c, a=a.to(dtype)), net(x, c, a=a))


@torch.no_grad()
def test_a_dropped_condition_is_zeros_and_a_learned_vector() -> None:
    net = shaken(MLP(3, condition=CONDITION))
    x, c, text = torch.randn(2, 3), torch.rand(2), torch.randn(2, 3)
    nan, zero = torch.full((2,), torch.nan), torch.zeros(2)
    learned = net(x, c, log_norm=nan, text=text) - net(x, c, log_norm=zero, text=text)
    assert float(learned.abs().min()) > 1e-3
    net.null[0] = 0.0
    assert torch.equal(net(x, c, log_norm=nan, text=text), net(x, c, log_norm=zero, text=text))


def test_nan_in_a_part_of_a_condition_reaches_the_output() -> None:
    """Only a whole condition can be dropped: a missing number in the data does not go unseen."""
    net, text = MLP(3, condition={"text": 3}), torch.zeros(2, 3)
    text[1, 2] = torch.nan
    f = net(torch.zeros(2, 3), torch.zeros(2), text=text)
    assert f.isnan().all(1).tolist() == [False, True]


def test_the_label_after_the_last_is_the_null_class() -> None:
    net = MLP(3, classes=2)
    x, c = torch.ones(3, 3), torch.zeros(3)
    f = net(x, c, label=torch.tensor([0, 1, 2]))
    assert torch.equal(f[0], f[1])
    assert torch.equal(f[0], f[2])
    f = shaken(net)(x, c, label=torch.tensor([0, 1, 2]))
    assert len(f.unique(dim=0)) == 3


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"a": torch.zeros(4, 2)}, "built with condition={}, which has no 'a': leave it out, or "
     "build the network with condition={'a': 2}"),
    ({"condition": {"a": 1}}, {"a": torch.zeros(4), "b": torch.zeros(4)},
     "built with condition={'a': 1}, which has no 'b': leave it out, or build the network with "
     "condition={'a': 1, 'b': 1}"),
    ({"condition": {"a": 1}}, {}, "built with condition={'a': 1}, but 'a' is missing: give "
     "condition={'a': tensor} to sample and fit, or a=tensor to Loss, of shape (4, 1) or (4,)"),
    ({"condition": {"log_norm": 1}}, {}, "but 'log_norm' is missing: only rotations have it: build "
     "the network of another model without it"),
    ({}, {"log_norm": torch.zeros(4)}, "built with condition={}, which has no 'log_norm': build "
     "the network with condition={'log_norm': 1}"),
    ({"condition": {"a": 1}}, {"a": torch.zeros(3)}, "a must have shape (4, 1) or (4,), got (3,)"),
    ({"condition": {"a": 3}}, {"a": torch.zeros(4)}, "a must have shape (4, 3), got (4,)"),
    ({"condition": {"a": 3}}, {"a": torch.zeros(4, 2)}, "a must have shape (4, 3), got (4, 2)"),
    ({"classes": 3}, {}, "built with classes=3, but the label is missing: build the model with "
     "classes=3, and give label= to sample, labels= to fit and Loss"),
    ({}, {"label": torch.zeros(4).long()}, "built with classes=0, but got a label"),
    ({"classes": 3}, {"label": torch.zeros(4)}, "built with classes=3: label must be (4,) "
     "integers, got (4,) torch.float32: convert with .long()"),
    ({"classes": 3}, {"label": torch.zeros(3).long()}, "label must be (4,) integers, got (3,)"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "given", "message"), WRONG)
def test_wrong_conditions_are_refused(
    options: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    cases = ((MLP(3, 8, **options), (3,)), (tiny_unet(**options), (1, 8, 8)))
    for net, shape in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            net(torch.zeros(4, *shape), torch.zeros(4), **given)


@pytest.mark.parametrize("shape", [(4, 1), (1,), (), (4, 2)])
def test_c_noise_is_one_number_a_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"c_noise must have shape \(4,\), one number a sample"):
        MLP(3, 8)(torch.zeros(4, 3), torch.zeros(shape))


def test_a_condition_is_a_tensor() -> None:
    net: Any = MLP(3, 8, condition={"a": 1})
    with pytest.raises(TypeError, match="a must be a tensor, got list"):
        net(torch.zeros(4, 3), torch.zeros(4), a=[0.0] * 4)


@pytest.mark.parametrize("name", ["x", "c_noise", "label", "self", "two words", "class", 3])
def test_names_of_conditions(name: Any) -> None:
    with pytest.raises(ValueError, match=f"condition must have names .*, got {name!r}"):
        MLP(3, condition={name: 1})


@pytest.mark.parametrize("condition", [2, "log_norm", ["log_norm"]])
def test_condition_is_a_mapping(condition: Any) -> None:
    with pytest.raises(TypeError, match="condition must map the name of each condition"):
        MLP(3, condition=condition)


@pytest.mark.parametrize(("numbers", "error"), [(0, ValueError), (1.0, TypeError)])
def test_numbers_of_conditions(numbers: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"condition\['a'\] must be a"):
        tiny_unet(condition={"a": numbers})


# ---- MLP ----


def test_mlp_refuses_what_would_mix_samples() -> None:
    with pytest.raises(ValueError, match=r"MLP needs vectors \(n, dim\), got \(28, 28, 28\)"):
        MLP(28, 8)(torch.ones(28, 28, 28), torch.zeros(28))
    with pytest.raises(ValueError, match="MLP was built for 4 features, got 3"):
        MLP(4, 8)(torch.ones(5, 3), torch.zeros(5))


# ---- U-Net ----


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("width", [5, 7, 28, 33, 64])
@pytest.mark.parametrize("height", [5, 7, 28, 33, 64])
def test_unet_takes_any_size(height: int, width: int, levels: int) -> None:
    net = shaken(tiny_unet(levels=levels))
    x = torch.randn(2, 1, height, width)
    f = net(x, torch.rand(2))
    assert f.shape == x.shape
    assert f.is_contiguous()
    f.square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name


@pytest.mark.parametrize(
    ("levels", "size", "message"),
    [
        (7, (8, 8), r"levels=7, for sides of at least 64, got images of 8 x 8: UNet\(levels=4\)"),
        (5, (64, 12), r"levels=5, for sides of at least 16, .* 64 x 12: UNet\(levels=4\)"),
        (2, (1, 64), r"levels=2, for sides of at least 2, .* 1 x 64: flatten them and use an MLP"),
    ],
)
def test_unet_refuses_images_that_are_mostly_padding(
    levels: int, size: tuple[int, int], message: str
) -> None:
    """The advised number of levels is the largest that is accepted."""
    x, c = torch.randn(1, 1, *size), torch.zeros(1)
    with pytest.raises(ValueError, match=message):
        tiny_unet(levels=levels)(x, c)
    if advised := re.search(r"levels=(\d)\\\)", message):
        most = int(advised[1])
        assert tiny_unet(levels=most)(x, c).shape == x.shape
        with pytest.raises(ValueError, match="levels"):
            tiny_unet(levels=most + 1)(x, c)


def test_levels_are_at_most_eight() -> None:
    with pytest.raises(ValueError, match=r"levels must be in 2 \.\. 8, got 99"):
        tiny_unet(levels=99)


@pytest.mark.parametrize("n", [1, 2])
def test_unet_refuses_groups_of_one_value(n: int) -> None:
    x, c = torch.randn(n, 1, 4, 3), torch.zeros(n)
    message = r"deep=8 and levels=2, which leaves GroupNorm one value of images of 4 x 3"
    with pytest.raises(ValueError, match=message):
        tiny_unet(deep=8)(x, c)
    assert tiny_unet(deep=16)(x, c).shape == x.shape


def test_unet_pads_with_the_last_row_and_column() -> None:
    net, x, c = shaken(tiny_unet(levels=3)), torch.randn(2, 1, 13, 22), torch.rand(2)
    padded = F.pad(x, (0, 2, 0, 3), mode="replicate")
    assert torch.equal(net(x, c), net(padded, c)[..., :13, :22])


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_attention_is_at_the_coarsest_level(levels: int) -> None:
    net, seen = tiny_unet(levels=levels), []
    net.attention[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    net(torch.randn(1, 1, 32, 64), torch.rand(1))
    assert seen == [(1, 16, 32 >> levels, 64 >> levels)]


@pytest.mark.parametrize("levels", [2, 3])
def test_unet_sees_the_whole_image(levels: int) -> None:
    """Attention on the coarse level: every output pixel depends on every input pixel."""
    net = shaken(UNet(1, 16, 32, 1, 2, levels)).double()
    x = torch.randn(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    net(x, torch.zeros(1, dtype=torch.float64))[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert bool((x.grad.abs() > 0).all())


@torch.no_grad()
def test_an_untrained_unet_ignores_its_input() -> None:
    """The weights of its last layer are zero."""
    f = UNet(1, 16, 32, 1, 2)(torch.randn(2, 1, 8, 8), torch.rand(2))
    assert torch.equal(f[0], f[1])
    assert float(f.abs().max()) < 0.2


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 8, 8), (2, 64)])
def test_unet_names_the_images_that_it_is_built_for(shape: tuple[int, ...]) -> None:
    message = rf"built for images \(n, 1, height, width\), got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        tiny_unet()(torch.zeros(shape), torch.zeros(2))


# ---- attention ----


def attended(attention: Attention, x: Tensor) -> tuple[Tensor, ...]:
    """Return the output, and the gradients of its square by the parameters."""
    h = attention(x)
    return h.detach(), *torch.autograd.grad(h.square().sum(), list(attention.parameters()))


@pytest.mark.parametrize("side", [3, 7, 12])
def test_fused_attention_gives_the_same(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, x = shaken(Attention(64)), torch.randn(2, 64, side, side)
    results = []
    for least in (1, 10**6):
        monkeypatch.setattr("fastmsgm.nets.unet.FUSED_TOKENS", least)
        results.append(attended(attention, x))
    for fused, written_out in zip(*results, strict=True):
        error = (fused - written_out).norm() / written_out.norm()
        assert float(error) < 1e-5


def test_a_unet_with_fused_attention_has_second_derivatives() -> None:
    """As sliced score matching takes them: by the input, then by the parameters."""
    net, side = shaken(tiny_unet()), 40
    assert (side // 4) ** 2 >= FUSED_TOKENS
    x = torch.randn(1, 1, side, side, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x, torch.zeros(1)).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert float(net.attention[0].qkv.weight.grad.abs().max()) > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch.func.jvp's own
def test_derivatives_that_fused_attention_lacks_can_be_had_in_a_context() -> None:
    """As ``Attention`` says: second ones by the weights, and forward mode."""
    net, x, c = shaken(tiny_unet()), torch.randn(1, 1, 40, 40), torch.zeros(1)
    weight = net.attention[0].qkv.weight
    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(net(x, c).square().sum(), weight, create_graph=True)
        gradient.square().sum().backward()
        ones, f = torch.ones_like(x), lambda a: net(a, c)
        tangents = [jvp(f, (x,), (ones,))[1] for jvp in (torch.func.jvp, functional.jvp)]
    assert float(weight.grad.abs().max()) > 0
    torch.testing.assert_close(tangents[0], tangents[1])


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
        *((MLP, name, 1) for name in ("dim", "width", "depth")),
        (MLP, "classes", 0),
        (UNet, "channels", 1),
        (UNet, "width", 8),
        (UNet, "deep", 8),
        (UNet, "blocks", 0),
        (UNet, "deep_blocks", 1),
        (UNet, "levels", 2),
        (UNet, "classes", 0),
    ],
)
def test_sizes_are_integers(net: Callable[..., MLP | UNet], name: str, least: int) -> None:
    least_size: dict[str, Any] = {"dim": 3} if net is MLP else {"width": 8, "deep": 8}
    for wrong in (2.0, True, "2", None):
        with pytest.raises(TypeError, match=f"{name} must be an int, got {wrong!r}"):
            net(**{**least_size, name: wrong})
    allowed = f"(at least {least}|in {least} .. 8), got {least - 1}"
    with pytest.raises(ValueError, match=f"{name} must be {allowed}"):
        net(**{**least_size, name: least - 1})
    built = net(**{**least_size, name: np.int64(least)})
    assert type(built.config[name]) is int
    json.dumps(built.config)


# ---- DirectionMLP ----


def one_direction(log_width: float) -> DirectionMLP:
    """Return a network whose direction is (1, 2, 3, 4), residual 0 and width e^log_width."""
    net = DirectionMLP(4, width=8, depth=1).eval()
    with torch.no_grad():
        net.out.weight.zero_()
        net.out.bias.copy_(torch.tensor([0.0, 0, 0, 0, 1, 2, 3, 4]))
        net.log_width.bias.fill_(log_width)
    return net


@pytest.mark.parametrize("B", [1e-4, 0.01, 1.0, 10.0])
def test_a_narrow_direction_mlp_points_at_its_direction_at_every_noise_level(B: float) -> None:
    preconditioning = RotationPreconditioning(Rotation(), 4)
    u = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    c_noise = torch.full((6,), float(preconditioning.c_noise(np.array(B))))
    with torch.no_grad():
        f = one_direction(-12.0)(2 * u, c_noise, log_norm=torch.zeros(6))
    _, sigma, _ = preconditioning.coefficients(np.array([B]))[0]
    expected = torch.tensor([[1.0, 2, 3, 4]]).expand(6, 4)
    torch.testing.assert_close(sigma * f, expected, rtol=1e-4, atol=0, check_dtype=False)


def test_a_direction_mlp_of_unit_width_has_the_preconditioning_of_edm() -> None:
    net, B = one_direction(0.0), 0.5
    c_noise = torch.full((2,), (math.log(B) + 3) / 3)
    f = net(torch.randn(2, 4), c_noise, log_norm=torch.zeros(2))
    variance = 1 - math.exp(-B)
    gain = 2 * variance**0.5 / (1 + variance)  # sqrt(d) (1 - c_skip) / sigma
    torch.testing.assert_close(f, gain * torch.tensor([[1.0, 2, 3, 4]]).expand(2, 4))


@pytest.mark.parametrize("side", [8, 10])  # 10 is padded
def test_the_output_of_a_unet_is_contiguous(side: int) -> None:
    """Its convolutions run channels last, and kernels read arrays as they are in memory."""
    net = UNet(channels=3, width=16, deep=32, blocks=1, deep_blocks=1)
    assert net(torch.zeros(2, 3, side, side), torch.zeros(2)).is_contiguous()


def test_dropout_of_a_unet_is_for_training_alone() -> None:
    sizes: dict[str, Any] = {"channels": 1, "width": 16, "deep": 32, "blocks": 1, "deep_blocks": 2}
    plain, net = UNet(**sizes), UNet(**sizes, dropout=0.5)
    for parameter in net.parameters():  # the last convolutions start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict(net.state_dict())
    x, c_noise = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert torch.equal(net.eval()(x, c_noise), plain(x, c_noise))
    assert not torch.equal(net.train()(x, c_noise), plain(x, c_noise))
    assert sum(isinstance(layer, torch.nn.Dropout) for layer in net.modules()) == 5  # of 5 blocks
    assert UNet(**net.config).config == net.config
    assert "dropout" not in plain.config
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        UNet(**sizes, dropout=1.0)


def test_a_periodic_unet_moves_with_its_images() -> None:
    """A shift by a multiple of 2^levels shifts the output, and without ``periodic`` does not."""
    torch.manual_seed(0)
    net = UNet(1, 8, 16, 1, 1, periodic=True)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain = UNet(1, 8, 16, 1, 1)
    plain.load_state_dict(net.state_dict())
    x, c_noise, by = torch.randn(2, 1, 16, 16), torch.zeros(2), {"shifts": (4, 8), "dims": (2, 3)}
    with torch.no_grad():
        errors = [
            (f(x.roll(**by), c_noise) - f(x, c_noise).roll(**by)).abs().max() for f in (net, plain)
        ]
    assert errors[0] < 1e-5
    assert errors[1] > 1e-2
    assert UNet(**net.config).periodic
    assert "periodic" not in plain.config


def test_a_periodic_unet_refuses_sides_that_it_would_pad() -> None:
    net = UNet(1, 8, 16, 1, 1, periodic=True)
    with pytest.raises(ValueError, match="multiples of 4 as sides, got images of 16 x 18"):
        net(torch.zeros(1, 1, 16, 18), torch.zeros(1))
