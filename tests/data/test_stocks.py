"""Returns of stocks: their days, units and tails, and files that are absent or damaged."""

from __future__ import annotations

import gzip
import importlib.machinery
import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import torch

from fastmsgm import data
from fastmsgm.data import stocks
from fastmsgm.data.stocks import STOCKS
from fastmsgm.evaluation.metrics import flatness


def test_returns_are_those_of_the_prices() -> None:
    """Compared with pandas, by which skfolio reads them."""
    prices = pd.read_csv(stocks._prices(), index_col=0)
    assert tuple(prices.columns) == STOCKS
    for split, first, last in (
        ("train", "1990-01-02", "2015-12-31"),
        ("test", "2015-12-31", "2022-12-28"),
    ):
        growth = data.stock_returns(split).double().sum(0)  # of logarithms, in per cent
        ratio = torch.tensor((prices.loc[last] / prices.loc[first]).to_numpy())
        torch.testing.assert_close(growth, 100 * ratio.log(), rtol=0, atol=0.01)
        days = ((prices.index > first) & (prices.index <= last)).sum()
        assert len(data.stock_returns(split)) == days


def test_returns_have_heavy_tails() -> None:
    train, test = data.stock_returns(), data.stock_returns("test")
    assert train.shape == (6552, 20)
    assert test.shape == (1760, 20)
    for x in (train, test):
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert min(flatness(column[:, None]) for column in x.T) > 6
        assert x.norm(dim=1).min() > 1  # no day without trade
    # 16 March 2020: the index lost 12 %.
    assert test.mean(1).min() == pytest.approx(-11.5, abs=2)


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split must be one of train, test, got 'all'"):
        data.stock_returns("all")


def test_without_skfolio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"skfolio is not installed: .*fastmsgm\[experiments\]"):
        data.stock_returns()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of the prices in an installed package of that name."""
    spec = importlib.machinery.ModuleSpec("skfolio", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    folder = tmp_path / "datasets" / "data"
    folder.mkdir(parents=True)
    return folder / "sp500_dataset.csv.gz"


def test_another_version_of_skfolio_is_named(file: Path) -> None:
    with pytest.raises(ImportError, match="installed skfolio has no datasets/data/sp500_dataset"):
        data.stock_returns()


HEADER = ",".join(("Date", *STOCKS))
DAYS = [f"2015-12-{day},{','.join(['1.5'] * 20)}" for day in (29, 30)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not enough values"),
        (f"{HEADER[:-1]}\n", "its columns are not the 20 stocks"),
        ("\n".join([HEADER, *DAYS, DAYS[0][:-10]]), "inhomogeneous"),
        ("\n".join([HEADER, *DAYS, DAYS[0].replace("1.5", "x")]), "could not convert"),
        ("\n".join([HEADER, *DAYS, DAYS[0].replace("1.5", "-1")]), "not all positive"),
        ("\n".join([HEADER, *DAYS, DAYS[0].replace("1.5", "nan")]), "not all positive"),
    ],
)
def test_a_damaged_file_is_refused(file: Path, text: str, message: str) -> None:
    file.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(ValueError, match=rf"gz: damaged file of prices \(.*{message}.*install"):
        data.stock_returns()


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(gzip.compress("\n".join([HEADER, *DAYS]).encode())[:-12])
    with pytest.raises(ValueError, match="damaged file of prices"):
        data.stock_returns()
