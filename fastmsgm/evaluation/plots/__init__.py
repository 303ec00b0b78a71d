"""Plots: image grids, film strips from noise to data, and heavy tails.

Needs the extra ``images``. Everything is drawn into files: matplotlib's backend and the user's open
figures stay as they are.
"""

from fastmsgm.evaluation.plots.canvas import figure
from fastmsgm.evaluation.plots.images import check, film_strip, grid
from fastmsgm.evaluation.plots.sample_grid import SampleGrid
from fastmsgm.evaluation.plots.tails import heavy_tails

__all__ = ["SampleGrid", "check", "figure", "film_strip", "grid", "heavy_tails"]
