"""Data sets: images, arrays from files, folders of images, synthetic sets, and their batches.

from fastmsgm import data
images = data.fashion_mnist()
faces = data.image_folder("faces", size=64)
returns = data.load("returns.npy")
vectors = data.synthetic.correlated_cauchy(10_000, d=4)
"""

from . import synthetic
from .batches import Batches
from .blocks import one_pass
from .files import NAMES, load
from .folders import image_folder
from .images import cifar10, fashion_mnist, kmnist, mnist
from .order import DataOrder, OversampledOrder

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
    "synthetic",
]
