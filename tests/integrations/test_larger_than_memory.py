"""A data set larger than the memory of the process is read batch by batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
import torch
from torch.utils.data import DataLoader, Dataset
import fastmsgm
from fastmsgm.nets import MLP

N, D = 20_000, 16_384  # 1.3 GB in float32

class Large(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return 1 + torch.rand(D, generator=torch.Generator().manual_seed(i))

fastmsgm.sample("cauchy-rotation", 2, steps=2, progress=False)  # loads what is loaded once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + 500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    torch.empty(N, D)
except RuntimeError:
    print("does not fit")
loader = DataLoader(Large(), batch_size=64)
net = MLP(D, 8, 1, condition={"log_norm": 1})
model = fastmsgm.RotationModel.for_data(net, fastmsgm.Rotation(), loader)
fastmsgm.fit(model, loader, steps=3, progress=False)
print(tuple(fastmsgm.sample(model, 4, steps=2, progress=False).shape))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
def test_a_loader_larger_than_the_memory_limit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout.splitlines() == ["does not fit", "(4, 16384)"], done.stderr[-2000:]
