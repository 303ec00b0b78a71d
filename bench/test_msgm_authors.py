"""The MSGM authors' formulas in ``msgm_authors``."""

from __future__ import annotations

import pytest
import torch

from bench.harness import msgm_authors


def test_products_keep_norms_and_agree() -> None:
    x, w = torch.randn(5, 6), torch.randn(5, 6)
    eye = torch.eye(6)
    ring = msgm_authors.sparse_product(6)
    tensor = torch.stack([torch.stack([ring(e[None], k[None])[0] for e in eye], 1) for k in eye], 2)
    torch.testing.assert_close(msgm_authors.dense_product(tensor)(x, w), ring(x, w))
    assert (ring(x, w) * x).sum(1).abs().max() < 1e-5
    assert tensor.square().sum() == pytest.approx(6)
