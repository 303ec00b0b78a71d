"""The exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class EMA(AveragedModel):
    """A copy of a network that follows its weights: average <- decay average + (1 - decay) weight.

    Floating-point buffers, such as the statistics of batch normalisation, are averaged too where
    both numbers are finite. All else is copied: frozen parameters, indices, counters, the -inf of a
    mask, extra state.

    Args:
        net: The network.
        decay: In [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__(net, multi_avg_fn=get_ema_multi_avg_fn(decay))
        # On the CPU, whatever the default device is.
        self.n_averaged = torch.tensor(0, dtype=torch.int64, device="cpu")
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        buffers = list(self.module.buffers())
        before = [b.clone() for b in buffers] if int(self.n_averaged) else []
        super().update_parameters(model)  # copies buffers
        for buffer, old in zip(buffers, before, strict=False):
            if buffer.is_floating_point():
                buffer.copy_(_average(old, buffer, self._decay))
        for average, weight in zip(self.module.parameters(), model.parameters(), strict=True):
            if not weight.requires_grad:
                average.copy_(weight)
        for average, module in zip(self.module.modules(), model.modules(), strict=True):
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                average.set_extra_state(module.get_extra_state())


def _average(old: Tensor, new: Tensor, decay: float) -> Tensor:
    finite = old.isfinite() & new.isfinite()
    return torch.where(finite, torch.lerp(new, old, decay), new)
