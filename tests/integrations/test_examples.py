"""The examples of docs/integrations.md run with the real libraries, and do what the page says."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fastmsgm
from fastmsgm import GBM, GBMModel, nets
from tests.integrations import documented

LINES = 15  # of an example, at most
pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' own
PARAMETERS = """
mine = torch.cat([p.detach().flatten() for p in loss_of.parameters()])
every = [torch.empty_like(mine) for _ in range(2)]
torch.distributed.all_gather(every, mine)
if torch.distributed.get_rank() == 0:
    print("spread", float((every[0] - every[1]).abs().max()))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.parametrize("heading", documented.sections())
def test_examples_are_short(heading: str) -> None:
    for block in documented.sections()[heading]:
        lines = [line for line in block.splitlines() if line.strip() and line[0] != "#"]
        statements = ast.parse(block).body
        assert len(lines) <= LINES, f"{heading}: {len(lines)} lines, {len(statements)} statements"


def test_plain_loop() -> None:
    names = documented.run("A plain loop")
    assert names["loss_of"].calls == 100
    assert torch.corrcoef(names["samples"].log().T)[0, 1] < -0.5  # of the data: -1
    late = fastmsgm.Loss(names["model"])(names["x"], step=9_999).item()
    torch.manual_seed(0)
    fresh = names["model"].with_net(nets.MLP(2))
    assert late < 0.7 * fastmsgm.Loss(fresh)(names["x"], step=9_999).item()


def test_averages_are_sampled_saved_and_loaded(folder: Path) -> None:
    names = documented.run("Weight averages")
    for name in ("average", "ema"):
        again = fastmsgm.load(folder / "runs" / name)
        assert fastmsgm.sample(again, 10, progress=False).shape == (10, 2)
    saved = fastmsgm.load(folder / "runs" / "average").net.state_dict()
    averaged = names["average"].module.net.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in averaged.items())


def test_a_guided_model_stays_one_when_averaged_saved_and_restored(folder: Path) -> None:
    x, size = torch.exp(torch.randn(100, 2)), torch.randn(100)
    model = GBMModel.for_data(nets.MLP(2, 8, 1, condition={"size": 1}), GBM(8.0), x)
    average: Any = AveragedModel(model)
    loss_of = fastmsgm.Loss(model, drop=0.1)
    loss_of(x, size=size).backward()
    average.update_parameters(model)
    nn.init.ones_(average.module.net.out.bias)  # an average that differs from the weights
    average.module.save(folder / "average")
    other = GBMModel.for_data(nets.MLP(2, 8, 1, condition={"size": 1}), GBM(8.0), x)
    other.load_state_dict(model.state_dict())
    options: dict[str, Any] = {"condition": {"size": size[:4]}, "guidance": 2.0, "steps": 2}
    loaded = fastmsgm.sample(folder / "average", 4, progress=False, **options)
    assert torch.equal(loaded, fastmsgm.sample(average, 4, progress=False, **options))
    assert not torch.equal(loaded, fastmsgm.sample(other, 4, progress=False, **options))


def test_averaged_network_is_saved_without_its_wrapper(folder: Path) -> None:
    x = torch.exp(torch.randn(100, 2))
    model = GBMModel.for_data(nets.MLP(2, 8, 1), GBM(8.0), x)
    averaged = model.with_net(AveragedModel(model.net))
    averaged.save(folder / "averaged")
    again = fastmsgm.load(folder / "averaged")
    expected = fastmsgm.sample(model, 10, progress=False)
    assert torch.equal(fastmsgm.sample(averaged, 10, progress=False), expected)
    assert torch.equal(fastmsgm.sample(again, 10, progress=False), expected)


def test_distributed_data_parallel(folder: Path) -> None:
    printed = documented.on_two_ranks("DistributedDataParallel", PARAMETERS, folder)
    assert printed.strip() == "spread 0.0"
    assert fastmsgm.sample(folder / "runs" / "ddp", 10, progress=False).shape == (10, 2)


def test_accelerate_in_bfloat16_on_two_ranks(folder: Path) -> None:
    seen = (
        "net, seen = model.net, set()\n"
        "net.out.register_forward_hook(lambda m, i, o: seen.add(str(o.dtype)))\n"
        "loss_of(x[:8]).backward()\n"
        "if torch.distributed.get_rank() == 0: print(seen)\n"
    )
    printed = documented.on_two_ranks("Accelerate", seen + PARAMETERS, folder)
    assert printed.split("\n")[:2] == ["{'torch.bfloat16'}", "spread 0.0"]


def test_lightning_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    product = torch.nn.functional.linear

    def linear(*args: torch.Tensor) -> torch.Tensor:
        result = product(*args)
        if torch.is_grad_enabled():
            seen.add(result.dtype)
        return result

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    names = documented.run("Lightning")
    assert seen == {torch.bfloat16}
    assert names["trainer"].global_step == 16
    assert bool(names["samples"].isfinite().all())


def test_a_network_of_fabric_is_taken(folder: Path) -> None:
    from lightning.fabric import Fabric

    x = torch.exp(torch.randn(100, 2))
    model = GBMModel.for_data(nets.MLP(2, 8, 1), GBM(8.0), x)
    expected = fastmsgm.sample(model, 4, progress=False)
    model.net = Fabric(accelerator="cpu", devices=1).setup(model.net)
    fastmsgm.Loss(model)(x).backward()
    model.save(folder / "fabric")
    loaded = fastmsgm.load(folder / "fabric")
    assert torch.equal(fastmsgm.sample(loaded, 4, progress=False), expected)


def test_diffusers_network(folder: Path) -> None:
    names = documented.run("A diffusers network")
    assert names["samples"].shape == (4, 1, 16, 16)
    names["pictures"].save(folder / "unet")
    unet = type(names["unet"]).from_config(names["unet"].config)
    again = fastmsgm.load(folder / "unet", net=unet)
    part = fastmsgm.sample(again, 4, progress=False)
    assert torch.equal(part, names["samples"])


def test_function_and_generator() -> None:
    names = documented.run("A network trained elsewhere")
    logs = names["samples"].log()
    assert logs.mean().abs() < 0.05
    assert logs.std().item() == pytest.approx(0.5, abs=0.05)
    again = fastmsgm.sample(
        names["score"],
        10,
        process=GBM(8.0),
        shape=(2,),
        prediction="score",
        time="t",
        generator=names["generator"],
        progress=False,
    )
    assert not torch.equal(again, names["samples"][:10])


def test_condition_and_guidance() -> None:
    names = documented.run("Labels, conditions and guidance")
    obtained = names["samples"].log().mean(1)
    assert torch.corrcoef(torch.stack((names["asked"], obtained)))[0, 1] > 0.95
    assert names["pushed"].shape == (500, 2)


def test_class_labels() -> None:
    names = documented.run("Class labels")
    obtained = names["samples"].log().mean(1)
    assert torch.corrcoef(torch.stack((names["asked"].float(), obtained)))[0, 1] > 0.9
    assert names["ones"].log().mean().item() == pytest.approx(1.0, abs=0.3)


def test_loader_and_callback() -> None:
    assert documented.run("Datasets and loaders")["prices"].shape == (2,)
    log = documented.run("Callbacks: Weights & Biases, sample grids")["log"]
    assert [step for step, _, _ in log] == [50, 100]
    assert all(validation is not None for _, _, validation in log)
