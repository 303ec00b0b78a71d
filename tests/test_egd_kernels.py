"""``egd_step`` in the Triton interpreter and on the CPU, within the oracle's bound of the float64 reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from oracle import assert_log_close
from torch import Tensor

from fastmsgm import reference
from fastmsgm.kernels.cpu import optim as cpu

pytest.importorskip("triton")
from fastmsgm.kernels import optim as triton

# The interpreter computes what is then clamped with NumPy, which warns where a GPU is silent.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SIZES = (1, 3, 4, 5, 63, 1000, 4099)  # the last takes more than one program
KERNELS = [pytest.param(triton.egd_step, id="triton"), pytest.param(cpu.egd_step, id="cpu")]
INFINITY, NAN = float("inf"), float("nan")
TINY, HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max

Kernel = Callable[[Tensor, Tensor, Tensor], None]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass
class Case:
    """The inputs of one ``egd_step``."""

    w: Tensor
    g: Tensor
    lr: Tensor

    def run(self, egd_step: Kernel, dtype: torch.dtype = torch.float32, offset: int = 0) -> Tensor:
        """The new weights; w and g start ``offset`` elements into their memory, w followed by four others."""
        n = len(self.w)
        around_w, around_g = (torch.full((offset + n + 4,), 2.5, dtype=dtype) for _ in range(2))
        w, g = around_w[offset : offset + n], around_g[offset : offset + n]
        w.copy_(self.w)
        g.copy_(self.g)
        egd_step(w, g, self.lr)
        torch.testing.assert_close(g, self.g.to(dtype), rtol=0, atol=0, equal_nan=True)
        assert bool((around_w[:offset] == 2.5).all())
        assert bool((around_w[offset + n :] == 2.5).all())
        return w

    def check(self, egd_step: Kernel, offset: int = 0) -> None:
        got = self.run(egd_step, offset=offset)
        ref32, ref64 = (self.run(reference.egd_step, dtype) for dtype in (torch.float32, torch.float64))
        zero = self.w == 0
        assert torch.equal(got[zero], self.w[zero])
        assert_log_close(got[~zero], ref32[~zero], ref64[~zero])


def case(n: int, seed: int = 0, lr: float = 0.3) -> Case:
    """Weights of both signs over 35 powers of ten, a tenth of them zero; exponents up to 10, some of a hundred."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n, generator=generator) * torch.exp(10 * torch.randn(n, generator=generator).clamp(-4, 4))
    w[torch.rand(n, generator=generator) < 0.1] = 0.0
    g = torch.randn(n, generator=generator) * torch.exp(torch.randn(n, generator=generator)) / lr
    wild = torch.rand(n, generator=generator) < 0.02
    return Case(w, torch.where(wild, 100 * g, g), torch.tensor([lr]))


# ---- the definition ----


def test_the_reference_is_the_formula() -> None:
    w = torch.tensor([1.5, -1.5, 0.0, 2.0], dtype=torch.float64)
    g = torch.tensor([0.5, 0.5, 3.0, -4.0], dtype=torch.float64)
    reference.egd_step(w, g, torch.tensor([0.5]))
    expected = torch.tensor([1.5 * 0.7788007830714049, -1.5 * 1.2840254166877414, 0.0, 2 * 7.38905609893065])
    assert torch.allclose(w, expected.double(), rtol=1e-7, atol=0)


# ---- kernels ----


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_egd_step(kernel: Kernel, n: int) -> None:
    for seed in range(3):
        case(n, seed).check(kernel)


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_egd_step_of_misaligned_views(kernel: Kernel, offset: int) -> None:
    for n in SIZES:
        case(n).check(kernel, offset)
        assert torch.equal(case(n).run(kernel, offset=offset), case(n).run(kernel))


@pytest.mark.parametrize("kernel", [*KERNELS, pytest.param(reference.egd_step, id="reference")])
def test_egd_step_at_the_edges_of_float32(kernel: Kernel) -> None:
    """What would overflow or vanish stops at the last normal number, with its sign."""
    w = torch.tensor([1e30, -1e30, 1e-30, -1e-30, 1.0, -1.0, HUGE, TINY]).repeat(2)
    g = torch.cat((torch.tensor([-70.0, 70, 70, -70, 1, 1, -1, 1]), torch.zeros(8)))
    got = Case(w, g, torch.tensor([1.0])).run(kernel)
    e = 2.718281828459045
    expected = torch.tensor([HUGE, -HUGE, TINY, -TINY, 1 / e, -e, HUGE, TINY])
    assert torch.equal(got[[0, 1, 2, 3, 6, 7]], expected[[0, 1, 2, 3, 6, 7]])
    assert torch.allclose(got[4:6], expected[4:6], rtol=1e-6, atol=0)
    assert torch.equal(got[8:], w[8:])  # no gradient, no change


@pytest.mark.parametrize("kernel", [*KERNELS, pytest.param(reference.egd_step, id="reference")])
def test_egd_step_of_any_gradient_keeps_the_sign(kernel: Kernel) -> None:
    w = torch.tensor([1e-20, -1e-20, 1.0, -1.0, 1e20, -1e20])
    for value in (HUGE, -HUGE, INFINITY, -INFINITY):
        got = Case(w, torch.full((6,), value), torch.tensor([1.0])).run(kernel)
        assert torch.equal(got.sign(), w.sign())
        assert bool(((got.abs() >= TINY) & (got.abs() <= HUGE)).all())
        grows = (got.abs() > w.abs()) == (w.sign() * value < 0)
        assert bool(grows.all())
    assert bool(Case(w, torch.full((6,), NAN), torch.tensor([1.0])).run(kernel).isnan().all())


@pytest.mark.parametrize("kernel", [*KERNELS, pytest.param(reference.egd_step, id="reference")])
def test_what_is_no_normal_number_stays(kernel: Kernel) -> None:
    w = torch.tensor([0.0, -0.0, 1e-40, -1e-40, INFINITY, -INFINITY, NAN])
    for value in (0.0, 1.0, -1e30, NAN):
        got = Case(w, torch.full((7,), value), torch.tensor([0.5])).run(kernel)
        assert torch.equal(got.view(torch.int32)[:6], w.view(torch.int32)[:6])
        assert bool(got[6].isnan())


def test_bits_do_not_depend_on_threads_or_split() -> None:
    whole = case(100_003)
    alone = whole.run(cpu.egd_step)
    torch.set_num_threads(3)
    assert torch.equal(whole.run(cpu.egd_step), alone)
    parts = [
        Case(whole.w[rows], whole.g[rows], whole.lr).run(cpu.egd_step) for rows in (slice(5003), slice(5003, None))
    ]
    assert torch.equal(torch.cat(parts), alone)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_weights(kernel: Kernel) -> None:
    assert len(case(0).run(kernel)) == 0
