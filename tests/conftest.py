"""Set up Triton's interpreter, in which its kernels run on CPU tensors.

The switch must be set before triton is first imported. torch 2.11's compiler warns of itself when
this part of it is imported, which must not count as a warning of fastmsgm.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest

os.environ["TRITON_INTERPRET"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch
    import torch.utils.mkldnn


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run on one thread, and restore the number that a test may set."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
