"""Wrapped networks and models are sampled, trained, saved and loaded as what is inside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import fastmsgm
from fastmsgm import GBM, GBMModel, Loss
from fastmsgm.nets import MLP
from fastmsgm.wrappers import output_of, unwrap

sample = functools.partial(fastmsgm.sample, n=6, steps=3, progress=False)
compiled: Callable[[Any], Any] = functools.partial(torch.compile, backend="eager")
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DistributedDataParallel": DistributedDataParallel,
    "DataParallel": DataParallel,
    "AveragedModel": AveragedModel,
    "torch.compile": compiled,
    "both": lambda module: DistributedDataParallel(compiled(module)),
}


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("rank") / "store"
    distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def data() -> Tensor:
    return torch.exp(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))


def build() -> GBMModel:
    torch.manual_seed(0)
    return GBMModel.for_data(MLP(3, 16, 2), GBM(8.0), data())


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_network_trains_samples_saves_and_loads(name: str, tmp_path: Path) -> None:
    plain, wrapped = build(), build()
    wrapped.net = WRAPPERS[name](wrapped.net)
    assert Loss(wrapped)(data()).item() == pytest.approx(Loss(plain)(data()).item(), rel=1e-5)
    torch.testing.assert_close(sample(wrapped), sample(plain))
    wrapped.save(tmp_path)
    assert torch.equal(sample(fastmsgm.load(tmp_path)), sample(plain))


def test_a_network_with_compiled_parts_is_saved_plainly(tmp_path: Path) -> None:
    plain, model = build(), build()
    model.net.layers[0] = compiled(model.net.layers[0])
    model.save(tmp_path)
    loaded = fastmsgm.load(tmp_path)
    assert torch.equal(sample(loaded), sample(plain))
    model.net.layers[0].weight.data.zero_()
    model.load_weights(loaded.state_dict())
    assert torch.equal(model.net.layers[0].weight, plain.net.layers[0].weight)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_is_sampled(name: str) -> None:
    assert torch.equal(sample(WRAPPERS[name](build())), sample(build()))


def test_fit_trains_a_compiled_network_and_resumes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "warmup": 1, "progress": False}
    plain, wrapped = build(), build()
    wrapped.net = compiled(wrapped.net)
    fastmsgm.fit(plain, data(), steps=4, lr=lambda step: 1e-3, **options)
    fastmsgm.fit(wrapped, data(), steps=2, lr=constant, out=tmp_path, **options)
    again = build()
    again.net = compiled(again.net)
    fastmsgm.fit(again, data(), steps=4, lr=constant, out=tmp_path, **options)
    torch.testing.assert_close(sample(again), sample(plain), rtol=1e-4, atol=1e-5)


def constant(step: int) -> float:
    return 1e-3


def test_fit_refuses_a_wrapped_model() -> None:
    with pytest.raises(TypeError, match=r"got AveragedModel: give the model inside"):
        fastmsgm.fit(AveragedModel(build()), data(), steps=1)  # pyright: ignore[reportArgumentType]


def test_wrappers_are_taken_off_in_any_order() -> None:
    net = MLP(3, 8, 1)
    assert unwrap(AveragedModel(net)) is not net  # it holds a copy
    assert unwrap(compiled(DataParallel(net))) is net
    assert unwrap(DataParallel(net), compiled=False) is net
    kept = compiled(net)
    assert unwrap(kept, compiled=False) is kept


class Returned:
    def __init__(self, sample: Any) -> None:
        self.sample = sample


def test_outputs_of_other_libraries_are_taken() -> None:
    x = torch.zeros(2, 3)
    assert output_of(x, x, "net") is x
    assert output_of(Returned(x), x, "net") is x
    assert output_of((x, 1), x, "net") is x
    with pytest.raises(TypeError, match="net must return a tensor, an object"):
        output_of({"sample": x}, x, "net")
    with pytest.raises(ValueError, match=r"net must return its input's shape \(2, 3\), got \(2,\)"):
        output_of(x[:, 0], x, "net")


def test_a_networks_tuple_is_taken() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> tuple[Tensor, None]:
            return x, None

    assert sample(GBMModel.for_data(Pair(), GBM(8.0), data())).shape == (6, 3)
