"""Daily returns of 20 stocks of the S&P 500 from 1990 to 2022: real heavy tails.

The prices are a file of the package ``skfolio`` (BSD licence), which is read without importing the
package. Nothing is downloaded.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
from pathlib import Path

import numpy as np
from torch import Tensor

from fastmsgm.data.philox import as_tensor
from fastmsgm.data.reading import reading

STOCKS = (
    "AAPL", "AMD", "BAC", "BBY", "CVX", "GE", "HD", "JNJ", "JPM", "KO",
    "LLY", "MRK", "MSFT", "PEP", "PFE", "PG", "RRC", "UNH", "WMT", "XOM",
)  # fmt: skip
TEST_FROM = "2016-01-01"
_SPLITS = ("train", "test")
_FILE = Path("datasets", "data", "sp500_dataset.csv.gz")


def stock_returns(split: str = "train") -> Tensor:
    """Daily logarithmic returns of the 20 stocks in ``STOCKS``, in per cent, in order of time.

    Row i is 100 log(p_i / p_{i-1}) of the adjusted closing prices of two successive trading days.
    The split is in time: returns up to 2015 are for training, those from 2016 on for the test. The
    training part has the crashes of 2000 and 2008, the test that of March 2020. Standard deviations
    are 1.2 to 4.1 %. The kurtosis of a stock is 6 to 111. The file has prices to 0.001, and
    adjusted prices of the early 1990s are below 1 for some stocks. Their returns are then coarse,
    and many are 0.

    Args:
        split: "train" (6,552 days, 1990-01-03 to 2015-12-31) or "test" (1,760 days, 2016-01-04 to
            2022-12-28).

    Returns:
        (n, 20) float32, columns in the order of ``STOCKS``.

    Raises:
        ImportError: skfolio is absent.
        ValueError: Another split, or a damaged file.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    path = _prices()
    with reading(path, "file of prices", "install skfolio again"):
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if tuple(header[1:]) != STOCKS:
            raise ValueError("its columns are not the 20 stocks")
        # Dates are written as 2015-12-31, so their order is that of the text.
        dates = np.array([row[0] for row in rows])
        prices = np.array([row[1:] for row in rows], dtype=np.float64)
        if not (np.isfinite(prices) & (prices > 0)).all():
            raise ValueError("its prices are not all positive")
    returns = 100 * np.diff(np.log(prices), axis=0)
    test = dates[1:] >= TEST_FROM
    return as_tensor(returns[test if split == "test" else ~test])


def _prices() -> Path:
    """Return the file of prices in the installed skfolio."""
    spec = importlib.util.find_spec("skfolio")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            'stock_returns: skfolio is not installed: pip install "fastmsgm[experiments]"'
        )
    path = Path(spec.submodule_search_locations[0]) / _FILE
    if not path.is_file():
        raise ImportError(
            f"stock_returns: the installed skfolio has no {_FILE.as_posix()}: install skfolio 1.12"
        )
    return path
