"""Networks net(x, c_noise, **condition): a multilayer perceptron and a small U-Net.

Both take the noised data x, the number c_noise that tells the noise level of each sample, and by
name what else a sample is conditioned on, such as ``label``. They return a tensor of the shape of
x. The model decides what c_noise is and what the output means.
"""

from collections.abc import Callable

from torch import nn

from .mlp import MLP
from .unet import UNet

NETS: dict[str, Callable[..., nn.Module]] = {"MLP": MLP, "UNet": UNet}  # by name in checkpoints
__all__ = ["MLP", "NETS", "UNet"]
