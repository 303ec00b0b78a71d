"""The exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class EMA(AveragedModel):
    """A copy of a network that follows its weights: average <- decay average + (1 - decay) weight.

    Floating-point buffers, such as the statistics of batch normalisation, are averaged too where
    both numbers are finite. All other numbers are copied: indices, counters, the -inf of a mask.

    Args:
        net: The network.
        decay: In [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__(net, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.n_averaged = torch.tensor(
            0, dtype=torch.int64, device="cpu"
        )  # not where the default is
        self._decay = decay

    def update_parameters(self, model: nn.Module) -> None:
        buffers = list(self.module.buffers())
        before = [b.clone() for b in buffers] if int(self.n_averaged) else []
        super().update_parameters(model)  # copies buffers
        for buffer, old in zip(buffers, before, strict=False):
            if buffer.is_floating_point():
                buffer.copy_(_average(old, buffer, self._decay))


def _average(old: Tensor, new: Tensor, decay: float) -> Tensor:
    finite = old.isfinite() & new.isfinite()
    return torch.where(finite, torch.lerp(new, old, decay), new)
