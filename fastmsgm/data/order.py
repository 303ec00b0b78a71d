"""Which samples make up batch k, a function of seed and k alone: DataOrder, OversampledOrder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from fastmsgm import rng
from fastmsgm.checks import check_int

_LARGEST_BATCH = 2**40  # positions in a run are int64


class DataOrder(Sampler[list[int]]):
    """Batch sampler of training: every epoch is a new permutation, and batches run on over epochs.

    The permutation of an epoch is the order of the words of the noise stream. The sampler never
    ends, and a run that starts at ``first_step`` sees the batches that follow.

    Args:
        n: Number of samples in the data set.
        batch_size: Samples of a batch.
        seed: Seed of the noise stream, 0 .. 2^64 - 1.
        first_step: The batch that iteration begins with.

    Raises:
        TypeError: An argument is not an int.
        ValueError: An argument is out of range.

    Example:
        >>> order = DataOrder(n=100, batch_size=8, seed=1, first_step=500)
        >>> dataset = torch.utils.data.TensorDataset(torch.randn(100, 3))
        >>> loader = torch.utils.data.DataLoader(dataset, batch_sampler=order)
        >>> next(iter(loader))[0].shape
        torch.Size([8, 3])
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0, first_step: int = 0) -> None:
        self.n = check_int("n", n, 1)
        self.batch_size = check_batch_size(batch_size)
        self.seed = check_int("seed", seed, 0, 2**64 - 1)
        self.first_step = check_int("first_step", first_step, 0)
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64, device="cpu")

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.first_step):
            yield self.batch(step).tolist()

    def batch(self, step: int) -> Tensor:
        """Return the sample indices of batch ``step``, (batch_size,) int64 on the CPU."""
        # Memory first, so that a batch that cannot be is refused before it is gathered for hours.
        batch = torch.empty(self.batch_size, dtype=torch.int64, device="cpu")
        first, filled = step * self.batch_size, 0
        while filled < self.batch_size:
            epoch, position = divmod(first + filled, self.n)
            part = self._order(epoch)[position : position + self.batch_size - filled]
            batch[filled : filled + len(part)] = part
            filled += len(part)
        return batch

    def _order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            stream, quads = rng.stream(self.seed), -(-self.n // 4)
            words = rng.words(1, quads, stream, rng.Purpose.DATA_ORDER, epoch).flatten()
            self._epoch, self._permutation = epoch, words[: self.n].argsort(stable=True)
        return self._permutation


class OversampledOrder(Sampler[list[int]]):
    """Batch sampler of which every batch begins with samples of a subset.

    ``fit(tail=...)`` builds one; a loader for a ``Loss`` in a loop of your own takes it, too. Those
    samples are the permutations of the subset, one after the other. The others of a batch are of
    all samples, in the order of ``DataOrder`` with batches of their number. Both orders are
    independent: the words of ``DataOrder`` are those of sample 0 of the noise stream at the step
    that is the epoch, those of epoch e of the subset of sample 1 + e at step 0.

    Args:
        n: Number of samples in the data set.
        batch_size: Samples of a batch.
        seed: Seed of the noise stream, 0 .. 2^64 - 1.
        first_step: The batch that iteration begins with.
        subset: (m,) int64, indices of samples in 0 .. n - 1, on any device; kept on the CPU.
        count: How many samples of a batch are of the subset, 1 .. batch_size - 1.

    Raises:
        TypeError: subset is not an int64 tensor, or another argument not an int.
        ValueError: An argument is out of range, or subset empty or of another shape.

    Example:
        >>> order = OversampledOrder(100, 8, subset=torch.tensor([3, 7, 9]), count=6)
        >>> sorted(order.batch(0)[:6].tolist())
        [3, 3, 7, 7, 9, 9]
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int = 0,
        first_step: int = 0,
        *,
        subset: Tensor,
        count: int,
    ) -> None:
        self.n = check_int("n", n, 1)
        self.batch_size = check_batch_size(batch_size)
        self.count = check_int("count", count, 1, self.batch_size - 1)
        self.subset = check_subset(subset, self.n)
        self._all = DataOrder(self.n, self.batch_size - self.count, seed, first_step)
        self.seed = self._all.seed
        self._epochs = range(0)
        self._permutations = torch.empty(0, dtype=torch.int64, device="cpu")

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self._all.first_step):
            yield self.batch(step).tolist()

    def batch(self, step: int) -> Tensor:
        """Return the sample indices of batch ``step``, (batch_size,) int64 on the CPU."""
        others = self._all.batch(step)
        m, first = len(self.subset), step * self.count
        epochs = range(first // m, (first + self.count - 1) // m + 1)
        if epochs != self._epochs:
            stream = rng.stream(self.seed, 1 + epochs.start)
            words = rng.words(len(epochs), -(-m // 4), stream, rng.Purpose.DATA_ORDER, 0)
            order = words.flatten(1)[:, :m].argsort(dim=1, stable=True)
            self._epochs, self._permutations = epochs, order.flatten()
        at = first - epochs.start * m
        return torch.cat((self.subset[self._permutations[at : at + self.count]], others))


def check_subset(subset: Tensor, n: int) -> Tensor:
    """Return indices of some of n samples, on the CPU; TypeError or ValueError where they are not.

    Args:
        subset: (m,) int64.
        n: Number of samples in the data set.
    """
    if not isinstance(subset, Tensor) or subset.dtype != torch.int64:
        got = subset.dtype if isinstance(subset, Tensor) else type(subset).__name__
        raise TypeError(
            f"subset must be a tensor of int64 indices, got {got}: give torch.tensor([...]), or "
            "the indices of a mask, mask.nonzero()[:, 0]"
        )
    if subset.ndim != 1 or len(subset) < 1:
        raise ValueError(
            "subset must have shape (m,) with at least one sample, got "
            f"{tuple(subset.shape)}: give the indices of the samples"
        )
    least, most = (int(value) for value in subset.aminmax())
    if least < 0 or most >= n:
        raise ValueError(
            f"subset must be of indices in 0 .. {n - 1}, got {least} .. {most}: give those of the "
            "data set that is sampled"
        )
    return subset.cpu()


def check_batch_size(batch_size: int) -> int:
    """Return a batch size; TypeError or ValueError where it cannot be one."""
    size = check_int("batch_size", batch_size, 1)
    if size > _LARGEST_BATCH:
        raise ValueError(f"batch_size must be at most {_LARGEST_BATCH}, got {size}")
    return size
