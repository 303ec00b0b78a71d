"""Features of samples: of EfficientNet-Lite0, torch-fidelity's Inception, or any function."""

from fastmsgm.evaluation.extractors.extractor import Extractor, features
from fastmsgm.evaluation.extractors.resolve import NAMES, resolve

__all__ = ["NAMES", "Extractor", "features", "resolve"]
