"""Habits from other libraries: their names of arguments, generators, guidance without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastmsgm.checks import is_number
from fastmsgm.condition import Conditions
from fastmsgm.model import ScoreModel

# What other libraries call an argument, and its name here.
HINTS = {
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "nfe": "steps",
    "sampler": "solver",
    "scheduler": "solver",
    "num_samples": "n",
    "n_samples": "n",
    "guidance_scale": "guidance",
    "cfg_scale": "guidance",
    "labels": "label",
    "class_labels": "label",
    "seeds": "seed",
    "generators": "generator",
}


def drawn_seed(generator: object, seed: int) -> int:
    """Draw a seed of 63 bits from torch's generator, which advances."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be one torch.Generator, got {type(generator).__name__}: samples of "
            "one seed are independent, so one generator serves all of them"
        )
    if seed:
        raise ValueError(f"seed and generator must not be given together, got seed={seed}")
    drawn = torch.randint(
        2**63 - 1, (), generator=generator, device=generator.device, dtype=torch.int64
    )
    return int(drawn)


def check_guidance(model: ScoreModel, guidance: float, conditions: Conditions) -> float:
    """Return the weight of guidance as a float; ValueError where the model cannot take it."""
    if not is_number(guidance):
        raise ValueError(f"guidance must be a finite number, got {guidance!r}")
    if guidance == 1:
        return 1.0
    if not model.classes and not conditions.given:
        raise ValueError(
            f"guidance needs a condition or a class-conditional model, got guidance={guidance}: "
            "give condition=..., or leave guidance out"
        )
    if not model.drop:
        raise ValueError(
            f"guidance needs a model that was trained with dropped conditions, got "
            f"guidance={guidance} and model.drop=0: train with fit(..., drop=0.1); a function "
            "combines its two outputs itself"
        )
    return float(guidance)


def refuse_unknown(unknown: Mapping[str, Any]) -> None:
    """Raise TypeError for arguments that ``sample`` does not have, with its own name for them."""
    for name in unknown:
        hint = f": it is called {HINTS[name]}" if name in HINTS else ""
        raise TypeError(f"sample has no argument {name!r}{hint}")
