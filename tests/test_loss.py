"""Loss: counts and noise, ranks and parts of a batch, scaling, autocast, dropped conditions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import fastmsgm
from fastmsgm import GBM, VP, GBMModel, Loss, Rotation, RotationModel, VPModel
from fastmsgm.gbm import DenoisingLoss
from fastmsgm.nets import MLP

MODELS = ("gbm", "rotation", "vp")
WRAPS = ("loss", "net", "shards", "sharded loss")


def data(n: int = 64, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.exp(0.5 * torch.randn(n, 3, generator=generator)) - offset


def build(family: str = "gbm", **options: Any) -> fastmsgm.ScoreModel:
    torch.manual_seed(0)
    if family == "gbm":
        return GBMModel.for_data(MLP(3, 16, 2), GBM(8.0), data(), **options)
    if family == "rotation":
        net = MLP(3, 16, 2, condition={"log_norm": 1})
        return RotationModel.for_data(net, Rotation(), data(), **options)
    return VPModel.for_data(MLP(3, 16, 2), VP(), data(), **options)


# ---- steps, parts, ranks ----


def test_calls_count_the_steps() -> None:
    loss = Loss(build(), seed=5)
    counted = [loss(data()).item() for _ in range(3)]
    given = [loss(data(), step=step).item() for step in range(3)]
    assert counted == given
    assert len(set(counted)) == 3


def test_evaluation_has_its_own_count_and_noise() -> None:
    loss = Loss(build())
    first, second = loss(data()).item(), loss(data(), step=1).item()
    loss.eval()
    evaluated = [loss(data()).item() for _ in range(2)]
    assert len({first, second, *evaluated}) == 4
    assert (loss.calls, loss.evaluations) == (1, 2)


def test_the_count_travels_in_the_state_dict() -> None:
    loss = Loss(build())
    for _ in range(3):
        loss(data())
    again = Loss(build())
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert again(data()).item() == loss(data()).item()


@pytest.mark.parametrize("family", MODELS)
def test_the_mean_is_that_of_the_samples(family: str) -> None:
    loss = Loss(build(family))
    every = loss(data(), step=0, reduction="none")
    assert every.shape == (64,)
    assert loss(data(), step=0).item() == pytest.approx(every.mean().item(), rel=1e-6)


@pytest.mark.parametrize("family", MODELS)
def test_parts_of_a_batch_have_the_noise_of_the_whole(family: str) -> None:
    loss, x = Loss(build(family)), data()
    whole = loss(x, step=7, first=0, reduction="none")
    parts = [loss(x[i : i + 16], step=7, first=i, reduction="none") for i in range(0, 64, 16)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


def test_another_loss_and_another_seed_give_another_value() -> None:
    model = build()
    values = {
        Loss(model)(data()).item(),
        Loss(model, seed=1)(data()).item(),
        Loss(model, DenoisingLoss(p_mean=1.0))(data()).item(),
    }
    assert len(values) == 3


def trained(wrap: str, rank: int = 0, ranks: int = 1) -> GBMModel:
    """Return a model after three steps of SGD on this rank's part of the batch."""
    model = build()
    assert isinstance(model, GBMModel)
    if wrap == "net":
        model.net = DistributedDataParallel(model.net)
    if wrap == "shards":
        fully_shard(model.net, mesh=init_device_mesh("cpu", (ranks,)))
    loss: nn.Module = Loss(model)
    if wrap == "loss":
        loss = DistributedDataParallel(loss)
    if wrap == "sharded loss":
        fully_shard(loss, mesh=init_device_mesh("cpu", (ranks,)))
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(data().chunk(ranks)[rank]).backward()
        optimizer.step()
    return model


def on_rank(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    for wrap in WRAPS:
        trained(wrap, rank, 2).save(f"{folder}/{wrap}{rank}")
    with pytest.warns(UserWarning, match=r"trained outside DistributedDataParallel, on 2 ranks"):
        trained("none", rank, 2).save(f"{folder}/none{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that two ranks trained, each named by what was wrapped and the rank."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(on_rank, (str(folder / "store"), str(folder)), nprocs=2)
    return folder


def distance(one: fastmsgm.ScoreModel, other: fastmsgm.ScoreModel) -> float:
    pairs = zip(one.net.parameters(), other.net.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("wrap", WRAPS)
def test_two_ranks_train_as_one_process(wrap: str, ranks: Path) -> None:
    first, second = (fastmsgm.load(ranks / f"{wrap}{rank}") for rank in range(2))
    assert distance(first, second) == 0
    assert distance(first, trained("none")) < 1e-6


def test_without_a_wrapper_ranks_drift_apart_and_a_warning_says_so(ranks: Path) -> None:
    first, second = (fastmsgm.load(ranks / f"none{rank}") for rank in range(2))
    assert distance(first, second) > 1e-4


def test_wrapped_models_are_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"got AveragedModel: wrap the loss instead of the model"):
        Loss(AveragedModel(build()))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="got Linear: build one with"):
        Loss(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]


# ---- the scale of the data ----


def test_data_are_taken_in_their_own_range() -> None:
    images = torch.rand(256, 3, generator=torch.Generator().manual_seed(1))
    model = GBMModel.for_data(MLP(3, 16, 2), GBM(8.0), images, offset=1.0, bounds=(0.0, 1.0))
    nn.init.zeros_(model.net.out.weight)
    nn.init.zeros_(model.net.out.bias)
    assert 0.5 < Loss(model)(images).item() < 1.5  # the target's variance, 1 at every noise level


def test_data_of_another_range_are_refused() -> None:
    images = torch.rand(256, 3)
    model = GBMModel.for_data(MLP(3, 16, 2), GBM(8.0), images, offset=1.0, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"data must be in the model's bounds \[0, 1\], got"):
        Loss(model)(255 * images)
    with pytest.raises(ValueError, match=r"data must be in the model's bounds"):
        Loss(model)(model.to_state(images))


def test_uint8_is_scaled_to_0_1() -> None:
    pixels = torch.randint(0, 256, (32, 3), dtype=torch.uint8)
    loss = Loss(GBMModel.for_data(MLP(3), GBM(8.0), pixels.float() / 255, offset=1.0))
    assert loss(pixels, step=0).item() == loss(pixels.float() / 255, step=0).item()


@pytest.mark.parametrize(
    ("batch", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "data must be a tensor, got list"),
        (torch.ones(4, 2), {}, ValueError, r"data must have shape \(n, 3\), n >= 1, got \(4, 2\)"),
        (torch.ones(4, 3).long(), {}, TypeError, "data must be floating point or uint8"),
        (-torch.ones(4, 3), {}, ValueError, "data must keep, in every feature, the sign"),
        (torch.ones(4, 3), {"reduction": "sum"}, ValueError, "reduction must be one of mean, none"),
        (torch.ones(4, 3), {"step": -1}, ValueError, "step must be in"),
        (torch.ones(4, 3), {"labels": torch.zeros(4).long()}, ValueError, "labels must be given"),
        (torch.ones(4, 3), {"size": torch.zeros(3)}, ValueError, r"'size' must have shape \(4,"),
        (torch.ones(4, 3), {"size": [1] * 4}, TypeError, "'size' must be a tensor, got list"),
        (torch.ones(4, 3), {"size": torch.full((4,), torch.nan)}, ValueError, "must be finite"),
        (torch.ones(4, 3), {"x": torch.zeros(4)}, ValueError, "must not be named 'x'"),
        (torch.ones(4, 3), {"stream": torch.zeros(4)}, ValueError, "must not be named 'stream'"),
    ],
)
def test_wrong_batches_are_refused(
    batch: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Loss(build())(batch, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drop": 1.0}, ValueError, r"drop must be in \[0, 1\), got 1.0"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"loss": DenoisingLoss}, TypeError, "give an instance"),
    ],
)
def test_wrong_arguments_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Loss(build(), **options)


# ---- autocast ----


class Spy(nn.Module):
    """Records the dtype of its matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 3), set[torch.dtype]()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        product = self.layer(x)
        self.seen.add(product.dtype)
        return product


def spied(**options: Any) -> tuple[Spy, GBMModel]:
    net = Spy()
    return net, GBMModel.for_data(net, GBM(8.0), data(), **options)


def test_an_active_autocast_is_the_networks() -> None:
    net, model = spied()
    with torch.autocast("cpu", torch.bfloat16):
        value = Loss(model)(data())
    assert net.seen == {torch.bfloat16}
    assert value.dtype == torch.float32
    assert value.item() != Loss(model)(data()).item()


def test_the_losses_own_arithmetic_is_not_autocast() -> None:
    net, model = spied()
    nn.init.zeros_(net.layer.weight)
    nn.init.zeros_(net.layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        value = Loss(model)(data())
    assert value.item() == Loss(model)(data()).item()


class Exact(nn.Module):
    """A network whose output does not depend on autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))

    def forward(self, x: Tensor, c_noise: Tensor, log_norm: Tensor) -> Tensor:
        return x.float() * self.weight


@pytest.mark.parametrize("noise", ["isotropic", "ring", "dense"])
def test_rotations_own_arithmetic_is_not_autocast(noise: str) -> None:
    model = RotationModel.for_data(Exact(), Rotation(noise=noise), data())
    options: dict[str, Any] = {"n": 8, "steps": 4, "progress": False}
    with torch.autocast("cpu", torch.bfloat16):
        samples, value = fastmsgm.sample(model, **options), Loss(model)(data()).item()
    assert torch.equal(samples, fastmsgm.sample(model, **options))
    assert value == Loss(model)(data()).item()


def test_sampling_respects_autocast() -> None:
    net, model = spied()
    with torch.autocast("cpu", torch.bfloat16):
        fastmsgm.sample(model, 4, steps=3, progress=False)
    assert net.seen == {torch.bfloat16}


def test_another_precision_beside_autocast_is_refused() -> None:
    _, model = spied(precision="fp16")
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"precision must be 'fp32' or that of the active"),
    ):
        Loss(model)(data())


# ---- dropped conditions ----


class Recorder(nn.Module):
    """Records the conditions of its last call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 3), dict[str, Tensor]()

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        self.seen = condition
        return self.layer(x)


def test_a_share_of_the_conditions_is_dropped_together() -> None:
    net = Recorder()
    model = GBMModel.for_data(net, GBM(8.0), data(), classes=4)
    x, labels, size = data(2_000), torch.arange(2_000) % 4, torch.ones(2_000, 2)
    Loss(model, drop=0.25)(x, labels=labels, size=size)
    dropped = net.seen["label"] == 4
    assert 0.2 < dropped.float().mean().item() < 0.3
    assert torch.equal(net.seen["label"][~dropped], labels[~dropped])
    assert torch.equal(net.seen["size"].isnan().all(1), dropped)
    assert torch.equal(net.seen["size"].isnan().any(1), dropped)
    assert model.drop == 0.25


def test_no_condition_is_dropped_in_evaluation_mode() -> None:
    net = Recorder()
    model = GBMModel.for_data(net, GBM(8.0), data())
    size = torch.ones(2_000)
    Loss(model, drop=0.5).eval()(data(2_000), size=size)
    assert torch.equal(net.seen["size"], size)


def test_a_network_must_take_dropped_conditions() -> None:
    class NoNull(Recorder):
        def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
            return self.layer(x) * condition["size"][:, None]

    class NoNullClass(Recorder):
        def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
            return self.layer(x) * torch.ones(2)[condition["label"]][:, None]

    numbers = GBMModel.for_data(NoNull(), GBM(8.0), data())
    with pytest.raises(ValueError, match="drop needs a network that takes dropped conditions"):
        Loss(numbers, drop=0.1)(data(), size=torch.ones(64))
    classes = GBMModel.for_data(NoNullClass(), GBM(8.0), data(), classes=2)
    with pytest.raises(ValueError, match="drop needs a network that takes dropped conditions"):
        Loss(classes, drop=0.1)(data(), labels=torch.zeros(64).long())


def test_drop_travels_with_the_weights() -> None:
    def conditional() -> GBMModel:
        return GBMModel.for_data(MLP(3, 8, 1, condition={"size": 1}), GBM(8.0), data())

    model = conditional()
    average = AveragedModel(model)
    Loss(model, drop=0.25)(data(), size=torch.ones(64))
    average.update_parameters(model)
    other = conditional()
    other.load_state_dict(model.state_dict())
    assert [model.drop, average.module.drop, other.drop] == [0.25] * 3
    assert model.with_net(model.net).drop == 0.25


def test_the_state_dict_is_one_of_safetensors(tmp_path: Path) -> None:
    save_file(Loss(build()).state_dict(), tmp_path / "state.safetensors")  # shares no memory
    again = Loss(build())
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))


def test_no_condition_is_dropped_by_default() -> None:
    net = Recorder()
    model = GBMModel.for_data(net, GBM(8.0), data())
    size = torch.linspace(0, 1, 64)
    Loss(model)(data(), size=size)
    assert torch.equal(net.seen["size"], size)
    assert model.drop == 0.0


def test_integers_cannot_be_dropped() -> None:
    model = GBMModel.for_data(Recorder(), GBM(8.0), data())
    with pytest.raises(TypeError, match="'token' must be floating point to be dropped"):
        Loss(model, drop=0.5)(data(), token=torch.zeros(64).long())
