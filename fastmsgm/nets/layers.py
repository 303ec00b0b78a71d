"""PyTorch's layers in float32, the dtype of a model, whatever the default dtype is."""

from __future__ import annotations

import functools

import torch
from torch import nn

Conv2d = functools.partial(nn.Conv2d, dtype=torch.float32)
Embedding = functools.partial(nn.Embedding, dtype=torch.float32)
GroupNorm = functools.partial(nn.GroupNorm, dtype=torch.float32)
Linear = functools.partial(nn.Linear, dtype=torch.float32)
