"""Journal: which chunks of a run are on the disk, and what the run is; also the manifest.

A journal is JSON with a checksum of its own, and is replaced in one step. The manifest of finished
samples has the same form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmsgm.files import write_atomically
from fastmsgm.tensors import DamagedFileError

# What may differ between two sittings of a run: samples then differ by rounding.
ENVIRONMENT = ("threads", "torch", "backend", "device", "fastmsgm")


@dataclass
class Journal:
    """What is known of samples on the disk.

    Args:
        settings: What makes the samples what they are, and the environment they were made in.
        chunks: SHA-256 of every finished chunk's bytes, by its number.
        frame: SHA-256 of what is around the samples in a finished file.
    """

    settings: dict[str, Any]
    chunks: dict[int, str] = field(default_factory=dict)
    frame: str = ""

    def write(self, path: Path) -> None:
        """Replace the file of the journal.

        Raises:
            OSError: It cannot be written.
        """
        content = self._content()
        sealed = {**content, "sha256": _checksum(content)}
        write_atomically(path, lambda p: p.write_text(json.dumps(sealed, indent=1) + "\n", "utf-8"))

    def _content(self) -> dict[str, Any]:
        chunks = {str(chunk): self.chunks[chunk] for chunk in sorted(self.chunks)}
        return {**self.settings, "frame": self.frame, "chunks": chunks}

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read a journal or a manifest.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be read.
            DamagedFileError: It is not what was written.
        """
        raw = path.read_bytes()
        try:
            content = json.loads(raw)
            stated = content.pop("sha256")
            good = stated == _checksum(content)
            chunks = {int(chunk): str(found) for chunk, found in content.pop("chunks").items()}
            frame = content.pop("frame")
        # Whatever damaged text makes the parser raise.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(path, repr(error)) from error
        if not good:
            raise _damaged(path, "its checksum is wrong")
        return cls(content, chunks, frame)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, str]:
    """Return what differs between the settings of two runs, and between their environments.

    Returns:
        Two texts such as "seed (there 1, here 2)", empty where nothing differs.
    """
    here = json.loads(json.dumps(here))
    names = [name for name in (*here, *there) if there.get(name) != here.get(name)]
    texts = {
        name: f"{name} (there {there.get(name, 'nothing')}, here {here.get(name, 'nothing')})"
        for name in names
    }
    settings = [text for name, text in texts.items() if name not in ENVIRONMENT]
    environment = [text for name, text in texts.items() if name in ENVIRONMENT]
    return ", ".join(settings), ", ".join(environment)


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{str(path)!r} is damaged or not a manifest of fastmsgm ({why})")
