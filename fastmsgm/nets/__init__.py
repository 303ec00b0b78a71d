"""Networks net(x, c_noise, **condition): two multilayer perceptrons and a small U-Net.

All take the noised data x, the number c_noise that tells the noise level of each sample, and by
name what else a sample is conditioned on, such as ``label``. They return a tensor of the shape of
x. The model decides what c_noise is and what the output means.
"""

from collections.abc import Callable

from torch import nn

from .direction_mlp import DirectionMLP
from .mlp import MLP
from .unet import UNet

# By name in checkpoints.
NETS: dict[str, Callable[..., nn.Module]] = {"DirectionMLP": DirectionMLP, "MLP": MLP, "UNet": UNet}
__all__ = ["MLP", "NETS", "DirectionMLP", "UNet"]
