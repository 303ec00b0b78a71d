"""``fill_normal``: the normals of the stream, whatever the batch."""

from __future__ import annotations

import math

import pytest
import torch

from fastmsgm import ops, rng
from tests.ops.backends import BACKENDS, TRITON, Backend, samples
from tests.ops.cases import START
from tests.ops.checks import opcheck, transposed


@pytest.mark.parametrize("d", [1, 3, 4, 63, 64, 130, 784, 1030])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_normals_are_those_of_the_stream(backend: Backend, d: int) -> None:
    n = samples(backend, "fill_normal", d) if backend is TRITON else 120_000 // d
    stream = rng.stream(2**63 + 1, START)
    out = torch.full((n, d), torch.nan)
    backend.kernel("fill_normal")(out, stream, rng.Purpose.PRIOR, 3)
    exact = rng.normals(n, d, stream, rng.Purpose.PRIOR, 3, torch.float64)
    assert (out - exact).abs().max() <= 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_does_not_depend_on_the_batch(backend: Backend) -> None:
    whole, part = torch.empty(5, 130), torch.empty(2, 130)
    for out, start in ((whole, 100), (part, 102)):
        backend.kernel("fill_normal")(out, rng.stream(7, start), rng.Purpose.PRIOR, 0)
    assert torch.equal(whole[2:4], part)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: Backend) -> None:
    backend.kernel("fill_normal")(torch.empty(0, 5), rng.stream(0), rng.Purpose.PRIOR, 0)


# ---- the op ----


def test_opcheck() -> None:
    opcheck(ops.fill_normal_, torch.zeros(3, 5), rng.stream(1), 0, 2)


@pytest.mark.parametrize("shape", [(4, 1), (4, 12), (4, 3, 4), (4, 2, 3, 2), (1, 2, 2, 3, 1)])
def test_any_trailing_shape(shape: tuple[int, ...]) -> None:
    z, flat_z = torch.zeros(shape), torch.zeros(shape[0], math.prod(shape[1:]))
    for out in (z, flat_z):
        ops.fill_normal_(out, rng.stream(1), 0, 0)
    assert torch.equal(z.reshape(flat_z.shape), flat_z)
    assert float(z.abs().min()) > 0


def test_other_dtypes_and_strides_are_refused() -> None:
    with pytest.raises(TypeError, match="out must be float32"):
        ops.fill_normal_(torch.ones(3, 4).half(), rng.stream(0), 0, 0)
    with pytest.raises(ValueError, match="out must be contiguous"):
        ops.fill_normal_(transposed(3, 4), rng.stream(0), 0, 0)


def test_a_stream_that_is_none_is_refused() -> None:
    for stream in (torch.zeros(1, dtype=torch.int64), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"stream must be int64 of shape \(3,\)"):
            ops.fill_normal_(torch.zeros(3, 5), stream, 0, 0)


@pytest.mark.parametrize("purpose", [-1, 256])
def test_a_purpose_is_a_byte(purpose: int) -> None:
    with pytest.raises(ValueError, match=rf"purpose must be in 0 \.\. 255, .*, got {purpose}"):
        ops.fill_normal_(torch.ones(2, 4), rng.stream(0), purpose, 0)
