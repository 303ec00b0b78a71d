"""sample(f) for a function of the user's: what it is called with, what it may be and return."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fastmsgm import GBM, VP, RadialPrior, Rotation, sample
from fastmsgm.function import function_model

OPTIONS: dict[str, Any] = {
    "process": GBM(3.0),
    "shape": (3,),
    "prediction": "epsilon",
    "time": "sigma",
    "steps": 4,
    "progress": False,
}
# The arguments of function_model after f.
ARGUMENTS: dict[str, Any] = {
    "process": GBM(3.0),
    "shape": (3,),
    "prediction": "epsilon",
    "time": "sigma",
    "prior": None,
    "device": None,
}


def noise(x: Tensor, s: Tensor) -> Tensor:
    """Return E[z | x] of data that are log-normal with variance 1."""
    return s[:, None] * torch.log(x) / (1 + s[:, None] ** 2)


class Noise(nn.Module):
    """``noise`` with a parameter and a mode, which it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        self.seen.append(self.training)
        return self.gain * noise(x, s)


def samples(f: Any, **options: Any) -> Tensor:
    return sample(f, 5, **{**OPTIONS, **options})


# ---- what f may be and return ----


@pytest.mark.parametrize(
    "wrap",
    [
        lambda e: e.double(),
        lambda e: (e, "more"),
        lambda e: [e],
        lambda e: SimpleNamespace(sample=e),
    ],
)
def test_the_output_is_a_tensor_its_sample_or_a_tuple_s_first(wrap: Any) -> None:
    assert torch.equal(samples(lambda x, s: wrap(noise(x, s))), samples(noise))


@pytest.mark.parametrize("wrap", [AveragedModel, DataParallel])
def test_wrappers_are_taken_off(wrap: Any) -> None:
    net = wrap(Noise())
    assert torch.equal(samples(net), samples(noise))
    assert function_model(net, **ARGUMENTS).net.f is net.module


def test_ddp_is_taken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        net = DistributedDataParallel(Noise())
        monkeypatch.setattr(DistributedDataParallel, "forward", None)
        assert torch.equal(samples(AveragedModel(net)), samples(noise))
    finally:
        distributed.destroy_process_group()


def test_a_compiled_module_stays_compiled() -> None:
    net = torch.compile(Noise(), backend="eager")
    assert function_model(net, **ARGUMENTS).net.f is net
    assert torch.equal(samples(net), samples(noise))


def test_a_wrapped_compiled_module_stays_compiled() -> None:
    net: Any = torch.compile(Noise(), backend="eager")
    assert function_model(DataParallel(net), **ARGUMENTS).net.f is net


def test_a_compiled_wrapper_is_taken_off() -> None:
    net = Noise()
    compiled = torch.compile(DataParallel(net), backend="eager")
    assert function_model(compiled, **ARGUMENTS).net.f is net


@pytest.mark.parametrize("training", [True, False])
def test_a_module_is_sampled_in_eval_mode_and_gets_its_mode_back(training: bool) -> None:
    net = Noise().train(training)
    samples(net)
    assert set(net.seen) == {False}
    assert net.training == training


def test_gradients_are_neither_taken_nor_switched_off() -> None:
    net = Noise()
    assert not samples(net).requires_grad
    assert net.gain.requires_grad


# ---- what f is called with ----


@pytest.mark.parametrize("process", [GBM(3.0), Rotation()])
def test_x_and_time_are_float32_and_of_their_shapes(process: Any) -> None:
    def f(x: Tensor, t: Tensor) -> Tensor:
        assert x.shape == (5, 3)
        assert t.shape == (5,)
        assert x.dtype == t.dtype == torch.float32
        return torch.zeros_like(x)

    samples(f, process=process, prediction="v")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_is_called_in_the_dtype_of_its_parameters(dtype: torch.dtype) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor, s: Tensor, age: Tensor, kind: Tensor) -> Tensor:
            assert x.dtype == s.dtype == age.dtype == dtype
            assert kind.dtype == torch.int64
            return self.layer(torch.cat((x, s[:, None], age[:, None]), dim=1))

    condition = {"age": torch.arange(5.0), "kind": torch.arange(5)}
    result = samples(Net().to(dtype), condition=condition, process=Rotation(), prediction="v")
    assert result.dtype == torch.float32
    assert bool(result.isfinite().all())


def test_a_module_without_floating_point_parameters_gets_float32() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)

        def forward(self, x: Tensor, s: Tensor) -> Tensor:
            assert x.dtype == s.dtype == torch.float32
            return noise(x, s)

    assert torch.equal(samples(Table()), samples(noise))


@pytest.mark.parametrize("process", [GBM(3.0), Rotation()])
def test_f_may_change_x_in_place(process: Any) -> None:
    def f(x: Tensor, s: Tensor) -> Tensor:
        output = torch.sin(x)
        x.zero_()
        return output

    result = samples(f, process=process, prediction="denoised")
    assert torch.equal(
        result, samples(lambda x, s: torch.sin(x), process=process, prediction="denoised")
    )


@pytest.mark.parametrize("process", [GBM(3.0), Rotation()])
def test_conditions_are_passed_by_name(process: Any) -> None:
    ages, kinds = torch.arange(5.0), torch.arange(5) % 2

    def f(x: Tensor, s: Tensor, age: Tensor, kind: Tensor) -> Tensor:
        assert torch.equal(age, ages)
        assert torch.equal(kind, kinds)
        return torch.zeros_like(x)

    samples(f, process=process, prediction="v", condition={"kind": kinds, "age": ages})


def test_the_model_is_where_the_module_is() -> None:
    model = function_model(nn.Linear(3, 3, device="meta"), **ARGUMENTS)
    assert model.device.type == "meta"


def test_device_moves_the_model_and_the_module() -> None:
    net = Noise()
    model = function_model(net, **{**ARGUMENTS, "device": "meta"})
    assert model.device.type == net.gain.device.type == "meta"


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"process": None}, TypeError, r"process must be a GBM or a Rotation.*got None: give"),
        ({"process": GBM}, TypeError, r"process must be a GBM or a Rotation.*got GBM: give"),
        ({"process": VP()}, TypeError, r"process must be a GBM or a Rotation.*got VP\("),
        ({"shape": None}, TypeError, r"shape must be a tuple of ints.*got None: give one"),
        ({"shape": 784}, TypeError, r"shape must be a tuple of ints.*got 784"),
        ({"shape": (1, 2.5)}, TypeError, r"shape must be an int, got 2\.5"),
        ({"shape": (0, 3)}, ValueError, r"shape must be at least 1, got 0"),
        ({"shape": ()}, ValueError, r"shape must have at least one axis"),
        ({"prediction": "x0"}, ValueError, r"prediction must be one of score, .*got 'x0'"),
        ({"time": "seconds"}, ValueError, r"time must be one of t, .*got 'seconds'"),
        ({"prior": RadialPrior(torch.zeros(1))}, TypeError, r"prior must be a LogNormalPrior"),
        ({"process": GBM(0.001)}, ValueError, r"sigma sqrt\(T\) must be above 0\.002, got 0\.001"),
    ],
)
def test_a_wrong_argument_is_named(options: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        function_model(noise, **{**ARGUMENTS, **options})


@pytest.mark.parametrize(
    ("f", "match"),
    [
        (Noise, r"f must be a function or a module, got the class Noise: give an instance"),
        (3, r"f must be a function f\(x, time, \*\*condition\).*got int"),
    ],
)
def test_f_must_be_callable(f: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        function_model(f, **ARGUMENTS)


@pytest.mark.parametrize(
    ("f", "error", "match"),
    [
        (lambda x, s: None, TypeError, r"f \(<lambda>\) must return a tensor.*got NoneType"),
        (lambda x, s: (), TypeError, r"must return a tensor.*got tuple"),
        (lambda x, s: {"sample": x}, TypeError, r"must return a tensor.*got dict"),
        (
            lambda x, s: x[:, :1],
            ValueError,
            r"f \(<lambda>\) must return its input's shape",
        ),
    ],
)
def test_a_wrong_output_is_named(f: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        samples(f)
