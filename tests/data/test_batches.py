"""Batches and one_pass: kinds of data, exactness, augmentation, memory, errors."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from fastmsgm.data import Batches, DataOrder, OversampledOrder, one_pass
from fastmsgm.processes import Processes

N = 30
X = torch.rand(N, 2, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 4
AGE = torch.arange(N, dtype=torch.float32)
BYTES = (X * 255).to(torch.uint8)


def take(batches: Batches, steps: int, first_step: int = 0) -> list[tuple[Tensor, dict[str, Any]]]:
    return list(itertools.islice(batches.iterate(first_step), steps))


def samples(batches: Batches, steps: int, first_step: int = 0) -> list[Tensor]:
    return [x for x, _ in take(batches, steps, first_step)]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


class Noisy(Dataset[Any]):
    """Items with noise of PyTorch's global generator."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index] + torch.randn(2, 3), int(LABELS[index])


class Stream(IterableDataset[Any]):
    """Items x, or (x, label), in order."""

    def __init__(self, n: int = N, labelled: bool = False) -> None:
        self.n, self.labelled = n, labelled

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        own = range(self.n) if worker is None else range(worker.id, self.n, worker.num_workers)
        return iter([(X[k], LABELS[k]) if self.labelled else X[k] for k in own])


def noise(x: Tensor) -> Tensor:
    """A random transform of one sample."""
    assert x.shape == (2, 3)
    return x + torch.randn(2, 3)


# ---- exact batches ----


KINDS: dict[str, Callable[..., Batches]] = {
    "tensor": lambda **options: Batches(X, batch_size=8, **options),
    "uint8": lambda **options: Batches(BYTES, batch_size=8, **options),
    "data set": lambda **options: Batches(TensorDataset(X, LABELS), batch_size=8, **options),
    "random items": lambda **options: Batches(Noisy(), batch_size=8, **options),
    "loader": lambda **options: Batches(DataLoader(Noisy(), 8), **options),
    "shuffled": lambda **options: Batches(DataLoader(Noisy(), 8, shuffle=True), **options),
    "transform": lambda **options: Batches(X, batch_size=8, transform=noise, **options),
    "transformed": lambda **options: Batches(Noisy(), batch_size=8, transform=noise, **options),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_depends_on_seed_and_step_alone(kind: str) -> None:
    """Over several epochs, and wherever iteration begins."""
    batches = KINDS[kind](seed=5)
    assert batches.exact
    whole = samples(batches, 12)
    assert all(x.shape == (8, 2, 3) and x.dtype == torch.float32 for x in whole)
    assert equal(samples(KINDS[kind](seed=5), 5, first_step=7), whole[7:])
    assert not torch.equal(samples(KINDS[kind](seed=6), 1)[0], whole[0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_batches_say_of_the_data(kind: str) -> None:
    batches = KINDS[kind]()
    assert (batches.samples, batches.batch_size, batches.shape) == (N, 8, (2, 3))


@pytest.mark.parametrize(
    "data", [X, TensorDataset(X), DataLoader(TensorDataset(X), 8, shuffle=True, drop_last=True)]
)
def test_the_order_is_that_of_data_order(data: Any) -> None:
    order = DataOrder(N, 8, seed=5)
    found = samples(Batches(data, batch_size=8, seed=5), 9)
    assert equal(found, [X[order.batch(step)] for step in range(9)])


def test_the_default_batch_size_is_128() -> None:
    assert Batches(X).batch_size == Batches(TensorDataset(X)).batch_size == 128
    assert Batches(Stream()).batch_size == 128


SUBSET = torch.tensor([3, 11, 25])


def oversampled(kind: str = "data set", **options: Any) -> Batches:
    batches = KINDS[kind](**{"seed": 5, **options})
    batches.oversample(SUBSET, 5)
    return batches


@pytest.mark.parametrize("kind", ["tensor", "data set"])
def test_oversampled_batches_hold_samples_and_labels_of_their_indices(kind: str) -> None:
    batches = oversampled(kind, **({"labels": LABELS} if kind == "tensor" else {}))
    order = OversampledOrder(N, 8, 5, subset=SUBSET, count=5)
    for step, (x, condition) in enumerate(take(batches, 9)):
        assert torch.equal(x, X[order.batch(step)])
        assert torch.equal(condition["label"], LABELS[order.batch(step)])


@pytest.mark.parametrize("kind", KINDS)
def test_an_oversampled_batch_depends_on_seed_and_step_alone(kind: str) -> None:
    whole = samples(oversampled(kind), 12)
    assert equal(samples(oversampled(kind), 5, first_step=7), whole[7:])


def test_workers_read_ahead_in_oversampled_batches() -> None:
    loaded = [Batches(DataLoader(Noisy(), 8, num_workers=workers), seed=5) for workers in (0, 2)]
    for batches in loaded:
        batches.oversample(SUBSET, 5)
    assert equal(*(samples(batches, 9, first_step=3) for batches in loaded))


@pytest.mark.parametrize("kind", ["tensor", "random items"])
def test_the_parts_of_processes_are_an_oversampled_batch(kind: str) -> None:
    whole = samples(oversampled(kind), 4, first_step=3)
    runs = [oversampled(kind).parts(3, Processes(rank, 3)) for rank in range(3)]
    for x in whole:
        assert torch.equal(torch.cat([next(parts).x for parts in runs]), x)


def test_an_epoch_has_every_sample_once_beside_oversampling() -> None:
    assert torch.equal(torch.cat([x for x, _ in oversampled("tensor").epoch()]), X)


def test_the_order_of_a_loader_that_has_oversampled_order_is_kept() -> None:
    order = OversampledOrder(N, 8, seed=11, subset=SUBSET, count=5)
    loader = DataLoader(TensorDataset(X), batch_sampler=order)
    batches = Batches(loader, seed=5)
    assert (batches.exact, batches.oversampled, batches.batch_size) == (True, True, 8)
    assert equal(samples(batches, 4, 3), [X[order.batch(step)] for step in range(3, 7)])
    assert torch.equal(torch.cat([x for x, _ in batches.epoch()]), X)


def test_indices_beyond_the_data_cannot_be_oversampled() -> None:
    with pytest.raises(ValueError, match=rf"subset must be of indices in 0 \.\. {N - 1}, got 6 "):
        KINDS["tensor"]().oversample(torch.tensor([6, N]), 5)


def test_samples_of_an_unknown_order_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="data must have a fixed order for samples to be chosen"):
        Batches(Stream()).oversample(SUBSET, 5)


@pytest.mark.parametrize("count", [0, 8])
def test_a_batch_cannot_be_oversampled_wholly_or_not_at_all(count: int) -> None:
    with pytest.raises(ValueError, match="count must be"):
        KINDS["tensor"]().oversample(SUBSET, count)


@pytest.mark.parametrize("transform", [None, noise])
def test_workers_change_nothing(transform: Callable[[Tensor], Tensor] | None) -> None:
    none, two = (
        Batches(DataLoader(Noisy(), 8, num_workers=workers), transform=transform, seed=5)
        for workers in (0, 2)
    )
    assert equal(samples(none, 9, first_step=3), samples(two, 9, first_step=3))


def test_the_order_of_a_loader_that_has_data_order_is_kept() -> None:
    order = DataOrder(N, 5, seed=11)
    batches = Batches(DataLoader(TensorDataset(X), batch_sampler=order), seed=5)
    assert batches.exact
    assert equal(samples(batches, 4, 3), [X[order.batch(step)] for step in range(3, 7)])


def set_worker(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.dataset.tensors[0].fill_(7)  # type: ignore[union-attr]


def test_the_settings_of_a_loader_are_kept() -> None:
    def double(items: list[tuple[Tensor]]) -> Tensor:
        return torch.stack([x for (x,) in items]) * 2

    loader = DataLoader(
        TensorDataset(X.clone()),
        4,
        num_workers=1,
        collate_fn=double,
        worker_init_fn=set_worker,
        persistent_workers=True,
        prefetch_factor=3,
        multiprocessing_context="fork",
    )
    assert torch.equal(samples(Batches(loader), 1)[0], torch.full((4, 2, 3), 14.0))


def test_bytes_are_divided_by_255() -> None:
    floats = Batches(BYTES.float() / 255, batch_size=8, seed=5)
    for data in (BYTES, TensorDataset(BYTES), DataLoader(TensorDataset(BYTES), 8)):
        assert equal(samples(Batches(data, batch_size=8, seed=5), 5), samples(floats, 5))


def test_a_transform_of_a_tensor_sees_a_sample_in_float32() -> None:
    seen: list[Tensor] = []
    samples(Batches(BYTES, batch_size=2, transform=lambda x: seen.append(x) or x), 1)
    assert all(x.dtype == torch.float32 and float(x.max()) <= 1 for x in seen)


def test_a_transform_of_a_data_set_sees_what_the_data_set_gives() -> None:
    items = [{"image": str(k), "label": k % 4} for k in range(N)]
    batches = Batches(
        Subset(items, range(N)),  # type: ignore[arg-type]
        transform=lambda text: torch.full((3,), float(text)),
        batch_size=8,
    )
    x, condition = take(batches, 1)[0]
    assert batches.shape == (3,)
    assert torch.equal(x[:, 0].long() % 4, condition["label"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generator_stays_as_it_is(kind: str) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    samples(KINDS[kind](), 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_generator_is_restored_after_an_error() -> None:
    def fail(x: Tensor) -> Tensor:
        raise ArithmeticError(float(torch.rand(1)))

    state = torch.get_rng_state()
    with pytest.raises(ArithmeticError):
        Batches(X, transform=fail)
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_differs_between_samples_and_epochs() -> None:
    batches = Batches(torch.zeros(4, 2, 3), transform=noise, batch_size=4)
    values = torch.cat(samples(batches, 50)).flatten()
    assert len(values.unique()) == len(values)
    assert abs(float(values.mean())) < 4 / len(values) ** 0.5


# ---- labels and conditions ----


@pytest.mark.parametrize(
    "batches",
    [
        Batches(X, LABELS, {"age": AGE}, batch_size=8),
        Batches(BYTES / 255, LABELS.to(torch.uint8), {"age": AGE.double()}, batch_size=8),
        Batches(X, LABELS, {"age": AGE}, batch_size=8, transform=lambda x: x),
        Batches(TensorDataset(X), LABELS, {"age": AGE}, batch_size=8),
        Batches(TensorDataset(X, LABELS), condition={"age": AGE}, batch_size=8),
        Batches(DataLoader(TensorDataset(X, LABELS), 8, num_workers=1), condition={"age": AGE}),
    ],
)
def test_labels_and_conditions_are_those_of_the_samples(batches: Batches) -> None:
    for x, condition in take(batches, 9, first_step=2):
        row = (x.flatten(1)[:, None] - X.flatten(1)).abs().sum(2).argmin(1)
        assert condition["label"].dtype == torch.int64
        assert torch.equal(condition["label"], LABELS[row])
        assert condition["age"].dtype == torch.float32
        assert torch.equal(condition["age"], AGE[row])


class Items(Dataset[Any]):
    """Items of a form that is a function of the index."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


@pytest.mark.parametrize(
    ("item", "names"),
    [
        (lambda k: X[k], set()),
        (lambda k: X[k].numpy(), set()),
        (lambda k: (X[k],), set()),
        (lambda k: (X[k], int(LABELS[k])), {"label"}),
        (lambda k: [X[k], LABELS[k]], {"label"}),
        (lambda k: (X[k], {"age": AGE[k]}), {"age"}),
        (lambda k: (X[k], {"age": float(k), "label": k}), {"age", "label"}),
        (lambda k: {"x": X[k], "age": AGE[k]}, {"age"}),
        (lambda k: {"image": X[k], "label": k}, {"label"}),
        (lambda k: {"data": X[k].double()}, set()),
    ],
)
def test_forms_of_items(item: Callable[[int], Any], names: set[str]) -> None:
    order = DataOrder(N, 8)
    for step, (x, condition) in enumerate(take(Batches(Items(item), batch_size=8), 3)):
        indices = order.batch(step)
        assert x.dtype == torch.float32
        assert torch.equal(x, X[indices])
        assert set(condition) == names
        assert torch.equal(condition.get("age", indices.float()), indices.float())


# ---- batches as they come ----


def weighted() -> DataLoader[Any]:
    sampler = WeightedRandomSampler([1.0] * N, N, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(X, LABELS), 8, sampler=sampler)


class OwnLoader(DataLoader[Any]):
    """A loader that does something else."""

    def __iter__(self) -> Any:
        return iter([X[:5], X[5:9]])


@pytest.mark.parametrize(
    ("data", "known"),
    [
        (Stream(), None),
        (DataLoader(Stream(), 8, num_workers=2), None),
        (weighted(), N),
        (OwnLoader(TensorDataset(X), 8), N),
        (DataLoader(TensorDataset(X), batch_sampler=[[0, 1], [2, 3]]), N),
    ],
)
def test_other_orders_are_not_exact(data: Any, known: int | None) -> None:
    batches = Batches(data)
    assert not batches.exact
    assert (batches.samples, batches.shape) == (known, (2, 3))


def test_what_identifies_batch_sizes() -> None:
    """A loader that does not say how many samples a batch has can begin with another number."""
    for first in (2, 3):
        loader = DataLoader(TensorDataset(X), batch_sampler=[list(range(first)), [4, 5, 6, 7]])
        assert Batches(loader).sizes == "loader"
    for data in (X, Stream(), DataLoader(TensorDataset(X), 8)):
        batches = Batches(data)
        assert batches.sizes == batches.batch_size


def test_a_stream_is_repeated_epoch_after_epoch() -> None:
    batches = Batches(Stream(10), batch_size=4)
    sizes = [len(x) for x in samples(batches, 7)]
    assert sizes == [4, 4, 2, 4, 4, 2, 4]
    assert torch.equal(torch.cat(samples(batches, 3)), X[:10])


def test_the_batch_that_was_looked_at_is_not_lost() -> None:
    """Of a stream that cannot begin anew, too."""
    once = iter([X[:3], X[3:6]])

    class Once(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return once

    batches = Batches(DataLoader(Once(), batch_size=None))
    assert batches.batch_size == 3
    found = batches.iterate()
    x, _ = next(found)
    assert torch.equal(x, X[:3])
    x, _ = next(found)
    assert torch.equal(x, X[3:6])
    with pytest.raises(ValueError, match=r"at least one batch in every epoch, got none: .* anew"):
        next(found)


def test_a_stream_with_labels_and_a_transform() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = Batches(Stream(labelled=True), batch_size=8, transform=noise)
    first, again = (take(batches, 5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal([x for x, _ in first], [x for x, _ in again])
    for (x, condition), k in zip(first, (0, 8, 16, 24, 0), strict=True):
        assert torch.equal(condition["label"], LABELS[k : k + len(x)])
        assert float((x - X[k : k + len(x)]).abs().max()) > 0.5
    assert not torch.equal(first[0][0], first[4][0])


# ---- epochs ----


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_repeatable(kind: str) -> None:
    """Whatever was iterated before, and with the same augmentation."""
    batches = KINDS[kind](seed=5)
    first = [x for x, _ in batches.epoch()]
    samples(batches, 3)
    assert [len(x) for x in first] == [8, 8, 8, 6]
    assert equal([x for x, _ in batches.epoch()], first)


@pytest.mark.parametrize(
    "batches",
    [
        Batches(X, LABELS, batch_size=8),
        Batches(TensorDataset(X, LABELS), batch_size=8),
        Batches(TensorDataset(X), LABELS, batch_size=8),
        Batches(DataLoader(TensorDataset(X, LABELS), 8, shuffle=True, drop_last=True)),
        Batches(DataLoader(TensorDataset(X, LABELS), 8, num_workers=2)),
        Batches(DataLoader(TensorDataset(X, LABELS), batch_sampler=DataOrder(N, 8))),
        Batches(Stream(labelled=True), batch_size=8),
    ],
)
def test_an_epoch_is_of_every_sample_in_order(batches: Batches) -> None:
    for _ in range(2):
        parts = list(batches.epoch())
        assert torch.equal(torch.cat([x for x, _ in parts]), X)
        assert torch.equal(torch.cat([condition["label"] for _, condition in parts]), LABELS)


def test_an_epoch_of_more_samples_than_data_is_of_the_data() -> None:
    assert [len(x) for x, _ in Batches(X, batch_size=100).epoch()] == [N]


def test_an_epoch_of_a_stream_that_cannot_begin_anew_is_refused() -> None:
    once = iter(X)

    class Once(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return once

    batches = Batches(Once(), batch_size=8)
    assert torch.equal(torch.cat([x for x, _ in batches.epoch()]), X)
    with pytest.raises(ValueError, match="at least one batch in every epoch, got none"):
        list(batches.epoch())


# ---- one pass ----


SOURCES: dict[str, Callable[[], Any]] = {
    "data set": lambda: TensorDataset(X, LABELS),
    "loader": lambda: DataLoader(TensorDataset(X, LABELS), 8),
    "shuffled": lambda: DataLoader(TensorDataset(X, LABELS), 8, shuffle=True, drop_last=True),
    "workers": lambda: DataLoader(TensorDataset(X, LABELS), 8, num_workers=2),
    "data order": lambda: DataLoader(TensorDataset(X, LABELS), batch_sampler=DataOrder(N, 8)),
    "stream": lambda: Stream(labelled=True),
}


@pytest.mark.parametrize("block", [1, 18, 10**6])
@pytest.mark.parametrize("source", SOURCES)
def test_a_pass_is_of_every_sample_in_order(
    source: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmsgm.data.blocks.BLOCK", block)
    parts = list(one_pass(SOURCES[source](), labels=True))
    assert max(x.numel() for x, _ in parts) <= max(block, 6)
    assert torch.equal(torch.cat([x for x, _ in parts]), X)
    assert torch.equal(torch.cat([label for _, label in parts if label is not None]), LABELS)


@pytest.mark.parametrize("data", [X, TensorDataset(X), TensorDataset(X, LABELS + 1)])
def test_labels_of_a_pass_that_are_given(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmsgm.data.blocks.BLOCK", 18)
    labels = [label for _, label in one_pass(data, LABELS) if label is not None]
    assert torch.equal(torch.cat(labels), LABELS)
    assert all(label is None for _, label in one_pass(data))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.uint8, torch.float32),
    ],
)
def test_the_dtype_of_a_pass(given: torch.dtype, expected: torch.dtype) -> None:
    x = (255 * X).to(given)
    ((block, _),) = one_pass(x)
    assert block.dtype == expected
    assert torch.equal(block, x / 255 if given == torch.uint8 else x.to(expected))


def test_a_pass_over_random_items_is_repeatable() -> None:
    state = torch.get_rng_state()
    first, again = (torch.cat([x for x, _ in one_pass(Noisy())]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)


@pytest.mark.parametrize(("patience", "warnings"), [(0.0, 1), (1e9, 0)])
def test_a_long_pass_over_a_stream_says_so_once(
    patience: float,
    warnings: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("fastmsgm.data.blocks.PATIENCE", patience)
    list(one_pass(DataLoader(Stream(), 8), name="x"))
    assert caplog.text.count("the pass over x goes on after 1 batches") == warnings
    assert len(caplog.records) == warnings


# ---- memory ----


@pytest.mark.skipif(sys.platform != "linux", reason="resource limits of Linux")
def test_more_data_than_memory() -> None:
    """128 MiB of samples pass through a process that may use 64 MiB more than it does."""
    code = """
import resource, torch
from torch.utils.data import DataLoader, Dataset
import fastmsgm
from fastmsgm import nets
from fastmsgm.data import Batches

class Large(Dataset):
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, index):
        return torch.full((1, 64, 64), 1.0 + index % 2)

def use(n):
    loader = DataLoader(Large(n), batch_size=64)
    model = fastmsgm.RotationModel.for_data(net, fastmsgm.Rotation(), loader)
    return len(model.log_norms), len(next(Batches(loader).iterate(1000))[0])

torch.set_num_threads(1)
net = nets.UNet(1, 8, 8, condition={"log_norm": 1})
use(64)  # loads what is loaded at first use
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**26, in_use + 2**26))
print(*use(8192))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["8192", "64"], run.stderr


# ---- errors ----


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (X.double(), ValueError, r"data must be float32 or uint8, got torch\.float64 \(30, 2, 3\)"),
        (X.long(), ValueError, r"got torch\.int64 .*convert with \.float\(\)"),
        (X.numpy(), TypeError, "data must be a tensor, got ndarray: .*from_numpy"),
        ([X[0], X[1]], TypeError, r"data must be a tensor, got list: .*torch\.stack"),
        ({"x": X}, TypeError, "data must be a tensor, got dict"),
        (iter([X]), TypeError, "got list_iterator: .*Dataset with __len__, an IterableDataset"),
        (None, TypeError, "data must be a tensor, got NoneType"),
        (torch.empty(0, 3), ValueError, "data must have at least one sample, got none"),
        (Stream(0), ValueError, "data must give at least one batch, got none"),
        (TensorDataset(X.long()), TypeError, r"floating point or uint8, got torch\.int64"),
        (TensorDataset(AGE), TypeError, r"tensors \(b, \.\.\.\) with features, got \(1,\)"),
        (TensorDataset(X, X, X), ValueError, r"x, \(x, label\) or .*, got 3 parts"),
        (TensorDataset(X, AGE), TypeError, r"labels must be integers, got torch\.float32"),
        (TensorDataset(X, X.long()), ValueError, r"labels must have shape \(1,\)"),
        (Items(lambda k: "text"), TypeError, "with features, got str"),
        (
            Items(lambda k: (X[k], {"text": "a"})),
            TypeError,
            "condition 'text' must be numbers, got strings: .*embed",
        ),
        (
            Items(lambda k: (X[k], "cat")),
            TypeError,
            "data: in the items, labels must be integers, got strings: number classes from 0",
        ),
        (
            Items(lambda k: (X[k], float(k))),
            TypeError,
            r"labels must be integers, got torch\.float64: .*as \(x, \{name: value\}\)",
        ),
        (Items(lambda k: {"img": X[k]}), ValueError, "names x, image, data, got img: rename"),
    ],
)
def test_batches_refuse_data(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Batches(data)


@pytest.mark.parametrize(
    "data",
    [
        X.double(),
        X.numpy(),
        torch.empty(0, 3),
        Stream(0),
        TensorDataset(AGE),
        TensorDataset(X.long()),
        TensorDataset(X, X, X),
        TensorDataset(X, AGE),
        TensorDataset(X, X.long()),
        Items(lambda k: (X[k], "cat")),
        Items(lambda k: {"img": X[k]}),
    ],
)
def test_errors_name_the_data(data: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^validation(:| must)") as caught:
        Batches(data, name="validation")
    assert "data must" not in str(caught.value)


def test_images_of_pil_are_refused_with_the_remedy() -> None:
    image = pytest.importorskip("PIL.Image")
    dataset = Items(lambda k: (image.new("L", (3, 2)), k))
    message = (
        r"got an image of PIL: give the data set itself .*torchvision\.datasets\.CIFAR10\(\.\.\., "
        r"transform=torchvision\.transforms\.ToTensor\(\)\)"
    )
    with pytest.raises(TypeError, match=message):
        Batches(dataset)
    with pytest.raises(TypeError, match=message):
        list(one_pass(dataset))
    assert Batches(dataset, transform=lambda x: torch.ones(1, x.height, x.width)).shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (X, {"labels": LABELS[:5]}, ValueError, r"labels must have shape \(30,\)"),
        (X, {"labels": LABELS.float()}, TypeError, "labels must be integers"),
        (X, {"condition": AGE}, TypeError, "condition must map names to tensors, got Tensor"),
        (X, {"condition": {"age": AGE[:5]}}, ValueError, r"condition 'age' must have shape \(30"),
        (X, {"condition": {"label": AGE}}, ValueError, "must not be named 'label'"),
        (X, {"transform": "flip"}, TypeError, "transform must be a callable on one sample, .*str"),
        (X, {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        (X, {"seed": -1}, ValueError, "seed must be in 0"),
        (
            TensorDataset(X, LABELS),
            {"labels": LABELS},
            ValueError,
            "label must be given once, got it as an argument and in the items",
        ),
        (
            Items(lambda k: (X[k], {"age": AGE[k]})),
            {"condition": {"age": AGE}},
            ValueError,
            "age must be given once",
        ),
        (
            DataLoader(TensorDataset(X), 8),
            {"batch_size": 4},
            ValueError,
            "batch_size must be the loader's, 8, got 4: leave it out",
        ),
        (
            Stream(),
            {"labels": LABELS, "condition": {"age": AGE}},
            ValueError,
            r"labels, age must come with the items .*: give items \(x, label\)",
        ),
    ],
)
def test_batches_refuse_options(
    data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Batches(data, **options)


@pytest.mark.parametrize(
    ("data", "labels", "error", "message"),
    [
        (X.long(), None, TypeError, r"x must be floating point, got torch\.int64"),
        (torch.empty(0, 3), None, ValueError, r"x must have shape \(n, .*, got \(0, 3\)"),
        (AGE, None, ValueError, r"x must have shape \(n, .*, got \(30,\)"),
        (np.ones((3, 3)), None, TypeError, "x must be a tensor, got ndarray"),
        (Stream(0), None, ValueError, "x must have at least one sample, got none"),
        (X, True, ValueError, r"labels=True needs x whose items are \(x, label\), got none"),
        (X, LABELS[:3], ValueError, r"labels must have shape \(30,\)"),
        (X, False, TypeError, "labels must be a tensor, got bool"),
        (Stream(), LABELS, ValueError, "labels must come with the items of x .*labels=True"),
        (
            DataLoader(Items(lambda k: X[k, :, : 1 + k // 8]), 8),
            None,
            ValueError,
            r"x must have samples of one shape, got \(2, 1\) and \(2, 2\): resize them",
        ),
    ],
)
def test_a_pass_refuses(data: Any, labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(one_pass(data, labels, "x"))
