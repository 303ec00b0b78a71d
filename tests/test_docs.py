"""Documentation that runs: every snippet of README and docs, every example of a docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastmsgm
from fastmsgm import data, nets
from fastmsgm.data import synthetic
from fastmsgm.evaluation import metrics
from fastmsgm.solvers import resolve
from fastmsgm.tools import cli

ROOT = Path(__file__).parents[1]
FIXTURE = ROOT / "tests" / "data" / "fashion_fixture.safetensors"
PAGES = [page for page in sorted(ROOT.glob("docs/*.md")) if page.name != "integrations.md"]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]  # tests/integrations runs that
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What a snippet asks for is cut down to this.
LARGEST = {"n": 12, "steps": 3, "batch_size": 8, "iterations": 2}
SKIPPED = ("fastmsgm.__", "fastmsgm.kernels", "fastmsgm.recipes", "fastmsgm.models")
EXAMPLES = (  # the ten most used functions, at least, have an example
    fastmsgm.sample,
    fastmsgm.sample_iter,
    fastmsgm.fit,
    fastmsgm.fit_solver,
    fastmsgm.Loss,
    fastmsgm.load,
    fastmsgm.Loss,
    fastmsgm.GBM.perturb,
    fastmsgm.GBMModel.for_data,
    fastmsgm.Rotation.perturb,
    fastmsgm.RotationModel.for_data,
    fastmsgm.RadialPrior.fit,
    resolve,
    nets.MLP,
    nets.UNet,
    synthetic.correlated_cauchy,
    metrics.sliced_wasserstein,
)


def modules() -> Iterator[Any]:
    for module in pkgutil.walk_packages(fastmsgm.__path__, "fastmsgm."):
        if not module.name.startswith(SKIPPED):
            yield importlib.import_module(module.name)


# ---- snippets ----


def blocks(document: Path, language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(document.read_text()) if name == language]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, small data, and calls cut down to a few steps and samples."""
    images = load_file(FIXTURE)
    pixels, labels = images["images"].float() / 255, torch.arange(len(images["images"])) % 10

    def fashion_mnist(split: str = "train", labels_too: bool = False, **options: Any) -> Any:
        return (pixels, labels) if labels_too or options.get("labels") else pixels

    def cut(function: Any) -> Any:
        signature = inspect.signature(function)

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            for name, most in LARGEST.items():
                if name in bound.arguments:
                    value = bound.arguments[name]
                    bound.arguments[name] = most if value is None else min(value, most)
            if "progress" in bound.arguments:
                bound.arguments["progress"] = False
            return function(*bound.args, **bound.kwargs)

        return call

    monkeypatch.setattr(data, "fashion_mnist", fashion_mnist)
    monkeypatch.setattr("fastmsgm.data.files.BY_NAME", {"fashion-mnist": fashion_mnist})
    for name in ("sample", "sample_iter", "fit", "fit_solver"):
        monkeypatch.setattr(fastmsgm, name, cut(getattr(fastmsgm, name)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_snippets_run(document: Path, small: Path) -> None:
    """Python blocks in order, in one namespace; then the ``fastmsgm`` commands of bash blocks."""
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    for snippet in blocks(document, "python"):
        exec(compile(snippet, str(document), "exec"), namespace)
    for snippet in blocks(document, "bash"):
        for line in snippet.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["fastmsgm"]:
                assert cli.main(words[1:]) == 0, line


def test_every_code_block_has_a_known_language() -> None:
    """Python runs, and so do the fastmsgm commands of bash; everything else is plain text."""
    for document in DOCUMENTS:
        for language, body in BLOCK.findall(document.read_text()):
            assert language in ("python", "bash", "text", "bibtex"), (document.name, body)
            if language == "text":
                assert "import fastmsgm" not in body, document.name


def test_links_lead_to_files() -> None:
    for page in (*DOCUMENTS, *ROOT.glob("docs/**/*.md")):
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), (page.name, link)


# ---- docstrings ----


@pytest.mark.parametrize("function", EXAMPLES, ids=lambda f: f.__qualname__)
def test_examples_of_the_most_used_functions(function: Any) -> None:
    assert ">>> " in (inspect.getdoc(function) or "")


def test_examples_run() -> None:
    names = {"fastmsgm": fastmsgm, "torch": torch, "nets": nets, "synthetic": synthetic}
    attempted = 0
    for module in modules():
        torch.manual_seed(0)
        result = doctest.testmod(module, extraglobs=names)
        assert result.failed == 0, module.__name__
        attempted += result.attempted
    assert attempted >= 2 * len(EXAMPLES)


def test_every_public_name_is_documented() -> None:
    """A method without a docstring of its own overrides one that has one."""
    missing = []
    for module in modules():
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(thing) or inspect.isfunction(thing):
                documented = {name: thing}
                if inspect.isclass(thing):
                    members = vars(thing).items()
                    documented |= {
                        f"{name}.{member}": getattr(thing, member)
                        for member, value in members
                        if not member.startswith("_")
                        and isinstance(value, (property, classmethod, staticmethod, type(modules)))
                    }
                missing += [
                    f"{module.__name__}.{n}" for n, t in documented.items() if not inspect.getdoc(t)
                ]
    assert not missing
