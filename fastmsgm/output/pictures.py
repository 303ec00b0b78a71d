"""Pictures: a folder of PNGs, one for each sample."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger("fastmsgm")


class Pictures:
    """Samples as PNGs, named by their index in the stream, as in ``000123.png``.

    The manifest ``samples.json`` is there when all of them are.

    Args:
        folder: Of the pictures; other files in it stay.
        n: Number of samples.
        shape: Of one sample, (1 or 3, height, width).
        start: Index of the first sample in the stream.

    Attributes:
        path: The folder.
        manifest: Path of the manifest of a finished folder.
        journals: What the paths of journals begin with.

    Raises:
        ImportError: Pillow is missing.
    """

    def __init__(self, folder: Path, n: int, shape: tuple[int, ...], start: int) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError('PNGs need Pillow: pip install "fastmsgm[images]"') from error
        self.path, self._shape, self._n, self._start = folder, shape, n, start
        self.manifest, self.journals = folder / "samples.json", folder / "samples.partial"
        self._image = Image

    @property
    def foreign(self) -> bool:
        """Whether pictures with the names of these samples are there."""
        return any(map(self._is_own, self.path.glob("*.png")))

    def create(self, more: int = 0) -> None:
        """Make the folder, or find it there; the size of pictures is not known before.

        Args:
            more: Not needed.

        Raises:
            OSError: It cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.glob("*.png.partial"):  # of a killed run
            path.unlink()
        others = sum(not self._is_own(path) for path in self.path.glob("*.png"))
        if others:
            _log.warning(
                "%s holds %d PNGs of other samples, which stay: samples.json does not cover them",
                self.path,
                others,
            )

    def write(self, rows: slice, samples: Tensor) -> str:
        """Write samples and return the SHA-256 of the bytes of their files, in order.

        Args:
            rows: Their positions.
            samples: (m, *shape) uint8.

        Raises:
            OSError: They cannot be written.
        """
        found = hashlib.sha256()
        pictures = samples.movedim(1, -1).cpu().numpy()
        if self._shape[0] == 1:
            pictures = pictures[..., 0]
        for picture, path in zip(pictures, self._paths(rows), strict=True):
            content = io.BytesIO()
            self._image.fromarray(picture).save(content, format="png")
            temporary = path.with_suffix(".png.partial")
            temporary.write_bytes(content.getbuffer())
            os.replace(temporary, path)
            found.update(content.getbuffer())
        return found.hexdigest()

    def checksum(self, rows: slice) -> str:
        """Return the SHA-256 of the bytes of files, in order; of a missing one, that of nothing.

        Raises:
            OSError: They cannot be read.
        """
        found = hashlib.sha256()
        for path in self._paths(rows):
            found.update(path.read_bytes() if path.exists() else b"")
        return found.hexdigest()

    def frame(self) -> str:
        """Return nothing where all pictures are there."""
        missing = sum(not path.exists() for path in self._paths(slice(0, self._n)))
        return f"{missing} missing" if missing else ""

    def sync(self) -> None:
        """Files are not waited for: their checksums show what a power cut took."""

    def complete(self) -> None:
        """All samples are there."""

    def discard(self) -> None:
        """Remove the pictures of a run without a finished chunk."""
        for path in self.path.glob("*.png*"):
            if self._is_own(path.with_suffix("") if path.suffix == ".partial" else path):
                path.unlink()

    def close(self) -> None:
        """Files are closed one by one."""

    def tensor(self, count: int) -> Tensor:
        """Return an empty tensor: the pictures are read one by one."""
        return torch.empty((0, *self._shape), dtype=torch.uint8, device="cpu")

    def _is_own(self, path: Path) -> bool:
        index = int(path.stem) if path.stem.isdecimal() else -1
        return self._start <= index < self._start + self._n

    def _paths(self, rows: slice) -> Iterator[Path]:
        for index in range(self._start + rows.start, self._start + rows.stop):
            yield self.path / f"{index:06d}.png"
