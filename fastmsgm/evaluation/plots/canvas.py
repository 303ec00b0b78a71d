"""Figures that draw into files: matplotlib's backend and the user's figures stay as they are."""

from __future__ import annotations

from typing import Any


def figure(**options: Any) -> Any:
    """Return a new figure that draws into files, apart from those that the user has open.

    Args:
        **options: As of ``matplotlib.figure.Figure``.

    Raises:
        ImportError: matplotlib is missing.
    """
    matplotlib = load_matplotlib()
    new = matplotlib.figure.Figure(**options)
    matplotlib.backends.backend_agg.FigureCanvasAgg(new)  # becomes the figure's canvas
    return new


def load_matplotlib() -> Any:
    """Return matplotlib with the modules that draw into files.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.image
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "fastmsgm[images]"') from error
    return matplotlib
