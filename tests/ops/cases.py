"""Random cases of every operation, and the bound that every kernel is held to on them.

A kernel and the reference in float32 are both compared with the reference in float64 on the SAME
Philox bits. An element may be off by 2 x the worst error of the float32 reference among elements of
its power-of-two range of size, plus 1e-6 max(1, size). A signed state is compared in log|x| (size
|log|x||) with equal sign, everything else as it is. Outputs start as NaN.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastmsgm import reference, rng
from tests.ops.backends import REFERENCE, TRITON, Backend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of a network
# Its input's and its output's, so that every dtype is met on both sides.
NETWORK_DTYPES = tuple(zip((None, *DTYPES), (*DTYPES, torch.float32), strict=True))
ROWS, ROW = 4, 2  # of a case's coefficient table, and the one that is used
START = 2**32 - 2  # of the samples: their indices leave 32 bits within a batch

# ---- the bound ----


def assert_log_close(got: Tensor, ref32: Tensor, ref64: Tensor) -> None:
    """Assert that signed states have equal signs, equal NaNs, and log|x| within the bound."""
    _assert_equal_nan(got, ref64)
    valid = ~ref64.isnan()
    assert torch.equal(got[valid].signbit(), ref64[valid].signbit()), "a sign differs"
    got, ref32, ref64 = (x.double().abs().log() for x in (got, ref32, ref64))
    assert_close(got, ref32, ref64)


def assert_close(got: Tensor, ref32: Tensor, ref64: Tensor, truncation: float = 0.0) -> None:
    """Assert that anything but a signed state has equal NaNs and values within the bound.

    ``truncation`` is a relative error on top of it.
    """
    _assert_equal_nan(got, ref64)
    valid = ~ref64.isnan()
    got, ref32, ref64 = (x[valid].double() for x in (got, ref32, ref64))
    if not len(ref64):
        return
    size = ref64.abs().clamp(min=1)
    magnitude = size.log2().floor().long()
    worst = torch.zeros(1 + int(magnitude.max()), dtype=torch.float64)
    worst.scatter_reduce_(0, magnitude, (ref32 - ref64).abs().nan_to_num(0.0), "amax")
    bound = 2 * worst[magnitude] + 1e-6 * size + truncation * ref64.abs()
    excess = (got - ref64).abs() - bound
    i = int(excess.argmax())
    assert excess[i] <= 0, (
        f"got {got[i]:.9g}, float32 reference {ref32[i]:.9g}, float64 {ref64[i]:.9g}"
    )


def assert_equal(got: Tensor, expected: Tensor) -> None:
    """Assert equal numbers, with NaN in the same places."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def _assert_equal_nan(got: Tensor, ref64: Tensor) -> None:
    assert torch.equal(got.isnan(), ref64.isnan()), "NaN in other places than in the reference"


# ---- cases ----


@dataclass(kw_only=True)
class Case:
    """The inputs of one call of an operation, each field an argument.

    An output's field says whether it is asked for, ``model_input`` in which dtype.
    """

    operation: ClassVar[str]
    state: ClassVar[str]
    memory: ClassVar[str | None] = None  # what a step keeps for the next one
    arrays: ClassVar[tuple[str, ...]]  # inputs with a row for every sample
    outputs: ClassVar[tuple[str, ...]] = ()  # but for model_input
    signed: ClassVar[str | None] = None  # the output that is compared in log|x|

    stream: Tensor
    step: int
    model_input: torch.dtype | None

    def arguments(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Return fresh arguments with the state in a dtype and outputs of NaN.

        Float64 keeps the network's input unrounded.
        """
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in (self.state, self.memory):
            if name is not None and given[name] is not None:
                given[name] = given[name].to(dtype, copy=True)
        wanted = {name: dtype if given[name] else None for name in self.outputs}
        half = self.model_input is not None and dtype == torch.float32
        wanted["model_input"] = self.model_input if half else self.model_input and dtype
        for name, kind in wanted.items():
            state = given[self.state]
            given[name] = None if kind is None else torch.full_like(state, torch.nan, dtype=kind)
        return given

    def op_arguments(self, shape: tuple[int, ...] | None = None, **changes: Any) -> dict[str, Any]:
        """Return arguments of the operation with the state and what is like it in a shape."""
        given = self.arguments()
        if shape is not None:
            flat = given[self.state].shape
            for name, value in given.items():
                if isinstance(value, Tensor) and value.shape == flat:
                    given[name] = value.reshape(shape)
        return {**given, **changes}

    def run(
        self, backend: Backend, dtype: torch.dtype = torch.float32, in_place: bool = False
    ) -> dict[str, Tensor]:
        """Return the outputs by name."""
        given = self.arguments(dtype)
        backend.kernel(self.operation)(**given)
        names = (*self.outputs, "model_input")
        return {name: given[name] for name in names if given[name] is not None}

    def check(self, backend: Backend, in_place: bool = False) -> None:
        """Hold a backend to the bound.

        Triton's interpreter truncates to bfloat16 instead of rounding. There the network's input is
        held to the bound of a float32 one and one unit in the last place.
        """
        got, case, truncation = self.run(backend, in_place=in_place), self, 0.0
        if backend is TRITON and self.model_input == torch.bfloat16:
            assert got["model_input"].dtype == torch.bfloat16
            case, truncation = dataclasses.replace(self, model_input=torch.float32), 2.0**-7
        ref32, ref64 = (case.run(REFERENCE, dtype) for dtype in (torch.float32, torch.float64))
        for name, tensor in got.items():
            if tensor.dtype == torch.int32:
                assert torch.equal(tensor, ref64[name])
            elif name == self.signed:
                assert_log_close(tensor, ref32[name], ref64[name])
            elif name == "model_input":
                assert_close(tensor, ref32[name], ref64[name], truncation)
            else:
                assert_close(tensor, ref32[name], ref64[name])

    def part(self, rows: slice) -> Any:
        """Return the case of some of the samples, which have the same noise."""
        arrays = {name: getattr(self, name) for name in self.arrays}
        arrays = {name: array[rows] for name, array in arrays.items() if array is not None}
        stream = self.stream + torch.tensor([0, rows.start, 0])
        return dataclasses.replace(self, stream=stream, **arrays)


@dataclass(kw_only=True)
class StepCase(Case):
    """The inputs of one reverse step of any family."""

    columns: ClassVar[tuple[str, ...]]

    model_output: Tensor
    table: Tensor

    def set(self, **numbers: float) -> None:
        """Set columns of the table's row that is used."""
        for name, number in numbers.items():
            self.table[self.step, self.columns.index(name)] = number

    def arguments(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        given = super().arguments(dtype)
        n = len(given[self.state])
        return {**given, "first_nonfinite_step": torch.full((n,), -1, dtype=torch.int32)}

    def run(
        self, backend: Backend, dtype: torch.dtype = torch.float32, in_place: bool = False
    ) -> dict[str, Tensor]:
        """Return ``out``, ``first_nonfinite_step``, and what the case keeps and asks for."""
        given = self.arguments(dtype)
        state = given[self.state]
        out, before = state if in_place else torch.full_like(state, torch.nan), state.clone()
        backend.kernel(self.operation)(**given, out=out)
        if not in_place:
            assert_equal(state, before)
        names = ("first_nonfinite_step", self.memory or "", "model_input")
        return {"out": out, **{name: given[name] for name in names if given[name] is not None}}


@dataclass(kw_only=True)
class GBMStepCase(StepCase):
    operation = "gbm_step"
    state, memory, signed = "x", "prev_denoised", "out"
    arrays = ("x", "model_output", "prev_denoised")
    columns = reference.GBM_COLUMNS

    x: Tensor
    prev_denoised: Tensor | None
    stein_score: bool
    sign_agnostic: bool
    log_state: bool


@dataclass(kw_only=True)
class RotationStepCase(StepCase):
    operation = "rotation_step"
    state, memory = "u", "prev_denoised"
    arrays = ("u", "model_output", "prev_denoised")
    columns = reference.ROTATION_COLUMNS

    u: Tensor
    angles: Tensor | None
    prev_denoised: Tensor | None
    geodesic: bool


@dataclass(kw_only=True)
class RingStepCase(StepCase):
    operation = "ring_step"
    state, memory = "x", "step_start"
    arrays = ("x", "model_output", "step_start")
    columns = reference.RING_COLUMNS

    x: Tensor
    step_start: Tensor | None
    restart: bool
    noisy: bool


@dataclass(kw_only=True)
class GBMPerturbCase(Case):
    operation = "gbm_perturb"
    state, signed = "x0", "x_t"
    arrays = ("x0", "coefficients")
    outputs = ("x_t", "z")

    x0: Tensor
    coefficients: Tensor
    purpose: int
    x_t: bool
    z: bool


@dataclass(kw_only=True)
class RotationPerturbCase(Case):
    operation = "rotation_perturb"
    state = "u0"
    arrays = ("u0", "coefficients")
    outputs = ("u_t", "target")

    u0: Tensor
    coefficients: Tensor
    table: Tensor
    u_t: bool
    target: bool


def gbm_step_case(
    n: int,
    d: int,
    *,
    seed: int = 0,
    start: int = 0,
    stein_score: bool = False,
    sign_agnostic: bool = False,
    log_state: bool = True,
    prev_denoised: bool = False,
    model_input: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
) -> GBMStepCase:
    """Return a random case: a multistep row if there is a prev_denoised, else one of the papers'.

    The network's output is in ``dtype``.
    """
    generator = torch.Generator().manual_seed(seed)
    # log|x| up to 40; the Stein score of such a state falls as 1 / x. Sign-agnostic steps stay
    # clear of x' = 0.
    x = _signed_state(n, d, generator)
    f = torch.randn(n, d, generator=generator)
    f = (f / x.abs()).clamp(-6e4, 6e4) if stein_score else f  # float16 ends at 65504
    s2, e = torch.rand(2, ROWS, generator=generator) * 0.5 + 0.25
    one, c = torch.ones(ROWS), torch.rand(ROWS, generator=generator) * 0.2 - 0.1
    if sign_agnostic and log_state and prev_denoised:  # x' = x (1 + ...) although |y| is large
        columns = (one, 0.02 * one, -0.01 * one, c, 0.05 * one, 0.01 * one, s2, s2, 0.4 * one)
    elif log_state and prev_denoised:
        b_prev = torch.full((ROWS,), -0.15)
        columns = (one - e, e - b_prev, b_prev, c, 0.1 * one, 0.9 * one, s2, 0.01 * one, 0.4 * one)
    else:
        e = 0.1 * e
        columns = (one - e, e, 0 * one, c, 0.1 * one, one, s2, s2, 0.4 * one)
    prev = torch.randn(n, d, generator=generator)
    return GBMStepCase(
        x=x,
        model_output=f.to(dtype),
        table=torch.stack(columns, dim=1),
        stream=rng.stream(seed + 2**63, start),
        step=ROW,
        prev_denoised=prev if prev_denoised else None,
        model_input=model_input,
        stein_score=stein_score,
        sign_agnostic=sign_agnostic,
        log_state=log_state,
    )


def gbm_perturb_case(
    n: int,
    d: int,
    *,
    seed: int = 0,
    start: int = 0,
    x_t: bool = True,
    model_input: torch.dtype | None = torch.float32,
    z: bool = True,
) -> GBMPerturbCase:
    """Return a random case in which every sample has its own shift, s in 0 .. 5 and c_in."""
    generator = torch.Generator().manual_seed(seed)
    x0 = _signed_state(n, d, generator)
    s = torch.rand(n, generator=generator) * 5
    shift = torch.randn(n, generator=generator)
    return GBMPerturbCase(
        x0=x0,
        coefficients=torch.stack((shift, s, 1 / torch.sqrt(1 + s**2)), dim=1),
        stream=rng.stream(seed + 2**63, start),
        purpose=rng.Purpose.TRAINING_NOISE,
        step=2**32 + 7,
        x_t=x_t,
        model_input=model_input,
        z=z,
    )


def _signed_state(n: int, d: int, generator: torch.Generator) -> Tensor:
    log_size = 4 * torch.randn(n, d, generator=generator)
    large = torch.rand(n, d, generator=generator) < 0.05
    log_size = torch.where(large, 10 * log_size.clamp(-4, 4), log_size)
    sign = torch.where(torch.rand(n, d, generator=generator) < 0.5, -1.0, 1.0)
    return sign * log_size.exp()


def rotation_step_case(
    n: int,
    d: int,
    *,
    seed: int = 0,
    start: int = 0,
    geodesic: bool = False,
    prev_denoised: bool = False,
    angles: bool = False,
    model_input: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    noise: float = 0.4,
) -> RotationStepCase:
    """Return a random case with everything in it that its flags allow.

    Steps are of order one, the norms of the directions are a little off, and the network's output,
    in ``dtype``, has a radial part.
    """
    generator = torch.Generator().manual_seed(seed)
    u, f, prev = torch.randn(3, n, d, generator=generator)
    u = u / u.norm(dim=1, keepdim=True) * (1 + 1e-3 * torch.randn(n, 1, generator=generator))
    f = 2 * f / d**0.5 + 0.5 * u
    # The D of a row before points anywhere, so that D_w does too; a velocity is tangent.
    prev = prev / d**0.5
    if geodesic:
        prev = prev - (prev * u).sum(1, keepdim=True) * u
    else:
        prev = prev + 8 * torch.rand(n, 1, generator=generator) * u
    alpha, length, drift = torch.rand(3, ROWS, generator=generator) * 0.5 + 0.4
    w, back, scale = 0.3 + 0.2 * geodesic, float(prev_denoised), noise / d**0.5
    others = (torch.full((ROWS,), number) for number in (w, scale, back, 0.5, 0.9))
    w, scale, back, spread, c_in = others
    columns = (alpha, (1 - alpha**2).sqrt(), w, length, drift, scale, back, spread, c_in)
    return RotationStepCase(
        u=u,
        model_output=f.to(dtype),
        table=torch.stack(columns, dim=1),
        angles=angle_quantiles(d, 33).repeat(ROWS, 1) if angles else None,
        stream=rng.stream(seed + 2**63, start),
        step=ROW,
        prev_denoised=prev if prev_denoised else None,
        model_input=model_input,
        geodesic=geodesic,
    )


def rotation_perturb_case(
    n: int,
    d: int,
    *,
    seed: int = 0,
    start: int = 0,
    u_t: bool = True,
    model_input: torch.dtype | None = torch.float32,
    target: bool = True,
) -> RotationPerturbCase:
    """Return a random case in which every sample has its own spread, scale, c_in and table row.

    Both ends of the table are among them.
    """
    generator = torch.Generator().manual_seed(seed)
    u0 = torch.randn(n, d, generator=generator)
    row, spread, scale, c_in = torch.rand(4, n, generator=generator)
    nodes, columns = 9, 65
    row = (1.2 * row - 0.1).clamp(0, 1) * (nodes - 1)
    growth = torch.linspace(1, 1.3, nodes)[:, None]
    g = 1.5 - torch.tanh(torch.linspace(-1, 1, columns))
    return RotationPerturbCase(
        u0=u0,
        coefficients=torch.stack((row, spread**4, 1 + scale, c_in), dim=1),
        table=torch.stack((angle_quantiles(d, columns) * growth, g * growth)),
        stream=rng.stream(seed + 2**63, start),
        step=2**32 + 7,
        u_t=u_t,
        model_input=model_input,
        target=target,
    )


def angle_quantiles(d: int, columns: int) -> Tensor:
    """Return V much like the heat kernel's: Wilson and Hilferty's chi-square quantile over d - 1.

    It is kept from 0 and 2, where the sine has an infinite slope and no error in V is small.
    """
    z, c = torch.linspace(-6, 6, columns, dtype=torch.float64), 2 / (9 * (d - 1))
    return ((1 - c + z * c**0.5).clamp(min=0.05) ** 3).clamp(max=1.4).float()


def ring_step_case(
    n: int,
    d: int,
    *,
    seed: int = 0,
    start: int = 0,
    restart: bool = False,
    noisy: bool = True,
    step_start: bool = True,
    model_input: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    drift: float = 0.5,
    noise: float = 0.2,
) -> RingStepCase:
    """Return a random case with norms between 1/4 and 4 and angles of order one."""
    generator = torch.Generator().manual_seed(seed)
    x, f, start_x = torch.randn(3, n, d, generator=generator)
    size = 4 ** (2 * torch.rand(2, n, 1, generator=generator) - 1)
    x, start_x = (size[i] * v / v.norm(dim=1, keepdim=True) for i, v in enumerate((x, start_x)))
    f = f / size[0] * d**0.5  # angles drift x f of the same size for any d
    table = torch.randn(ROWS, 3, generator=generator)
    table[ROW] = torch.tensor([drift, noise, 0.9])
    return RingStepCase(
        x=x,
        model_output=f.to(dtype),
        table=table,
        stream=rng.stream(seed + 2**63, start),
        step=ROW,
        step_start=start_x if step_start or restart else None,
        model_input=model_input,
        restart=restart,
        noisy=noisy,
    )
