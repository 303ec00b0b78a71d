"""The bound that every GBM kernel is held to, and the random cases that it is held to it on.

A kernel and ``reference`` in float32 are both compared with ``reference`` in float64 on the SAME Philox bits. An
element may be off by 2 x the worst float32-reference error among elements of its power-of-two range of size, plus
1e-6 max(1, size); a signed state is compared in log|x| (size |log|x||) with equal sign, everything else as it is.
Outputs start as NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastmsgm import reference, rng

POISON = float("nan")


def assert_log_close(got: Tensor, ref32: Tensor, ref64: Tensor) -> None:
    """Signed states: equal sign, equal NaNs, log|x| within the bound."""
    got, ref32 = got.cpu(), ref32.cpu()
    assert torch.equal(got.isnan(), ref64.isnan()), "NaN in other places than in the reference"
    valid = ~ref64.isnan()
    assert torch.equal(got[valid].signbit(), ref64[valid].signbit()), "a sign differs"
    assert_close(*(x.double().abs().log() for x in (got, ref32, ref64)))


def assert_close(got: Tensor, ref32: Tensor, ref64: Tensor) -> None:
    """Anything else (z, history, the network's input): equal NaNs, values within the bound."""
    got, ref32 = got.cpu().double(), ref32.cpu().double()
    assert torch.equal(got.isnan(), ref64.isnan()), "NaN in other places than in the reference"
    valid = ~ref64.isnan()
    got, ref32, ref64 = got[valid], ref32[valid], ref64[valid]
    size = ref64.abs().clamp(min=1)
    magnitude = size.log2().floor().long()
    worst = torch.zeros(1 + int(magnitude.max()) if len(magnitude) else 1, dtype=torch.float64)
    worst.scatter_reduce_(0, magnitude, (ref32 - ref64).abs().nan_to_num(0.0), "amax")
    excess = (got - ref64).abs() - (2 * worst[magnitude] + 1e-6 * size)
    if len(excess):
        i = int(excess.argmax())
        assert excess[i] <= 0, f"got {got[i]:.9g}, float32 reference {ref32[i]:.9g}, float64 {ref64[i]:.9g}"


class Case(Protocol):
    """What the cases of every operation have in common."""

    net_in: torch.dtype | None

    @property
    def run(self) -> Callable[..., dict[str, Tensor]]: ...
    @property
    def check(self) -> Callable[..., None]: ...


def check_interpreted(case: Case, kernel: Callable[..., None], **how: bool) -> None:
    """``case.check`` in Triton's interpreter. It cuts bfloat16 off instead of rounding it, so there the network's input
    is held to one unit in the last place of the float32 one, which is held to the bound."""
    if case.net_in == torch.bfloat16:
        half = case.run(kernel, **how)["net_in"]
        case.net_in = torch.float32
        full = case.run(kernel, **how)["net_in"]
        assert half.dtype == torch.bfloat16
        assert ((half - full).abs() <= 2.0**-7 * full.abs()).all()
    case.check(kernel, **how)


@dataclass
class StepCase:
    """The inputs of one ``gbm_step``; ``run`` gives them to a backend, ``check`` compares it with the oracle."""

    x: Tensor
    f: Tensor
    table: Tensor
    stream: Tensor
    step: int
    history: Tensor | None
    net_in: torch.dtype | None
    stein: bool
    linear: bool
    log_state: bool

    def run(self, gbm_step: Callable[..., None], dtype: torch.dtype = torch.float32, device: str = "cpu",
            in_place: bool = False) -> dict[str, Tensor]:  # fmt: skip
        """Outputs by name: x, bad and, where the case has them, history and net_in."""
        x = self.x.to(device, dtype, copy=True)
        f, table, stream = (t.to(device) for t in (self.f, self.table, self.stream))
        history = None if self.history is None else self.history.to(device, dtype, copy=True)
        # The float64 reference keeps what the network would see unrounded.
        net_dtype = self.net_in if dtype == torch.float32 else dtype
        net_in = None if self.net_in is None else torch.full_like(x, POISON, dtype=net_dtype)
        out = x if in_place else torch.full_like(x, POISON)
        bad = torch.full((len(x),), -1, dtype=torch.int32, device=device)
        flags = (self.stein, self.linear, self.log_state)
        gbm_step(x, f, table, stream, self.step, bad, out, history, net_in, *flags)
        if not in_place:
            same = torch.allclose(x.cpu(), self.x.to(dtype), rtol=0, atol=0, equal_nan=True)
            assert same, "x changed in an out-of-place step"
        outputs = {"x": out, "bad": bad, "history": history, "net_in": net_in}
        return {name: tensor.cpu() for name, tensor in outputs.items() if tensor is not None}

    def check(self, gbm_step: Callable[..., None], device: str = "cpu", in_place: bool = False) -> None:
        got = self.run(gbm_step, device=device, in_place=in_place)
        ref32, ref64 = (self.run(reference.gbm_step, dtype) for dtype in (torch.float32, torch.float64))
        assert torch.equal(got["bad"], ref64["bad"])
        assert_log_close(got["x"], ref32["x"], ref64["x"])
        for name in ("history", "net_in"):
            if name in got:
                assert_close(got[name], ref32[name], ref64[name])


@dataclass
class PerturbCase:
    """The inputs of one ``gbm_perturb``, as ``StepCase``."""

    x0: Tensor
    coefficients: Tensor
    stream: Tensor
    kind: int
    step: int
    x_t: bool
    net_in: torch.dtype | None
    z: bool

    def run(self, gbm_perturb: Callable[..., None], dtype: torch.dtype = torch.float32, device: str = "cpu"
            ) -> dict[str, Tensor]:  # fmt: skip
        """Outputs by name: those of x_t, net_in and z that the case asks for."""
        x0 = self.x0.to(device, dtype)
        net_dtype = self.net_in if dtype == torch.float32 else dtype
        outputs = {
            "x_t": torch.full_like(x0, POISON) if self.x_t else None,
            "net_in": None if self.net_in is None else torch.full_like(x0, POISON, dtype=net_dtype),
            "z": torch.full_like(x0, POISON) if self.z else None,
        }
        coefficients, stream = self.coefficients.to(device), self.stream.to(device)
        gbm_perturb(x0, coefficients, stream, self.kind, self.step, **outputs)
        return {name: tensor.cpu() for name, tensor in outputs.items() if tensor is not None}

    def check(self, gbm_perturb: Callable[..., None], device: str = "cpu") -> None:
        got = self.run(gbm_perturb, device=device)
        ref32, ref64 = (self.run(reference.gbm_perturb, dtype) for dtype in (torch.float32, torch.float64))
        for name, tensor in got.items():
            assert_same = assert_log_close if name == "x_t" else assert_close
            assert_same(tensor, ref32[name], ref64[name])


def step_case(
    n: int, d: int, *, seed: int = 0, start: int = 0, stein: bool = False, linear: bool = False, log_state: bool = True,
    history: bool = False, net_in: torch.dtype | None = None, f_dtype: torch.dtype = torch.float32,
) -> StepCase:  # fmt: skip
    """A random case with row 2 of a table of 4 rows: multistep where there is a history, else the papers' rows."""
    generator = torch.Generator().manual_seed(seed)
    # log|x| up to 40; the Stein score of such a state falls as 1 / x. Linear steps stay clear of x' = 0.
    x = _signed_state(n, d, generator)
    f = torch.randn(n, d, generator=generator)
    f = ((f / x.abs()).clamp(-6e4, 6e4) if stein else f).to(f_dtype)  # float16 ends at 65504
    s2, e = torch.rand(2, 4, generator=generator) * 0.5 + 0.25
    one, c = torch.ones(4), torch.rand(4, generator=generator) * 0.2 - 0.1
    if log_state and history:
        b_prev = torch.full((4,), -0.15)
        columns = (one - e, e - b_prev, b_prev, c, 0.1 * one, 0.9 * one, s2, 0.01 * one, 0.4 * one)
    else:
        e = 0.1 * e
        columns = (one - e, e, 0 * one, c, 0.1 * one, one, s2, s2, 0.4 * one)
    if linear and log_state and history:  # keep x' = x (1 + ...) away from zero although |y| is large
        columns = (one, 0.02 * one, -0.01 * one, c, 0.05 * one, 0.01 * one, s2, s2, 0.4 * one)
    past = torch.randn(n, d, generator=generator) if history else None
    table = torch.stack(columns, dim=1).float().contiguous()
    stream = rng.stream(seed + 2**63, start)
    return StepCase(x, f, table, stream, 2, past, net_in, stein, linear, log_state)


def perturb_case(
    n: int, d: int, *, seed: int = 0, start: int = 0, x_t: bool = True, net_in: torch.dtype | None = torch.float32,
    z: bool = True,
) -> PerturbCase:  # fmt: skip
    """A random case in which every sample has its own shift, s in 0 .. 5 and c_in."""
    generator = torch.Generator().manual_seed(seed)
    x0 = _signed_state(n, d, generator)
    s = torch.rand(n, generator=generator) * 5
    shift = torch.randn(n, generator=generator)
    coefficients = torch.stack((shift, s, 1 / torch.sqrt(1 + s**2)), dim=1)
    return PerturbCase(
        x0, coefficients, rng.stream(seed + 2**63, start), rng.Kind.TRAINING_NOISE, 2**32 + 7, x_t, net_in, z
    )


def _signed_state(n: int, d: int, generator: torch.Generator) -> Tensor:
    log_size = 4 * torch.randn(n, d, generator=generator)
    log_size = torch.where(torch.rand(n, d, generator=generator) < 0.05, 10 * log_size.clamp(-4, 4), log_size)
    sign = torch.where(torch.rand(n, d, generator=generator) < 0.5, -1.0, 1.0)
    return (sign * log_size.exp()).contiguous()


def assert_same_out_of_place(
    in_place: Callable[..., None], out_of_place: Callable[..., Tensor], inside: dict[str, Any],
    outside: dict[str, Any], state: str,
) -> None:  # fmt: skip
    """Both forms of a step give the same, and out of place leaves the state; two equal sets of arguments."""
    before = outside[state].clone()
    in_place(**inside)
    out = out_of_place(**outside)
    assert torch.equal(out, inside[state])
    assert torch.equal(outside[state], before)
    assert not torch.equal(out, before)
    for name in ("history", "net_in"):
        if inside[name] is not None:
            assert torch.equal(inside[name], outside[name])


def assert_bits_of_rows(case: Any, kernel: Callable[..., None], arrays: tuple[str, ...]) -> None:
    """Bits depend neither on the threads nor on how the rows of ``arrays`` are split over calls."""
    arrays = tuple(name for name in arrays if getattr(case, name) is not None)
    n = len(getattr(case, arrays[0]))

    def part(rows: slice) -> dict[str, Tensor]:
        parts = {name: getattr(case, name)[rows] for name in arrays}
        return dataclasses.replace(case, stream=case.stream + torch.tensor([0, rows.start, 0]), **parts).run(kernel)

    torch.set_num_threads(1)
    alone = case.run(kernel)
    torch.set_num_threads(3)
    together = case.run(kernel)
    first, second = part(slice(0, n // 3 + 1)), part(slice(n // 3 + 1, n))
    for name, expected in alone.items():
        assert torch.equal(together[name], expected)
        assert torch.equal(torch.cat((first[name], second[name])), expected)
