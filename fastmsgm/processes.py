"""The processes of ``torch.distributed`` that share a job, and what they agree on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")
_joins = itertools.count()  # all processes make the same calls
# A rank can take hours longer than the others: its chunks are larger, or it writes the files.
TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """This process among those that share a job; by default it is the only one.

    Args:
        rank: Its number, from 0; rank 0 writes what there is one of.
        size: How many there are.
        device: Where tensors that are exchanged must be.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"

    def rows(self, n: int) -> slice:
        """Return this process's part of n rows; all parts together are the n rows, in order."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def agree(self, value: Any) -> Any:
        """Return the value of rank 0."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=torch.device(self.device))
        return values[0]

    def lead(self, work: Callable[[], T]) -> T:
        """Do work in rank 0 alone; its result, or the exception it raised, is that of all."""
        if self.size == 1:
            return work()
        outcome: tuple[Any, Exception | None] | None = None
        if self.rank == 0:
            try:
                outcome = work(), None
            except Exception as error:
                outcome = None, error
        result, error = self.agree(outcome)
        if error is not None:
            raise error
        return result

    def check_same(self, settings: dict[str, Any]) -> None:
        """Raise ValueError in all processes where one was given other settings than rank 0."""
        if self.size == 1:
            return
        first = self.agree(settings)
        names = [name for name in {**first, **settings} if first.get(name) != settings.get(name)]
        if self.any(bool(names))[0]:
            differs = f"here in {', '.join(names)}" if names else "in another process"
            raise ValueError(
                f"all {self.size} processes must be given the same arguments, and differ {differs} "
                "from rank 0: give them the same seed, model, data and folder"
            )

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                value = tensor.to(self.device, copy=True)
                distributed.broadcast(value, src=0)
                tensor.copy_(value)

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if self.size == 1:
            return list(flags)
        numbers = torch.tensor(flags, dtype=torch.int32, device=self.device)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return [bool(number) for number in numbers.tolist()]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of all processes' values."""
        if self.size == 1:
            return values
        values = values.to(self.device)
        distributed.all_reduce(values)
        return values / self.size

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(False)


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Yield the processes of ``torch.distributed``, which are joined here if nobody has yet.

    Args:
        device: Where this process works.

    Raises:
        RuntimeError: The processes that torchrun started cannot be joined.
    """
    if not distributed.is_available():
        yield Processes()
        return
    join = distributed.is_torchelastic_launched() and not distributed.is_initialized()
    if join:
        backend = "nccl" if device.type == "cuda" else "gloo"
        store, rank, size = next(rendezvous("env://"))
        # A second group in the same store would find what the first left there.
        prefix = f"fastmsgm-{next(_joins)}"
        store = distributed.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT
        )
    try:
        if not distributed.is_initialized():
            yield Processes()
            return
        exchanged = device if distributed.get_backend() == "nccl" else "cpu"
        yield Processes(distributed.get_rank(), distributed.get_world_size(), exchanged)
    finally:
        if join:
            distributed.destroy_process_group()
