"""Arguments of sample that other libraries' users give, and the size of chunks."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm import GBM, GBMModel, Loss, batch_size, job
from fastmsgm.habits import HINTS
from fastmsgm.nets import MLP

sample = functools.partial(fastmsgm.sample, progress=False)


@functools.cache
def build() -> GBMModel:
    x = torch.exp(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
    return GBMModel.for_data(MLP(3, 8, 1), GBM(8.0), x)


# ---- habits ----


@pytest.mark.parametrize(("given", "ours"), HINTS.items())
def test_other_libraries_names_get_a_hint(given: str, ours: str) -> None:
    misnamed: dict[str, Any] = {given: 3}
    with pytest.raises(TypeError, match=f"no argument '{given}': it is called {ours}"):
        sample(build(), 4, **misnamed)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TypeError, match=r"sample has no argument 'eta'$"):
        sample(build(), 4, eta=0.5)


def test_one_generator_and_one_seed_serve_all_samples() -> None:
    many: Any = [torch.Generator(), torch.Generator()]
    with pytest.raises(TypeError, match=r"generator must be one torch\.Generator, got list"):
        sample(build(), 2, generator=many)
    seeds: Any = [1, 2]
    with pytest.raises(TypeError, match="seed must be one int, got a list"):
        sample(build(), 2, seed=seeds)
    with pytest.raises(ValueError, match="seed and generator must not be given together"):
        sample(build(), 2, seed=1, generator=torch.Generator())


def test_a_generator_advances() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (sample(build(), 4, steps=2, generator=generator) for _ in range(2))
    again = sample(build(), 4, steps=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_what_holds_a_model_is_not_taken_for_a_function() -> None:
    with pytest.raises(TypeError, match="got Loss alone: of a module that holds a model"):
        sample(Loss(build()), 4)


def test_arguments_of_functions_are_refused_beside_a_model() -> None:
    with pytest.raises(TypeError, match="process is for a model that is a function, got a GBMM"):
        sample(build(), 4, process=GBM(8.0))


# ---- chunks ----


def size_of(shape: tuple[int, ...], n: int, device: str) -> int:
    loop: Any = None
    return batch_size.default_batch_size(shape, n, torch.device(device), loop)


def test_chunks_of_a_cpu_depend_on_the_features() -> None:
    sizes = [size_of((d,), 10**6, "cpu") for d in (2, 64, 784, 10**6)]
    assert sizes == [8192, 1024, 64, 64]


@pytest.mark.parametrize(("bytes_per_sample", "size"), [(1, 1024), (10**8, 500), (10**12, 1)])
def test_chunks_on_cuda_fit_into_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, bytes_per_sample: int, size: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**11, 10**12))
    monkeypatch.setattr(batch_size, "bytes_per_sample", lambda device, loop: bytes_per_sample)
    assert size_of((3, 256, 256), 64, "cuda") == size


def test_memory_is_measured_on_a_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Net(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            assert not self.training
            seen.append(len(x))
            return x

    model = GBMModel.for_data(Net(), GBM(8.0), torch.exp(torch.randn(64, 3))).train()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 9_000)
    checked = job.check_job(
        model,
        100,
        steps=3,
        solver=None,
        seed=0,
        generator=None,
        start=0,
        label=None,
        condition=None,
        guidance=1.0,
        batch_size=None,
        device=None,
        compiled=False,
        callback=None,
        function={},
        unknown={},
    )
    assert batch_size.bytes_per_sample(model.device, checked.loop) == 2_000
    assert seen == [batch_size.PROBE]


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (100, [100]), (9_000, [4_500, 4_500])])
def test_without_a_batch_size_chunks_are_equal(n: int, sizes: list[int]) -> None:
    chunks = fastmsgm.sample_iter(build(), n, steps=1, start=7, progress=False)
    assert [len(chunk) for chunk in chunks] == sizes


def test_modes_come_back_after_every_chunk() -> None:
    model = build().train()
    model.net.layers.eval()
    for _ in fastmsgm.sample_iter(model, 8, batch_size=4, steps=1, progress=False):
        assert model.net.training
        assert not model.net.layers.training
