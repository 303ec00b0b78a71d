"""Importing the package is light, and it works where Triton or numba is missing."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_pulls_in_no_kernels() -> None:
    heavy = "('triton', 'numba', 'torchvision', 'matplotlib', 'scipy', 'torch._dynamo', 'torch._inductor')"
    before = f"import torch, sys; before = {{m for m in {heavy} if m in sys.modules}}; import fastmsgm.optim; "
    assert run(f"{before} print(sorted({{m for m in {heavy} if m in sys.modules}} - before))") == "[]"


def test_works_without_triton_and_numba() -> None:
    code = """
import sys
sys.modules.update(triton=None, numba=None)
import torch, fastmsgm
from fastmsgm import nets, ops
data = torch.rand(32, 3) + 1
model = fastmsgm.GBMModel.for_data(nets.MLP(3, 16), fastmsgm.GBM(sigma=5.0), data)
fastmsgm.fit(model, data, steps=2, batch_size=8, progress=False)
print(ops.backend("cpu"), ops.backend("cuda"), tuple(fastmsgm.sample(model, 5, steps=3, progress=False).shape))
"""
    assert run(code) == "reference reference (5, 3)"


def test_module_runs_the_command_line() -> None:
    result = subprocess.run([sys.executable, "-m", "fastmsgm", "info"], capture_output=True, text=True, check=True)
    assert "backend" in result.stdout
