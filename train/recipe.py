"""Recipe: one experiment as a script, ``python -m fastmsgm.recipes.NAME``.

A recipe has a training set, held-out data, and a model for each name of ``--model``: the method of
the paper and its baselines, with networks of one size, the same batches, steps and averaging. A
stopped run resumes when it is started again; torchrun shares its batches among processes.

    --out FOLDER     checkpoints, default runs/NAME, or runs/NAME-smoke with --smoke
    --model NAME     only this one; default all
    --variant NAME   of a recipe of several data sets, only this one; default all
    --smoke          seconds instead of hours: few samples and steps, to see that it runs
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm import EDM, VP, EDMModel, VPModel
from fastmsgm.evaluation import metrics
from fastmsgm.processes import joined

SMOKE_SAMPLES, SMOKE_STEPS, SMOKE_BATCH = 64, 2, 8
SMOKE_SAMPLING = 5  # steps, as few as keep an untrained network finite
# Of the training set, and of its labels where the recipe has labels.
Build = Callable[..., fastmsgm.ScoreModel]


@dataclass(frozen=True)
class Recipe:
    """An experiment.

    Args:
        name: Of the module.
        data: Returns n training vectors or images, or all that there are if n is None.
        held_out: Returns n samples that no training sees.
        models: Functions of the training set that return an untrained model, by name.
        steps: Optimizer steps.
        batch_size: Samples of a batch.
        fit: Other arguments of ``fastmsgm.fit``.
        samples: Number of samples that are drawn and compared with held-out data.
        labels: Returns the classes of ``data``. Models are then functions of both, and those that
            are class-conditional are trained with them.
        fit_of: Arguments of ``fastmsgm.fit`` of single models, by name.
        sample_of: Arguments of ``fastmsgm.sample`` of single models, by name.
        measured: Function of samples whose distance is taken; None is the samples themselves.
        smoke_models: What a smoke run trains instead of ``models``, with smaller networks.
    """

    name: str
    data: Callable[[int | None], Tensor]
    held_out: Callable[[int], Tensor]
    models: Mapping[str, Build]
    steps: int
    batch_size: int = 256
    fit: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 10_000
    labels: Callable[[int | None], Tensor] | None = None
    fit_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sample_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measured: Callable[[Tensor], Tensor] | None = None
    smoke_models: Mapping[str, Build] | None = None

    def train(
        self, model: str, folder: str | Path, *, seed: int = 0, smoke: bool = False, **options: Any
    ) -> fastmsgm.ScoreModel:
        """Train a model, or resume its training, or load it where it is finished.

        Args:
            model: A key of ``models``.
            folder: Of the checkpoint.
            seed: Of weights, batches and noise.
            smoke: Whether to train for two steps on few samples.
            options: Arguments of ``fit`` instead of the recipe's.
        """
        n = SMOKE_SAMPLES if smoke else None
        training = (self.data(n), *(() if self.labels is None else (self.labels(n),)))
        torch.manual_seed(seed)
        models = self.smoke_models if smoke and self.smoke_models else self.models
        untrained = models[model](*training)
        steps, batch = (SMOKE_STEPS, SMOKE_BATCH) if smoke else (self.steps, self.batch_size)
        given = {"steps": steps, "batch_size": batch, **self.fit, **self.fit_of.get(model, {})}
        x, *labels = training if untrained.classes else training[:1]
        return fastmsgm.fit(untrained, x, *labels, out=folder, seed=seed, **{**given, **options})

    def compare(
        self, model: fastmsgm.ScoreModel, n: int, *, smoke: bool = False, **options: Any
    ) -> str:
        """Return a line with the sliced Wasserstein distance of n samples and its floor.

        Args:
            model: To be sampled.
            n: Number of samples.
            smoke: Whether to compare with the data of a smoke run instead of held-out ones.
            options: Other arguments of ``fastmsgm.sample``.
        """
        of = self.data if smoke else self.held_out
        sets = (*of(2 * n).split(n), fastmsgm.sample(model, n, **options))
        truth, other, x = map(self.measured, sets) if self.measured else sets
        found, floor = (metrics.sliced_wasserstein(y, truth, 128) for y in (x, other))
        return f"sliced Wasserstein distance {found:.4g}, floor {floor:.4g}, {n} samples"


def main(
    recipe: Recipe | Mapping[str, Recipe],
    description: str | None,
    arguments: list[str] | None = None,
) -> None:
    """Run the command line of a recipe.

    Args:
        recipe: The experiment, or by name its variants, which have the same name and models.
        description: The module's docstring.
        arguments: None takes those of the process.
    """
    variants = {"": recipe} if isinstance(recipe, Recipe) else recipe
    first = next(iter(variants.values()))
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help=f"folder of the checkpoints, default runs/{first.name}")
    parser.add_argument("--model", choices=tuple(first.models), help="only this one; default all")
    if variants is recipe:
        parser.add_argument("--variant", choices=tuple(variants), help="only this one; default all")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of each model")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    args = parser.parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    out = args.out or f"runs/{first.name}{'-smoke' if args.smoke else ''}"
    chosen = vars(args).get("variant")
    for variant in variants if chosen is None else (chosen,):
        for name in first.models if args.model is None else (args.model,):
            _run(variants[variant], name, Path(out) / variant / name, args)


def _run(recipe: Recipe, name: str, folder: Path, args: argparse.Namespace) -> None:
    """Train a model, or load it where it is finished, and print how its samples compare."""
    given = {} if args.steps is None else {"steps": args.steps}
    model = recipe.train(name, folder, seed=args.seed, smoke=args.smoke, **given)
    n, options = recipe.samples, recipe.sample_of.get(name, {})
    if args.smoke:
        n, options = SMOKE_SAMPLES // 2, {**options, "steps": SMOKE_SAMPLING}
    with joined(torch.device("cpu")) as processes:
        compared = processes.lead(lambda: recipe.compare(model, n, smoke=args.smoke, **options))
        if processes.rank == 0:
            print(f"{folder}: {compared}", flush=True)


def baselines(net: Callable[[], nn.Module], heavy: bool = False) -> dict[str, Build]:
    """Return the baselines of additive noise, which all have one network.

        vp     variance-preserving noise, sliced score matching: the papers' baseline
        edm    denoising score matching in EDM's form
        t-edm  the same with Student-t noise of 3 degrees of freedom

    Args:
        net: Returns the network.
        heavy: Whether the data are heavy-tailed: EDM's are then divided by their medians, noised
            further, and "edm-asinh" is there, which compresses them.
    """
    levels = (0.01, 1e5) if heavy else (0.002, 80.0)
    transform = "median" if heavy else "standard"

    def edm(freedom: int | None) -> Build:
        process = EDM(*levels, freedom=freedom)
        return lambda x: EDMModel.for_data(net(), process, x, transform=transform)

    built: dict[str, Build] = {
        "vp": lambda x: VPModel.for_data(net(), VP(), x),
        "edm": edm(None),
        "t-edm": edm(3),
    }
    if heavy:
        built["edm-asinh"] = lambda x: EDMModel.for_data(net(), EDM(), x, transform="asinh")
    return built


def save_array(path: Path, x: np.ndarray[Any, Any]) -> None:
    """Write a .npy file under any name."""
    with path.open("wb") as file:
        np.save(file, x)
