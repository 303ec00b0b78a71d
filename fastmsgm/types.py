"""Array: float64 numbers on the host, as schedules, tables and grids are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
