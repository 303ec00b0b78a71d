"""Dynamics in the ambient space R^d: schedules, Runge-Kutta solvers, sliced score matching, VP."""

from .beta_schedule import LinearBetaSchedule
from .path import PathScoreMatching
from .sliced import SlicedScoreMatching
from .vp import VP, VPModel

__all__ = ["VP", "LinearBetaSchedule", "PathScoreMatching", "SlicedScoreMatching", "VPModel"]
