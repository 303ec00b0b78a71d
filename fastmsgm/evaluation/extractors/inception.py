"""Inception-v3 of torch-fidelity, the extractor of FID (Heusel et al., 2017).

Its weights are those that the first implementation used, converted for PyTorch. They are read from
a file, or downloaded once into ``fastmsgm.files.cache_folder()``.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from fastmsgm.evaluation.extractors.extractor import Extractor
from fastmsgm.files import cache_folder

NAME = "inception"
OTHER = f"{NAME}, other weights"
_SHA256 = "6726825d"  # the first digits of torch-fidelity's file of weights
LAYER = "2048"


def is_own(found: Extractor | None) -> bool:
    """Whether an extractor is Inception with the weights of torch-fidelity, as FID and KID need."""
    return found is not None and found.name == NAME and found.sha256.startswith(_SHA256)


def extractor(weights: str | None = None) -> Extractor:
    """Return the extractor, named ``OTHER`` where the weights are not torch-fidelity's own.

    Args:
        weights: Path of torch-fidelity's file of weights; None is that of the cache folder, which
            is downloaded where it is absent.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: torch-fidelity is missing.
        RuntimeError: The download failed.
        ValueError: The file is damaged, or holds other weights.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as module
    except ImportError as error:
        raise ImportError(
            f'the extractor {NAME} needs torch-fidelity: pip install "fastmsgm[eval]"'
        ) from error
    path = _downloaded(module.URL_INCEPTION_V3) if weights is None else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"extractor: there is no file {path}")
    # torch-fidelity unpickles what it is given, so it is given a copy that holds tensors alone.
    tensors = io.BytesIO()
    try:
        torch.save(torch.load(path, map_location="cpu", weights_only=True), tensors)
        tensors.seek(0)
        net = module.FeatureExtractorInceptionV3(NAME, [LAYER], tensors)
    except Exception as error:  # what damaged files make torch.load raise
        raise ValueError(
            f"{path}: not the weights of torch-fidelity's Inception: download them from "
            f"{module.URL_INCEPTION_V3}"
        ) from error
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Extractor(
        NAME if sha256.startswith(_SHA256) else OTHER,
        _Inception(net),
        sha256=sha256,
        input="rounded to 8 bits, resized to 299 x 299 (bilinear, as TensorFlow 1)",
    )


class _Inception(nn.Module):
    """Features of images in [0, 1], of which torch-fidelity's network takes 8 bits a channel."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        rounded = (images * 255).round().clamp(0, 255).to(torch.uint8)
        (features,) = self.net(rounded.expand(-1, 3, -1, -1))
        return features


def _downloaded(url: str) -> Path:
    """Return the file of weights in the cache folder, downloaded if it is absent."""
    path = cache_folder() / url.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The name ends in the first digits of the file's SHA-256.
        digits = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits, progress=False)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"extractor {NAME}: its weights are not in {path.parent} and could not be downloaded "
            f"({error}): download {url} elsewhere, and give the path of the file as the extractor "
            "or put the file into that folder"
        ) from error
    return path
