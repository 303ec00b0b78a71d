"""evaluate: figures against the metrics called by hand, the report, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm.data import synthetic
from fastmsgm.evaluation import METRICS, Figure, Report, evaluate
from fastmsgm.evaluation.extractors import Extractor
from fastmsgm.evaluation.metrics import conditional_directions, msgm_mmd, sliced_wasserstein
from tests.evaluation.extractor_fixture import small
from tests.sde.exact import COVARIANCE, MEAN, exact_model, gaussian_data


def vectors(n: int, seed: int, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def of_authors(x: Tensor, y: Tensor) -> float:
    """The formula of the MSGM authors' code, all pairs at once."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a[:, None] - b[None]).square().mean(2) / a.shape[1])

    return float((kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()).sqrt())


def test_mmd_is_that_of_the_authors() -> None:
    a, b = vectors(70, 0).double() + 0.3, vectors(90, 1).double()
    expected = of_authors(a, b)
    assert msgm_mmd(a, b) == pytest.approx(expected, rel=1e-9)
    report = evaluate(a, b, metrics=["mmd"], progress=False)
    assert report["MMD, MSGM authors'"].value == pytest.approx(expected, rel=1e-9)
    assert msgm_mmd(a, a) == 0.0


def test_default_metrics_are_those_of_the_data() -> None:
    of_vectors = evaluate(vectors(20, 0), vectors(30, 1), progress=False)
    assert {figure.metric for figure in of_vectors.figures} == {"mmd", "swd", "tails"}
    assert "extractor" not in of_vectors.settings
    of_images = evaluate(images(20, 0), images(30, 1), extractor=small, progress=False)
    assert {figure.metric for figure in of_images.figures} == {"frechet", "swd"}
    fields = vectors(20, 0, 64).reshape(20, 1, 8, 8), vectors(30, 1, 64).reshape(30, 1, 8, 8)
    of_fields = evaluate(*fields, metrics=["frechet"], progress=False)
    assert of_fields.settings["extractor"]["name"] == "raw"  # not in [0, 1]


def test_the_training_set_shows_what_to_expect() -> None:
    samples, reference, train = vectors(50, 0) + 1, vectors(60, 1), vectors(80, 2)
    report = evaluate(samples, reference, metrics=["swd", "nearest"], train=train, progress=False)
    figure = report["sliced Wasserstein"]
    assert figure.value == pytest.approx(sliced_wasserstein(samples, reference))
    whole = evaluate(samples, reference, metrics=["swd"], train=train[:50], progress=False)
    expected = sliced_wasserstein(train[:50], reference)
    assert whole["sliced Wasserstein"].expected == pytest.approx(expected)
    ratio = report["memorisation ratio, values"]
    median = [float(torch.cdist(x, train).min(1).values.median()) for x in (samples, reference)]
    assert ratio.value == pytest.approx(median[0] / median[1], rel=1e-5)
    short = evaluate(samples, reference, metrics=["swd"], train=train[:49], progress=False)
    assert short.figures[0].expected is None
    assert "train has fewer samples" in short.figures[0].note


def test_a_sorted_training_set_is_expected_to_be_like_the_reference() -> None:
    """Two classes, one after the other: the first 200 would be of one class alone."""
    reference, train = vectors(400, 1), vectors(400, 2)
    for x in (reference, train):
        x[200:] += 20
    report = evaluate(reference[100:300], reference, metrics=["swd"], train=train, progress=False)
    assert report.figures[0].expected is not None
    one_class = sliced_wasserstein(train[:200], reference)
    assert report.figures[0].expected < one_class / 4


def test_features_are_computed_once() -> None:
    """Of every sample, whatever the number of metrics."""
    seen: list[int] = []

    def counted(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return small(batch)

    evaluate(
        images(40, 0),
        images(50, 1),
        metrics=["kid", "prc", "frechet", "nearest"],
        extractor=Extractor("counted", counted, "", ""),
        train=images(70, 2),
        progress=False,
    )
    assert sum(seen) == 40 + 50 + 70


def test_bytes_are_images_in_the_unit_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
        for n in (30, 40)
    )
    names = ["frechet", "swd", "mmd", "tails"]
    first = evaluate(a, b, metrics=names, extractor=small, progress=False)
    second = evaluate(a.float() / 255, b / 255, metrics=names, extractor=small, progress=False)
    for one, other in zip(first.figures, second.figures, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-5)


def test_tails_of_cauchy_vectors() -> None:
    """The truth: tail index 1; twice the norms double the survival function far out."""
    x, reference = (synthetic.correlated_cauchy(20_000, seed=seed) for seed in (1, 2))
    report = evaluate(2 * x, reference, metrics=["tails"], progress=False)
    index = report["tail index of the norm"]
    assert index.error is not None
    assert index.expected is not None
    assert abs(index.value - 1) < 4 * index.error
    assert abs(index.expected - 1) < 4 * index.error
    far = report["survival beyond the 99 % quantile"]
    assert far.error is not None
    assert abs(far.value - 2) < 4 * 2 * far.error
    recall = conditional_directions(2 * x, reference).recall
    assert report["directions: recall"].value == recall


def test_few_samples_have_no_conditional_directions() -> None:
    names = [f.name for f in evaluate(vectors(50, 0), vectors(50, 1), progress=False).figures]
    assert not any("directions" in name or "99" in name for name in names)


def test_likelihood_needs_no_samples() -> None:
    """Of an exact model: the truth is the density of its Gaussian."""
    x = gaussian_data(40, seed=3)
    normal = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)
    report = evaluate(None, x, metrics=["likelihood"], model=exact_model(), progress=False)
    truth = normal.log_prob(x.double())
    assert report["log-likelihood"].value == pytest.approx(float(truth.mean()), rel=0.01)
    assert report["log-likelihood"].error == pytest.approx(float(truth.std()) / 40**0.5, rel=0.05)


# ---- the report ----


def test_the_report_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "report"
    report = evaluate(
        images(30, 0),
        images(30, 1),
        metrics=["frechet", "tails", "nearest"],
        extractor=small,
        train=images(40, 2),
        out=folder,
        progress=False,
        sources={"reference": {"source": "mnist", "split": "test"}},
    )
    kinds = ("tests-evaluation-extractor-fixture-small", "values")
    pictures = {"quantiles.png", "survival.png", *(f"neighbours-{kind}.png" for kind in kinds)}
    assert {p.name for p in folder.iterdir()} == {"report.json", "report.md", *pictures}
    content = json.loads((folder / "report.json").read_text())
    assert content["settings"]["samples"] == {"n": 30, "shape": [1, 8, 8], "dtype": "float32"}
    assert content["settings"]["reference"]["split"] == "test"
    assert len(content["settings"]["extractor"]["sha256"]) == 64
    assert [figure["value"] for figure in content["figures"]] == [f.value for f in report.figures]
    text = str(report)
    assert "reference: n 30, shape 1 x 8 x 8, dtype float32, source mnist, split test" in text
    for figure in report.figures:
        assert figure.name in text
        assert f"| {figure.name} | {figure.value:.5g} |" in (folder / "report.md").read_text()


def test_pictures_of_vectors(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    evaluate(vectors(30, 0), vectors(40, 1), metrics=["swd"], out=tmp_path, progress=False)
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "pairs.png",
        "quantiles.png",
        "survival.png",
    }


def test_strips_show_the_closest_samples_and_their_neighbours(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    samples, train = images(20, 0), images(30, 1)
    samples[7] = train[4]
    evaluate(
        samples,
        images(20, 2),
        metrics=["nearest"],
        extractor="raw",
        train=train,
        out=tmp_path,
        progress=False,
    )
    picture = pyplot.imread(tmp_path / "neighbours-values.png")
    assert picture.shape[:2] == (2 * (2 * 8 + 2), 2 * (12 * 8 + 11 * 2))
    for top in (0, 20):  # the closest one on the left, above its neighbour
        left = torch.from_numpy(picture[top : top + 16 : 2, :16:2, 0].copy())
        torch.testing.assert_close(left, train[4, 0], rtol=0, atol=0.005)


def test_infinite_figures_are_null_in_json() -> None:
    report = Report((Figure("tails", "tail index of the norm", math.inf),), {})
    assert json.loads(report.as_json())["figures"][0]["value"] is None
    with pytest.raises(KeyError, match=r"no figure 'FID': there are \['tail index"):
        report["FID"]


# ---- errors ----


@pytest.mark.parametrize("name", ["samples", "train"])
def test_all_sets_have_the_range_of_the_reference(name: str) -> None:
    sets: dict[str, Any] = {"samples": images(20, 0), "train": images(20, 2)}
    sets[name] = sets[name] * 2 - 1
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], as the reference, got -"):
        evaluate(reference=images(20, 1), metrics=["swd"], progress=False, **sets)


def test_bytes_are_not_compared_with_other_data_than_images() -> None:
    of_bytes = (images(20, 0) * 255).round().to(torch.uint8)
    with pytest.raises(TypeError, match=r"samples must be of the reference's kind, torch.float32"):
        evaluate(of_bytes, images(20, 1) * 2 - 1, metrics=["swd"], progress=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metrics": ["fld"]}, ValueError, f"among {', '.join(METRICS)}, got 'fld'"),
        ({"metrics": []}, ValueError, "got none"),
        ({"metrics": "fid"}, TypeError, "several names, got the text 'fid'"),
        ({"metrics": ["nearest"]}, ValueError, "nearest needs train=..."),
        ({"metrics": ["likelihood"]}, ValueError, "likelihood needs model=..."),
        ({"samples": None}, ValueError, "samples must be given, unless"),
        ({"samples": torch.zeros(9, 3)}, ValueError, r"with n >= 10, got \(9, 3\)"),
        ({"samples": torch.zeros(20, 4)}, ValueError, r"shape \(n, 3\), as the reference"),
        ({"samples": torch.zeros(20, 3).long()}, TypeError, "floating point, or uint8 images"),
        ({"samples": [[1.0]]}, TypeError, "samples must be a tensor, got list"),
        ({"reference": torch.full((20, 3), math.nan)}, ValueError, "reference must be finite"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"metrics": ["swd"], "extractor": "raw"}, ValueError, "extractor must be left out"),
        ({"label": 3}, ValueError, "label must be left out where metrics have no likelihood"),
        (
            {"metrics": ["frechet"], "extractor": Extractor("of images", small, "", "")},
            ValueError,
            "extractor of images takes images of 1 or 3 channels",
        ),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"samples": vectors(20, 0), "reference": vectors(20, 1), "progress": False}
    arguments |= change
    with pytest.raises(error, match=message):
        evaluate(arguments.pop("samples"), arguments.pop("reference"), **arguments)
