"""Chunks: how the samples of a job are cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunks:
    """The chunks of samples ``start`` .. ``start + n - 1``, numbered from 0.

    Args:
        start: Index of the first sample.
        n: Number of samples.
        size: Samples of a chunk, wanted or not.
        first: First sample of chunk 0, at most start.
    """

    start: int
    n: int
    size: int
    first: int

    def __len__(self) -> int:
        return -(-(self.start + self.n - self.first) // self.size)

    def first_sample(self, chunk: int) -> int:
        """Return the index of a chunk's first sample."""
        return self.first + chunk * self.size

    def wanted(self, chunk: int) -> slice:
        """Return the samples of a chunk that belong to the job, counted from its first."""
        first = self.first_sample(chunk)
        return slice(max(self.start - first, 0), min(self.start + self.n - first, self.size))

    def rows(self, chunk: int) -> slice:
        """Return the same samples, counted from the first of the job."""
        wanted, offset = self.wanted(chunk), self.first_sample(chunk) - self.start
        return slice(wanted.start + offset, wanted.stop + offset)
