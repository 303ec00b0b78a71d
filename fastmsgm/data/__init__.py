"""Data sets as float32 tensors: images, arrays from files, and synthetic sets.

from fastmsgm import data
images = data.fashion_mnist()
returns = data.load("returns.npy")
vectors = data.synthetic.correlated_cauchy(10_000, d=4)
"""

from . import synthetic
from .files import NAMES, load
from .images import cifar10, fashion_mnist, kmnist, mnist

__all__ = ["NAMES", "cifar10", "fashion_mnist", "kmnist", "load", "mnist", "synthetic"]
