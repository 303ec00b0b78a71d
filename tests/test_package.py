"""The package: light to import, usable without Triton and numba, layered without circles."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import fastmsgm

PACKAGE = Path(fastmsgm.__file__).parent


def run(code: str) -> str:
    """Return what a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


# ---- import ----


def test_import_pulls_in_no_kernels() -> None:
    heavy = ("triton", "numba", "torchvision", "matplotlib", "scipy", "torch._dynamo")
    code = f"""
import torch, sys
def loaded():
    return {{name for name in {(*heavy, "torch._inductor")} if name in sys.modules}}
before = loaded()
import fastmsgm.optim
print(sorted(loaded() - before))
"""
    assert run(code) == "[]"


def test_works_without_triton_and_numba() -> None:
    code = """
import sys
sys.modules.update(triton=None, numba=None)
import torch, fastmsgm
from fastmsgm import nets, ops
data = torch.rand(32, 3) + 1
model = fastmsgm.GBMModel.for_data(nets.MLP(3, 16), fastmsgm.GBM(sigma=5.0), data)
fastmsgm.fit(model, data, steps=2, batch_size=8, progress=False)
samples = fastmsgm.sample(model, 5, steps=3, progress=False)
print(ops.backend("cpu"), ops.backend("cuda"), tuple(samples.shape))
"""
    assert run(code) == "reference reference (5, 3)"


def test_module_runs_the_command_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fastmsgm", "info"], capture_output=True, text=True, check=True
    )
    assert "backend" in result.stdout


def test_every_public_name_exists() -> None:
    for name in fastmsgm.__all__:
        assert hasattr(fastmsgm, name), name


# ---- layers ----


@functools.cache
def modules() -> dict[str, Path]:
    """Return the package's modules by name, those of kernels/ and train/ too."""
    found: dict[str, Path] = {}
    root = Path(__file__).parents[1]
    folders = {"fastmsgm.kernels": root / "kernels", "fastmsgm.recipes": root / "train"}
    for name, folder in {"fastmsgm": PACKAGE, **folders}.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((name, *parts))] = path
    return found


def imports(name: str) -> set[str]:
    """Return the modules of the package that a module imports, also for type checkers alone.

    ``from package import module`` is an import of the module, not of the package.
    """
    path, found = modules()[name], set[str]()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                ancestors = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join((*ancestors, *([node.module] if node.module else [])))
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in modules() else base)
    return {module for module in found if module in modules()} - {name}


@functools.cache
def graph() -> dict[str, set[str]]:
    return {name: imports(name) for name in modules()}


def test_the_graph_of_imports_is_complete() -> None:
    """What the next tests rest on: some imports of every form are found."""
    found = graph()
    assert len(found) > 60
    assert "fastmsgm.rng" in found["fastmsgm.job"]  # from fastmsgm import ops, rng
    assert "fastmsgm.gbm.loss" in found["fastmsgm.gbm"]  # from .loss import ...
    assert "fastmsgm.constants" in found["fastmsgm.rotation.angle_table"]
    assert "fastmsgm" in found["fastmsgm.tools.cli"]  # import fastmsgm


def test_no_import_is_circular() -> None:
    """The order raises CycleError, which names the modules."""
    order = list(graphlib.TopologicalSorter(graph()).static_order())
    assert set(order) == set(modules())


def chain(start: str, end: str) -> list[str]:
    """Return the longest chain of imports from a module to another."""

    @functools.cache
    def longest(name: str) -> tuple[str, ...]:
        if name == end:
            return (name,)
        tails = [tail for module in graph()[name] if (tail := longest(module))]
        return (name, *max(tails, key=len)) if tails else ()

    return list(longest(start))


def test_the_longest_chain_of_imports_is_short() -> None:
    found = chain("fastmsgm.tools.cli", "fastmsgm.rng")
    assert found[0] == "fastmsgm.tools.cli"
    assert found[-1] == "fastmsgm.rng"
    assert len(found) < 19, found


def test_isinstance_of_models_plans_and_solvers_checks_arguments_alone() -> None:
    """Families differ by what their models provide; no code branches on their types."""
    pattern = re.compile(r"isinstance\(.*(?<!Averaged)(Model|Plan|Solver)\)")
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert len(found) <= 8, "\n".join(found)
    # Each is the check of an argument: a TypeError follows, or what was asked is returned.
    for entry in found:
        name, number, _ = entry.split(":", 2)
        after = (PACKAGE / name).read_text().splitlines()[int(number) : int(number) + 4]
        assert "unwrap(x)" in entry or any(
            "TypeError" in line or "return solver" in line for line in after
        ), entry
