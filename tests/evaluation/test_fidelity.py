"""FID, KID, precision and recall: the figures of torch-fidelity, called by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastmsgm.evaluation import evaluate, fidelity
from fastmsgm.evaluation.extractors import features, inception, resolve
from tests.evaluation.extractor_fixture import small

torch_fidelity = pytest.importorskip("torch_fidelity")
from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY  # noqa: E402

SMALL = "tests.evaluation.extractor_fixture:small"
NAME = "fastmsgm-tests-small"


class _Small(FeatureExtractorBase):
    """The small extractor in torch-fidelity's form."""

    def __init__(self, name: str, features_list: list[str], **settings: Any) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("12",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "12"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: Tensor) -> tuple[Tensor]:
        return (small(input.float() / 255),)


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index].expand(3, -1, -1)


def images(n: int, seed: int, most: int = 256) -> Tensor:
    """Return n grey images of 8 x 8 in 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, most, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch_fidelity.calculate_metrics on a CPU, with the small extractor."""
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, NAME, _Small)

    def calculate(a: Tensor, b: Tensor, **settings: Any) -> dict[str, float]:
        common = {"feature_extractor": NAME, "cuda": False, "verbose": False, "cache": False}
        common |= {"save_cpu_ram": True}
        return torch_fidelity.calculate_metrics(
            input1=_Images(a), input2=_Images(b), **(common | settings)
        )

    return calculate


def test_the_figures_are_those_of_torch_fidelity(
    by_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = images(400, 0, most=250), images(300, 1)
    expected = by_hand(a, b, fid=True, kid=True, prc=True, kid_subset_size=100)
    monkeypatch.setattr(fidelity, "KID_SUBSET_SIZE", 100)
    report = evaluate(a, b, metrics=["fid", "kid", "prc"], extractor=SMALL, progress=False)
    found = {figure.name: figure for figure in report.figures}
    fid = found[f"Frechet distance, {SMALL}, 400 samples"]
    kid = found[f"kernel distance, {SMALL}"]
    assert fid.value == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    assert kid.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert kid.error == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)
    assert "100 subsets of 100; error is of one subset" in kid.note
    assert found[f"precision, {SMALL}"].value == pytest.approx(expected["precision"], abs=1e-6)
    assert found[f"recall, {SMALL}"].value == pytest.approx(expected["recall"], abs=1e-6)


def test_subsets_have_a_thousand_samples_at_most() -> None:
    few, many = torch.zeros(80, 2), torch.zeros(1500, 2)
    sizes = [fidelity.kid_subset_size(a, b) for a, b in ((many, many), (few, many), (many, few))]
    assert sizes == [1000, 80, 80]  # 1,000 is torch-fidelity's default


def test_subsets_that_are_a_whole_set_have_no_error(by_hand: Any) -> None:
    a, b = images(40, 0), images(40, 1)
    expected = by_hand(a, b, kid=True, kid_subset_size=40)
    (figure,) = evaluate(a, b, metrics=["kid"], extractor=SMALL, progress=False).figures
    assert figure.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert figure.error is None
    assert "no error" in figure.note


@pytest.mark.parametrize("f", [fidelity.fid, fidelity.kid, fidelity.precision_recall])
def test_features_that_are_not_finite_are_refused(f: Any) -> None:
    x, y = torch.rand(20, 3), torch.rand(20, 3)
    y[4, 1] = torch.nan
    with pytest.raises(ValueError, match="reference must have finite features"):
        f(x, y)


def test_frechet_in_float64_agrees_with_torch_fidelity() -> None:
    sets = [features(resolve(SMALL), images(400, k), progress=False) for k in (0, 1)]
    report = evaluate(
        images(400, 0), images(400, 1), metrics=["frechet"], extractor=SMALL, progress=False
    )
    assert report.figures[0].value == pytest.approx(fidelity.fid(*sets), rel=1e-4)


@pytest.mark.parametrize(
    ("extractor", "sha256", "n", "m", "name"),
    [
        ("inception", "6726825d0af5f729", 10_000, 10_000, "FID"),
        ("inception", "6726825d", 9_999, 10_000, "Frechet distance, inception, 9,999 samples"),
        ("inception", "6726825d", 10_000, 9_999, "Frechet distance, inception, 10,000 samples"),
        ("inception", "0000", 10_000, 10_000, "Frechet distance, inception, 10,000 samples"),
        ("other", "6726825d", 10_000, 10_000, "Frechet distance, other, 10,000 samples"),
    ],
)
def test_what_is_called_fid(extractor: str, sha256: str, n: int, m: int, name: str) -> None:
    """Only features of Inception with its own weights, and only 10,000 samples in both sets."""
    from fastmsgm.evaluation.extractors import Extractor

    x = torch.rand(n + m, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    used = Extractor(extractor, lambda batch: batch.flatten(1), sha256, "")
    report = evaluate(
        x[:n], x[n:], metrics=["fid"], extractor=used, batch_size=10_000, progress=False
    )
    assert [figure.name for figure in report.figures] == [name]


@pytest.mark.parametrize(
    ("sha256", "name"), [("6726825d", "KID"), ("00", "kernel distance, inception")]
)
def test_what_is_called_kid(sha256: str, name: str) -> None:
    from fastmsgm.evaluation.extractors import Extractor

    used = Extractor("inception", lambda batch: batch.flatten(1), sha256, "")
    x = images(20, 0)
    report = evaluate(x, images(20, 1), metrics=["kid"], extractor=used, progress=False)
    assert report.figures[0].name == name


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file like torch-fidelity's, with random weights."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        module = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
        patch.setattr(module, lambda url, progress: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        net = FeatureExtractorInceptionV3("random", ["2048"], verbose=False)
    torch.save(net.state_dict(), path)
    return str(path)


def test_inception_has_the_features_of_torch_fidelity(inception_weights: str) -> None:
    """Also from images in [0, 1], which are rounded to 8 bits."""
    pixels = images(3, 0)
    net = FeatureExtractorInceptionV3(
        "by hand", ["2048"], feature_extractor_weights_path=inception_weights
    )
    (expected,) = net(pixels.expand(-1, 3, -1, -1))
    found = features(resolve(inception_weights), pixels, progress=False)
    assert float(expected.std()) > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert resolve(inception_weights).name == "inception, other weights"
    of_floats = features(resolve(inception_weights), pixels.float() / 255, progress=False)
    torch.testing.assert_close(of_floats, expected, rtol=0, atol=0)
    beyond = torch.where(pixels == 255, 1.01, pixels.float() / 255)  # 8 bits would wrap to 2
    beyond = torch.where(pixels == 0, -0.01, beyond)
    clamped = features(resolve(inception_weights), beyond, progress=False)
    torch.testing.assert_close(clamped, expected, rtol=0, atol=0)


def test_a_download_that_fails_says_what_to_do(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("FASTMSGM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(RuntimeError, match=r"no network\): download https://.*give the path"):
        resolve("inception")


def test_the_download_is_kept(
    inception_weights: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        seen.append(hash_prefix)
        with open(inception_weights, "rb") as source, open(path, "wb") as target:
            target.write(source.read())

    monkeypatch.setenv("FASTMSGM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first, second = inception.extractor(), inception.extractor()
    assert seen == ["6726825d"]
    assert first.sha256 == second.sha256 == resolve(inception_weights).sha256


def test_weights_are_not_unpickled(tmp_path: Any) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (tmp_path / "harm").mkdir, ()

    torch.save({"x": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="not the weights of torch-fidelity's Inception"):
        resolve(str(tmp_path / "bad.pth"))
    assert not (tmp_path / "harm").exists()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        resolve(str(tmp_path / "absent.pth"))
