"""``egd_step``: the formula, every kernel within the oracle's bound, and the op."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm import ops, reference
from tests.ops.backends import BACKENDS, CPU, KERNELS, REFERENCE, Backend
from tests.ops.cases import assert_equal, assert_log_close
from tests.ops.checks import assert_compiles, opcheck

SIZES = (1, 3, 4, 5, 63, 1000, 4099)  # the last takes more than one program
TINY, HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclasses.dataclass
class EGDStepCase:
    """The inputs of one ``egd_step``."""

    w: Tensor
    g: Tensor
    lr: Tensor

    def run(self, backend: Backend, dtype: torch.dtype = torch.float32, offset: int = 0) -> Tensor:
        """Return the new weights.

        Both arrays start ``offset`` elements into their memory, and four other elements follow w.
        """
        n = len(self.w)
        around_w, around_g = (torch.full((offset + n + 4,), 2.5, dtype=dtype) for _ in range(2))
        w, g = around_w[offset : offset + n], around_g[offset : offset + n]
        w.copy_(self.w)
        g.copy_(self.g)
        backend.kernel("egd_step")(w, g, self.lr)
        assert_equal(g, self.g.to(dtype))
        assert bool((around_w[:offset] == 2.5).all())
        assert bool((around_w[offset + n :] == 2.5).all())
        return w

    def check(self, backend: Backend, offset: int = 0) -> None:
        """Hold a backend to the bound; zeros stay."""
        got = self.run(backend, offset=offset)
        ref32, ref64 = (self.run(REFERENCE, dtype) for dtype in (torch.float32, torch.float64))
        zero = self.w == 0
        assert torch.equal(got[zero], self.w[zero])
        assert_log_close(got[~zero], ref32[~zero], ref64[~zero])


def egd_step_case(n: int, seed: int = 0, lr: float = 0.3) -> EGDStepCase:
    """Return weights of both signs over 35 powers of ten, a tenth of them zero.

    Exponents are up to 10, some of a hundred.
    """
    generator = torch.Generator().manual_seed(seed)

    def normals() -> Tensor:
        return torch.randn(n, generator=generator)

    w = normals() * torch.exp(10 * normals().clamp(-4, 4))
    w[torch.rand(n, generator=generator) < 0.1] = 0.0
    g = normals() * torch.exp(normals()) / lr
    wild = torch.rand(n, generator=generator) < 0.02
    return EGDStepCase(w, torch.where(wild, 100 * g, g), torch.tensor([lr]))


def test_the_reference_is_the_formula() -> None:
    w = torch.tensor([1.5, -1.5, 0.0, 2.0], dtype=torch.float64)
    g = torch.tensor([0.5, 0.5, 3.0, -4.0], dtype=torch.float64)
    reference.egd_step(w, g, torch.tensor([0.5]))
    factors = torch.tensor([0.7788007830714049, 1.2840254166877414, 1.0, 7.38905609893065])
    expected = torch.tensor([1.5, -1.5, 0.0, 2.0]) * factors
    assert torch.allclose(w, expected.double(), rtol=1e-7, atol=0)


# ---- every backend ----


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("backend", KERNELS)
def test_within_the_bound(backend: Backend, n: int) -> None:
    for seed in range(3):
        egd_step_case(n, seed).check(backend)


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("backend", KERNELS)
def test_misaligned_views(backend: Backend, offset: int) -> None:
    for n in SIZES:
        case = egd_step_case(n)
        case.check(backend, offset)
        assert torch.equal(case.run(backend, offset=offset), case.run(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_edges_of_float32(backend: Backend) -> None:
    """What would overflow or vanish stops at the last normal number, with its sign."""
    w = torch.tensor([1e30, -1e30, 1e-30, -1e-30, 1.0, -1.0, HUGE, TINY]).repeat(2)
    g = torch.cat((torch.tensor([-70.0, 70, 70, -70, 1, 1, -1, 1]), torch.zeros(8)))
    got = EGDStepCase(w, g, torch.tensor([1.0])).run(backend)
    e = 2.718281828459045
    expected = torch.tensor([HUGE, -HUGE, TINY, -TINY, 1 / e, -e, HUGE, TINY])
    assert torch.equal(got[[0, 1, 2, 3, 6, 7]], expected[[0, 1, 2, 3, 6, 7]])
    assert torch.allclose(got[4:6], expected[4:6], rtol=1e-6, atol=0)
    assert torch.equal(got[8:], w[8:])  # no gradient, no change


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_gradient_keeps_the_sign(backend: Backend) -> None:
    w, lr = torch.tensor([1e-20, -1e-20, 1.0, -1.0, 1e20, -1e20]), torch.tensor([1.0])
    for value in (HUGE, -HUGE, torch.inf, -torch.inf):
        got = EGDStepCase(w, torch.full((6,), value), lr).run(backend)
        assert torch.equal(got.sign(), w.sign())
        assert bool(((got.abs() >= TINY) & (got.abs() <= HUGE)).all())
        grows = (got.abs() > w.abs()) == (w.sign() * value < 0)
        assert bool(grows.all())
    assert bool(EGDStepCase(w, torch.full((6,), torch.nan), lr).run(backend).isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_are_not_normal_numbers_stay(backend: Backend) -> None:
    w = torch.tensor([0.0, -0.0, 1e-40, -1e-40, torch.inf, -torch.inf, torch.nan])
    for value in (0.0, 1.0, -1e30, torch.nan):
        got = EGDStepCase(w, torch.full((7,), value), torch.tensor([0.5])).run(backend)
        assert torch.equal(got.view(torch.int32)[:6], w.view(torch.int32)[:6])
        assert bool(got[6].isnan())


def test_bits_do_not_depend_on_threads_or_split() -> None:
    whole = egd_step_case(100_003)
    alone = whole.run(CPU)
    torch.set_num_threads(3)
    assert torch.equal(whole.run(CPU), alone)
    parts = [
        EGDStepCase(whole.w[part], whole.g[part], whole.lr).run(CPU)
        for part in (slice(5003), slice(5003, None))
    ]
    assert torch.equal(torch.cat(parts), alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_weights(backend: Backend) -> None:
    assert len(egd_step_case(0).run(backend)) == 0


# ---- the op ----


def arguments(*shape: int, **changes: Tensor) -> dict[str, Tensor]:
    w, g = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return {"w": w, "g": g, "lr": torch.tensor(0.3), **changes}


@pytest.mark.parametrize("lr", [torch.tensor(0.3), torch.tensor([0.3]), torch.tensor([[0.3]])])
def test_opcheck(lr: Tensor) -> None:
    opcheck(ops.egd_step_, **arguments(6, 7, lr=lr))


def test_compile_fullgraph_equals_eager() -> None:
    def loop(w: Tensor, x: Tensor, lr: Tensor) -> tuple[Tensor, ...]:
        """Take three steps towards the fit of a line, with the gradient written out."""
        for _ in range(3):
            ops.egd_step_(w, x.T @ (x @ w - 1) / len(x), lr)
        return (w * 2,)

    def inputs() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return *torch.randn(2, 5, 5, generator=generator).unbind(0), torch.tensor(0.1)

    written = assert_compiles(loop, inputs)
    assert not torch.equal(written[0], inputs()[0])


def test_axes_in_any_order() -> None:
    """Channels-last weights, and gradients of other strides than the weights': the same numbers."""
    given = arguments(4, 3, 2, 5)
    before, g, lr = given["w"], given["g"], given["lr"]
    w = before.clone()
    ops.egd_step_(w, g, lr)
    for layout in (torch.channels_last, torch.contiguous_format):
        for g_layout in (torch.channels_last, torch.contiguous_format):
            got = before.clone(memory_format=layout)
            ops.egd_step_(got, g.clone(memory_format=g_layout), lr)
            assert torch.equal(got, w)
    transposed = before[0, 0].clone().T
    ops.egd_step_(transposed, g[0, 0].T, lr)
    assert torch.equal(transposed.T, w[0, 0])
    column = before[:, :1, :1, :1].clone()
    expected = column.double() * torch.exp(-0.3 * column.double().sign() * g.mean().double())
    ops.egd_step_(column, g.mean().expand(4, 1, 1, 1), lr)
    torch.testing.assert_close(column.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"w": torch.ones(6, 7).double()}, TypeError, r"w must be float32, got torch\.float64"),
        ({"g": torch.ones(6, 7).half()}, TypeError, r"g must be float32, got torch\.float16"),
        (
            {"g": torch.ones(7, 6)},
            ValueError,
            r"g must match w \(6, 7\) on cpu, got \(7, 6\) on cpu",
        ),
        (
            {"w": torch.ones(6, 9)[:, :7]},
            ValueError,
            r"w must be dense in memory, got strides \(9, 1\) for \(6, 7\)",
        ),
        (
            {"w": torch.ones(1, 7).expand(6, 7)},
            ValueError,
            r"w must be dense in memory, got strides \(0, 1\)",
        ),
        (
            {"lr": torch.ones(2)},
            ValueError,
            r"lr must be float32 of one element on cpu, got torch\.float32 \(2,\) on",
        ),
        (
            {"lr": torch.tensor(0.1).double()},
            ValueError,
            r"lr must be float32 of one element .* got torch\.float64",
        ),
    ],
)
def test_wrong_input_is_named(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.egd_step_(**arguments(6, 7, **changes))
