"""What trains a rotation model, "dsm" or "ssm", and the settings that sliced score matching has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmsgm.rotation.process import Rotation
from fastmsgm.sde.beta_schedule import TIME_MIN

OBJECTIVES = ("dsm", "ssm")
FORWARD_STEPS = 64  # of ``Rotation.simulate`` in training, unless a model has its own


def sliced_config(time_min: float, forward_steps: int) -> dict[str, Any]:
    """Return the settings of sliced score matching that are not the defaults, by name.

    Defaults are left out, so that models from before there was a choice are the same models.
    """
    given = {"time_min": time_min, "forward_steps": forward_steps}
    default = {"time_min": TIME_MIN, "forward_steps": FORWARD_STEPS}
    return {name: value for name, value in given.items() if value != default[name]}


def chosen_objective(objective: str | None, process: Rotation, settings: Mapping[str, Any]) -> str:
    """Return the objective; ValueError where it does not fit the noise or the settings.

    Args:
        objective: What trains the model; None is "dsm" where the conditional score is known, for
            isotropic noise, else "ssm".
        process: The forward process.
        settings: Of sliced score matching, by name, those that are not the default.
    """
    if objective is None:
        objective = "dsm" if process.noise == "isotropic" else "ssm"
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    if objective == "ssm":
        return objective
    if process.noise != "isotropic":
        raise ValueError(
            'objective "dsm" needs isotropic noise, whose conditional score is known, got '
            f'{process}: use "ssm"'
        )
    for name, value in settings.items():
        raise ValueError(
            f'{name} is for sliced score matching, got {value!r} with objective "dsm": leave it '
            'out, or give objective="ssm"'
        )
    return objective
