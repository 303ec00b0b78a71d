"""How much of a large array the metrics hold at a time."""

from __future__ import annotations

_HELD = 2**22  # numbers: 32 MiB in float64


def rows_at_a_time(columns: int) -> int:
    """Return how many rows of this many numbers are held at a time, at least 1.

    Args:
        columns: Numbers in a row, >= 1.
    """
    return max(1, _HELD // columns)
