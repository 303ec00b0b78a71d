"""PyTorch's default dtype and default device: samples and trained weights do not depend on them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fastmsgm
from fastmsgm import nets, rng
from fastmsgm.data import synthetic
from fastmsgm.evaluation.metrics import sliced_wasserstein
from fastmsgm.families import FAMILIES

# Functions whose result has the default dtype or device if none is given.
NUMBERS = {
    *("arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn"),
    *("randperm", "scalar_tensor", "tensor", "zeros"),
}
ARRAYS = {"as_tensor", "asarray"}  # have the dtype of their data


def bare(path: Path) -> list[str]:
    """Return where such a function is used without a dtype and a device."""
    tree = ast.parse(path.read_text("utf-8"))
    complete: set[ast.expr] = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            needed = {"dtype", "device"}
            if path.parent.name == "nets":  # a network is on the default device, as PyTorch's own
                needed.remove("device")
            if isinstance(call.func, ast.Attribute) and call.func.attr in ARRAYS:
                needed.remove("dtype")
            given = {keyword.arg for keyword in call.keywords}
            if needed <= given or None in given:  # None: **arguments
                complete.add(call.func)
    return [
        f"{path}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
        and node.attr in NUMBERS | ARRAYS
        and node not in complete
    ]


@pytest.mark.parametrize("package", ["fastmsgm", "fastmsgm.kernels"])
def test_every_new_tensor_says_its_dtype_and_device(package: str) -> None:
    folder = Path(importlib.import_module(package).__path__[0])
    assert [use for path in folder.rglob("*.py") for use in bare(path)] == []


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def elsewhere() -> torch.device:
    """A default device that holds no numbers, so that none can come from it."""
    return torch.device("meta")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


DATA = 1 + torch.rand(32, 4, generator=seeded())
Default = Callable[[], AbstractContextManager[Any]]
DEFAULTS = pytest.mark.parametrize("default", [double, elsewhere])


def sampled(model: fastmsgm.ScoreModel | str, **options: Any) -> Tensor:
    model = fastmsgm.load(model) if isinstance(model, str) else model
    return fastmsgm.sample(model, 3, steps=2, seed=5, progress=False, **options)


@DEFAULTS
@pytest.mark.parametrize("name", ["fashion-gbm", "cauchy-rotation", "cauchy-vp"])
def test_samples_of_shipped_models(name: str, default: Default) -> None:
    expected = sampled(name)
    with default():
        samples = sampled(name)
    assert samples.dtype == torch.float32
    assert torch.equal(samples, expected)


PROCESSES = {
    "gbm": fastmsgm.GBM(sigma=2.0),
    "isotropic": fastmsgm.Rotation(),
    "ring": fastmsgm.Rotation("ring"),
    "dense": fastmsgm.Rotation("dense"),
    "vp": fastmsgm.VP(),
}


def trained(process: Any, **options: Any) -> fastmsgm.ScoreModel:
    """A model of fresh weights after two steps."""
    torch.manual_seed(0)
    condition = {"log_norm": 1} if isinstance(process, fastmsgm.Rotation) else None
    with torch.device("cpu"):
        net = nets.MLP(4, width=16, condition=condition)
    family = FAMILIES[type(process).__name__]
    model: Any = family.for_data(net, process, DATA)  # pyright: ignore[reportAttributeAccessIssue]
    return fastmsgm.fit(model, DATA, steps=2, batch_size=8, progress=False, **options)


@DEFAULTS
@pytest.mark.parametrize("name", PROCESSES)
def test_training_and_what_it_samples(name: str, default: Default) -> None:
    # PyTorch's Adam counts its steps on the default device, where there are no numbers.
    options = {"optimizer": torch.optim.SGD} if default is elsewhere else {}
    usual = trained(PROCESSES[name], **options)
    expected = sampled(usual)
    with default():
        model = trained(PROCESSES[name], **options)
        samples = sampled(model)
    weights = model.state_dict()
    for key, value in usual.state_dict().items():
        assert weights[key].dtype == value.dtype
        assert torch.equal(weights[key], value), key
    assert torch.equal(samples, expected)


@DEFAULTS
@pytest.mark.parametrize("name", ["gbm", "isotropic", "ring", "vp"])
def test_the_reference_backend(
    name: str, default: Default, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", "reference")
    model = trained(PROCESSES[name], optimizer=torch.optim.SGD)
    expected = sampled(model)
    with default():
        assert torch.equal(sampled(model), expected)


class Items(Dataset[tuple[Tensor, int]]):
    """Vectors with labels that are no tensors yet."""

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return DATA[index], index % 3


def of_data_set(data: Any) -> Tensor:
    """Samples, with guidance, of a class-conditional model."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        net = nets.MLP(4, width=16, classes=3)
    model = fastmsgm.GBMModel.for_data(net, fastmsgm.GBM(2.0), data, labels=True, classes=3)
    options: dict[str, Any] = {"optimizer": torch.optim.SGD, "drop": 0.2, "progress": False}
    fastmsgm.fit(model, data, steps=2, batch_size=8, validation=data, every=1, **options)
    return sampled(model, guidance=2.0)


def of_function() -> Tensor:
    return fastmsgm.sample(
        lambda x, s: 0.1 * torch.sin(x),
        3,
        steps=2,
        process=fastmsgm.Rotation(),
        shape=(4,),
        prediction="denoised",
        time="t",
        device="cpu",
        progress=False,
    )


CALLS: dict[str, Callable[[], Any]] = {
    "data set": lambda: of_data_set(Items()),
    "loader": lambda: of_data_set(DataLoader(Items(), 8, shuffle=True, generator=seeded())),
    "function": of_function,
    "Loss": lambda: fastmsgm.Loss(fastmsgm.load("cauchy-rotation"))(DATA),
    "sliced_wasserstein": lambda: torch.tensor(
        sliced_wasserstein(DATA, DATA.exp()), dtype=torch.float64, device="cpu"
    ),
    "gaussian_cauchy": lambda: synthetic.gaussian_cauchy(8),
    "uniforms": lambda: rng.uniforms(3, 2, rng.stream(1), 0),
}


@DEFAULTS
@pytest.mark.parametrize("name", CALLS)
def test_other_results(name: str, default: Default) -> None:
    expected = CALLS[name]()
    with default():
        result = CALLS[name]()
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)
