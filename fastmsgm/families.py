"""THE table of process families: name in checkpoints -> model class.

``load``, the command line and error messages read it. A new family is one folder with a
``ScoreModel`` of its own, and one entry here; outside this package,
``FAMILIES["Name"] = TheModel`` does the same.
"""

from __future__ import annotations

from fastmsgm.edm.model import EDMModel
from fastmsgm.gbm.model import GBMModel
from fastmsgm.model import ScoreModel
from fastmsgm.rotation.model import RotationModel
from fastmsgm.sde.vp import VPModel

FAMILIES: dict[str, type[ScoreModel]] = {
    model.family: model for model in (GBMModel, RotationModel, VPModel, EDMModel)
}


def solver_names() -> list[str]:
    """Return the names of the solvers of all families, each once."""
    return list(dict.fromkeys(name for model in FAMILIES.values() for name in model.solvers))
