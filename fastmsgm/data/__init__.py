"""Data sets: images, files, folders, synthetic sets, turbulence, stocks, and their batches.

from fastmsgm import data
images = data.fashion_mnist()
faces = data.image_folder("faces", size=64)
signals = data.load("signals.npy")
returns = data.stock_returns()
vectors = data.synthetic.correlated_cauchy(10_000, d=4)
fields = data.turbulence(10_000, size=32)
"""

from . import synthetic
from .batches import Batches
from .blocks import one_pass
from .files import NAMES, load
from .folders import image_folder
from .images import cifar10, fashion_mnist, kmnist, mnist
from .order import DataOrder, OversampledOrder
from .stocks import stock_returns
from .turbulence import turbulence

__all__ = [
    "NAMES",
    "Batches",
    "DataOrder",
    "OversampledOrder",
    "cifar10",
    "fashion_mnist",
    "image_folder",
    "kmnist",
    "load",
    "mnist",
    "one_pass",
    "stock_returns",
    "synthetic",
    "turbulence",
]
