"""The ring step: the laws of the reference, the kernels within the oracle's bound of it, and the seam."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracle import POISON, assert_bits_of_rows, assert_close, assert_same_out_of_place
from torch import Tensor

from fastmsgm import ops, reference, rng
from fastmsgm.kernels import cpu

DIMENSIONS = (2, 3, 4, 5, 63, 64, 130, 784, 1024)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = [*itertools.product((False, True), (False, True))]  # restart, noisy
BACKENDS = (reference.ring_step, cpu.ring_step)
EXACT = torch.float64


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FASTMSGM_BACKEND", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class RingCase:
    """The inputs of one ``ring_step``; ``run`` gives them to a backend, ``check`` compares it with the oracle."""

    x: Tensor
    f: Tensor
    table: Tensor
    stream: Tensor
    step: int
    history: Tensor | None
    net_in: torch.dtype | None
    restart: bool
    noisy: bool

    def run(
        self, ring_step: Callable[..., None], dtype: torch.dtype = torch.float32, in_place: bool = False
    ) -> dict[str, Tensor]:
        """Outputs by name: x, bad and, where the case has them, history and net_in."""
        x = self.x.to(dtype, copy=True)
        history = None if self.history is None else self.history.to(dtype, copy=True)
        # The float64 reference keeps what the network would see unrounded.
        net_dtype = self.net_in if dtype == torch.float32 else dtype
        net_in = None if self.net_in is None else torch.full_like(x, POISON, dtype=net_dtype)
        out = x if in_place else torch.full_like(x, POISON)
        bad = torch.full((len(x),), -1, dtype=torch.int32)
        forms = self.restart, self.noisy
        ring_step(x, self.f, self.table, self.stream, self.step, bad, out, history, net_in, *forms)
        if not in_place:
            same = torch.allclose(x, self.x.to(dtype), rtol=0, atol=0, equal_nan=True)
            assert same, "x changed in an out-of-place step"
        outputs = {"x": out, "bad": bad, "history": history, "net_in": net_in}
        return {name: tensor for name, tensor in outputs.items() if tensor is not None}

    def check(self, ring_step: Callable[..., None], in_place: bool = False) -> None:
        got = self.run(ring_step, in_place=in_place)
        ref32, ref64 = (self.run(reference.ring_step, dtype) for dtype in (torch.float32, EXACT))
        assert torch.equal(got["bad"], ref64["bad"])
        for name in got.keys() - {"bad"}:
            assert_close(got[name], ref32[name], ref64[name])


def ring_case(
    n: int, d: int, *, seed: int = 0, start: int = 0, restart: bool = False, noisy: bool = True, history: bool = True,
    net_in: torch.dtype | None = None, f_dtype: torch.dtype = torch.float32, drift: float = 0.5, noise: float = 0.2,
) -> RingCase:  # fmt: skip
    """A random case with norms between 1/4 and 4 and angles of order one; row 2 of its table is used."""
    generator = torch.Generator().manual_seed(seed)
    x, f, past = torch.randn(3, n, d, generator=generator)
    size = 4 ** (2 * torch.rand(2, n, 1, generator=generator) - 1)
    x, past = (size[i] * v / v.norm(dim=1, keepdim=True) for i, v in enumerate((x, past)))
    f = f / size[0] * d**0.5  # angles drift x f of the same size for any d
    table = torch.randn(4, 3, generator=generator)
    table[2] = torch.tensor([drift, noise, 0.9])
    stream = rng.stream(seed + 2**63, start)
    past = past if history or restart else None
    return RingCase(x, f.to(f_dtype), table, stream, 2, past, net_in, restart, noisy)


def step(
    x: Tensor, f: Tensor, drift: float = 0.0, noise: float = 0.0, *, history: Tensor | None = None,
    restart: bool = False, k: int = 0, backend: Callable[..., None] = reference.ring_step,
) -> Tensor:  # fmt: skip
    """The state after row k of a table of equal rows (drift and noise in half turns); no row may be lost."""
    out, bad = torch.full_like(x, torch.nan), torch.full((len(x),), -1, dtype=torch.int32)
    table = torch.tensor([[drift, noise, 1.0]]).repeat(k + 1, 1)
    backend(x, f, table, rng.stream(5, 2**32 - 3), k, bad, out, history, None, restart, noise > 0)
    assert (bad == -1).all()
    return out


def directions(n: int, d: int, seed: int = 0, dtype: torch.dtype = EXACT) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=EXACT)
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)


# ---- laws of the reference ----


def turn(d: int, pair: int, angle: Tensor) -> Tensor:
    """The matrix of one rotation by an angle in half turns: exp(pi angle (E_k,k+1 - E_k+1,k))."""
    here, behind, matrix = pair, (pair + 1) % d, torch.eye(d, dtype=EXACT)
    matrix[here, here] = matrix[behind, behind] = torch.cos(math.pi * angle)
    matrix[here, behind], matrix[behind, here] = torch.sin(math.pi * angle), -torch.sin(math.pi * angle)
    return matrix


@pytest.mark.parametrize("d", [2, 3, 6, 7])
@pytest.mark.parametrize(("restart", "noise"), [*itertools.product((False, True), (0.0, 0.5))])
def test_a_step_is_a_product_of_rotations(d: int, restart: bool, noise: float) -> None:
    x, f, past = 2 * directions(20, d), directions(20, d, 1), 3 * directions(20, d, 2)
    history = past.clone()
    out = step(x, f, 0.75, noise, history=history, restart=restart, k=4)
    torch.testing.assert_close(history, past if restart else x, rtol=0, atol=0)
    stream = rng.stream(5, 2**32 - 3)
    xi = noise * rng.normals(20, d, stream, rng.Kind.STEP, 4, EXACT)
    coins = rng.words(20, 1, stream, rng.Kind.STEP, 4)[:, 0, 1] % 2
    assert 5 < coins.sum() < 15
    groups = [[*range(0, d - 1, 2)], [*range(1, d - 1, 2)] + [d - 1] * (d % 2 == 0)] + [[d - 1]] * (d % 2)
    for i in range(20):
        v = past[i] if restart else x[i]
        phi = torch.stack([0.75 * (x[i, (k + 1) % d] * f[i, k] - x[i, k] * f[i, (k + 1) % d]) for k in range(d)])
        if noise:
            order = groups[::-1] if coins[i] else groups
            plan = [(k, phi[k]) for group in order for k in group]
            plan += [(k, xi[i, k - (d % 2 == 0 and order[0][0])]) for group in order[::-1] for k in group]
        else:
            *outer, middle = groups
            plan = [(k, phi[k] / 2) for group in outer for k in group]
            plan += [(k, phi[k]) for k in middle]
            plan += [(k, phi[k] / 2) for group in outer[::-1] for k in group]
        for k, angle in plan:
            v = turn(d, k, angle) @ v
        torch.testing.assert_close(out[i], v, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_pair_turns_by_its_angle(backend: Callable[..., None]) -> None:
    check_single_pair(backend, torch.cat((torch.linspace(-320, 320, 4001), torch.arange(-1273, 1274) / 4)))


def check_single_pair(backend: Callable[..., None], a: Tensor) -> None:
    """x = (0, 0, 1, 0) and f = (0, a, 0, 0): pair 1, which turns once, turns by a half turns, and no other one does."""
    x, f = torch.zeros(2, len(a), 4)
    x[:, 2], f[:, 1] = 1, a
    out = step(x, f, 1.0, backend=backend)
    angle = math.pi * a.double()
    expected = torch.stack((0 * angle, angle.sin(), angle.cos(), 0 * angle), 1)
    assert (out - expected).abs().max() < 2.5e-7


@pytest.mark.parametrize("d", [2, 5, 8])
def test_noise_lets_the_mean_decay(d: int) -> None:
    """E[x] = exp(-B / 2) x_0, whatever the steps: a feature is in two pairs, each of variance dB / 2."""
    n, steps, clock = 20_000, 3, 1.25
    x0 = directions(1, d).expand(n, d)
    x = x0
    for k in range(steps):
        x = step(x, x, noise=math.sqrt(clock / steps / 2) / math.pi, k=k)
    along = (x * x0).sum(1)
    assert abs(along.mean() - math.exp(-clock / 2)) < 4 * along.std() / math.sqrt(n)


@pytest.mark.parametrize("drift", [0.0, 1.0])
@pytest.mark.parametrize(("d", "nodes"), [(3, 5), (5, 3), (6, 3)])
def test_a_step_is_of_weak_order_two(monkeypatch: pytest.MonkeyPatch, drift: float, d: int, nodes: int) -> None:
    """Second moments after a step of a clock h are those of the flow and then the noise up to h^3, exactly: by
    Gauss-Hermite nodes for the normals, and both sides of the coin."""
    node, weight = _hermite(nodes)
    xi = torch.cartesian_prod(*[node] * d)
    weights = torch.cartesian_prod(*[weight] * d).prod(1)
    x, f = (directions(1, d, seed).expand(len(xi), d) for seed in (1, 2))
    phi = (x.roll(-1, 1) * f - x * f.roll(-1, 1))[0]
    eye = torch.eye(d, dtype=EXACT)
    generators = torch.stack([(turn(d, k, torch.tensor(0.5).double()) - eye) for k in range(d)])
    generators = (generators - generators.transpose(1, 2)) / 2
    second = torch.stack([torch.kron(a, eye) + torch.kron(eye, a) for a in generators])

    def moments(clock: float, coin: int) -> Tensor:
        """The matrix that takes E[x x^T] over a step, whose angles are those of x."""

        monkeypatch.setattr(rng, "normals", lambda *_: xi)
        monkeypatch.setattr(rng, "words", lambda n, *_: torch.full((n, 1, 4), coin))
        lengths = clock * drift / math.pi, (clock / 2) ** 0.5 / math.pi
        turned = torch.stack([step(x, f, *lengths, history=e.repeat(len(xi), 1), restart=True) for e in eye], 2)
        return torch.einsum("n,nij,nkl->ikjl", weights, turned, turned).reshape(d * d, d * d)

    errors = []
    for clock in (0.1, 0.05, 0.025):
        flow = torch.linalg.matrix_exp(clock * drift * (phi[:, None, None] * second).sum(0))
        noise = torch.linalg.matrix_exp(clock * (second @ second).sum(0) / 4)
        errors.append(((moments(clock, 2**32 - 2) + moments(clock, 1)) / 2 - noise @ flow).norm().item())
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - 3) < 0.3 for rate in rates), (errors, rates)


def _hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a standard normal: eigenvalues of the Jacobi matrix."""
    off = torch.arange(1, nodes, dtype=EXACT).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return values, vectors[0] ** 2


def velocity(x: Tensor, field: Tensor) -> Tensor:
    """What the angles phi of f = field x do to x per radian of drift."""
    f = x @ field.T
    phi = x.roll(-1, 1) * f - x * f.roll(-1, 1)
    return x.roll(-1, 1) * phi - (x * phi).roll(1, 1)


def exact_flow(x: Tensor, field: Tensor, time: float) -> Tensor:
    """By 400 steps of RK4; at d = 3, exp(field t) x on the sphere."""
    if x.shape[1] == 3:
        grown = x @ torch.linalg.matrix_exp(field * time).T
        return grown / grown.norm(dim=1, keepdim=True)
    h = time / 400
    for _ in range(400):
        k1 = velocity(x, field)
        k2 = velocity(x + h / 2 * k1, field)
        k3 = velocity(x + h / 2 * k2, field)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3, field))
    return x


@pytest.mark.parametrize("d", [3, 6])
def test_midpoint_steps_converge(d: int) -> None:
    x, field = directions(40, d), torch.randn(d, d, generator=torch.Generator().manual_seed(3), dtype=EXACT)
    exact, history, errors = exact_flow(x, field, 1.0), torch.full_like(x, torch.nan), []
    for steps in (16, 32, 64):
        v = x
        for _ in range(steps):
            middle = step(v, v @ field.T, 0.5 / steps / math.pi, history=history)
            v = step(middle, middle @ field.T, 1 / steps / math.pi, history=history, restart=True)
        errors.append((v - exact).norm(dim=1).mean().item())
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - 2) < 0.2 for rate in rates), (errors, rates)


@pytest.mark.parametrize(("backend", "dtype", "bound", "d", "rounds"), [
    (reference.ring_step, EXACT, 1e-13, 7, 50), (cpu.ring_step, torch.float32, 1e-6, 2, 250),
    (cpu.ring_step, torch.float32, 1e-6, 3, 250), (cpu.ring_step, torch.float32, 1e-6, 1030, 250),
])  # fmt: skip
def test_norms_are_kept(backend: Callable[..., None], dtype: torch.dtype, bound: float, d: int, rounds: int) -> None:
    """Steps of all four forms in every round, of rows of norms from 0.03 to 30."""
    n = 16
    x = directions(n, d, dtype=dtype) * torch.logspace(-1.5, 1.5, n, dtype=dtype)[:, None]
    norms, history, f = x.double().norm(dim=1), torch.zeros_like(x), directions(n, d, 1, torch.float32)
    table, bad = torch.tensor([[0.05, 0.1, 1.0]]), torch.full((n,), -1, dtype=torch.int32)
    before = x.clone()
    for k in range(rounds):
        for form in FORMS:
            backend(x, f, table, rng.stream(k), 0, bad, x, history, None, *form)
    assert (x.double().norm(dim=1) / norms - 1).abs().max() < bound
    assert (bad == -1).all()
    assert ((x - before).double().norm(dim=1) / norms).min() > 0.01


# ---- the kernels against the reference ----


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize(("restart", "noisy"), FORMS)
def test_cpu_ring_step(d: int, restart: bool, noisy: bool) -> None:
    for seed, (net_in, f_dtype) in enumerate(zip((None, *DTYPES), (*DTYPES, torch.float32), strict=True)):
        case = ring_case(
            19, d, seed=seed, start=2**32 - 5, restart=restart, noisy=noisy, net_in=net_in, f_dtype=f_dtype,
            history=seed % 2 == 0,
        )  # fmt: skip
        case.check(cpu.ring_step, in_place=seed % 2 == 1)


@pytest.mark.parametrize("d", [3, 64, 2050])
def test_cpu_ring_step_at_the_ends(d: int) -> None:
    """Noise and drift of zero, angles of many turns, rows of more than a block."""
    for numbers in ({"noise": 0.0}, {"drift": 0.0}, {"drift": 60.0, "noisy": False}, {"drift": 60.0}, {}):
        ring_case(19, d, **numbers).check(cpu.ring_step)


@pytest.fixture
def triton_ring_step() -> Callable[..., None]:
    pytest.importorskip("triton")
    from fastmsgm.kernels import ring

    return ring.ring_step


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of masked lanes and lost states, a GPU is silent
@pytest.mark.parametrize("d", [*DIMENSIONS, 6, 7, 8, 1030])
def test_triton_ring_step(triton_ring_step: Callable[..., None], d: int) -> None:
    """In the interpreter; one form a d, all of them at small ones. Two programs run at d = 130."""
    for seed, (restart, noisy) in enumerate(FORMS):
        if d in (5, 6, 7, 8) or seed == {64: 1, 784: 3, 1024: 1}.get(d, d // 2 % 4):
            case = ring_case(
                5 if d == 130 else 3, d, seed=seed, start=2**32 - 2, restart=restart, noisy=noisy, history=seed < 2,
                net_in=(torch.float32, None, torch.float16)[seed % 3], f_dtype=DTYPES[seed % 3],
            )  # fmt: skip
            case.check(triton_ring_step, in_place=seed % 2 == 1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_triton_ring_step_at_the_ends(triton_ring_step: Callable[..., None]) -> None:
    for numbers in ({"noisy": False}, {"drift": 60.0}):
        ring_case(3, 17, **numbers).check(triton_ring_step)
    check_single_pair(triton_ring_step, torch.cat((torch.linspace(-320, 320, 63), torch.arange(64) * 5)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_noise_does_not_depend_on_the_seed(backend: Callable[..., None]) -> None:
    case = ring_case(5, 130, noisy=False)
    first, *others = (dataclasses.replace(case, stream=rng.stream(s)).run(backend)["x"] for s in range(4))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("d", [2, 15, 130, 1030])
def test_bits_do_not_depend_on_threads_or_split(d: int) -> None:
    n = 80_000 // d
    for restart, noisy in FORMS:
        case = ring_case(n, d, start=11, restart=restart, noisy=noisy, net_in=torch.bfloat16)
        assert_bits_of_rows(case, cpu.ring_step, ("x", "f", "history"))


# ---- lost samples ----


def check_lost(backend: Callable[..., None], d: int, restart: bool, noisy: bool) -> None:
    """A sample with what is not finite, too large or too small is marked and NaN in all outputs; the others stay."""
    case = ring_case(12, d, restart=restart, noisy=noisy, net_in=torch.float32)
    expected = case.run(backend)
    case.f[1, d - 1], case.f[2, 0], case.f[3, 1] = torch.nan, torch.inf, -torch.inf
    case.x[4, 1], case.x[5, 0] = torch.nan, torch.inf
    case.f[6] *= 1e5  # angles beyond the largest
    assert case.history is not None
    base = case.history if restart else case.x
    base[7] = 0.0
    base[8, d - 1] = torch.nan
    base[9] *= 1e30
    got = case.run(backend)
    expected["bad"][1:10] = case.step
    for name in got.keys() - {"bad"}:
        expected[name][1:10] = torch.nan
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("restart", "noisy"), FORMS)
def test_lost_samples_are_marked(backend: Callable[..., None], restart: bool, noisy: bool) -> None:
    for d in (3, 130):
        check_lost(backend, d, restart, noisy)


def check_lost_steps(backend: Callable[..., None]) -> None:
    """Numbers of a row of the table by which all samples are lost or none is."""
    for numbers, lost in (
        ({"noise": 1024.0}, False), ({"noise": 1024.1}, True), ({"noise": -2000.0}, True), ({"noise": math.inf}, True),
        ({"noise": math.nan}, True), ({"noise": math.nan, "noisy": False}, False), ({"drift": math.inf}, True),
        ({"drift": math.nan, "noisy": False}, True),
    ):  # fmt: skip
        case = ring_case(3, 8, **numbers)
        got = case.run(backend)
        assert got["bad"].tolist() == [case.step if lost else -1] * 3, numbers
        assert bool(got["x"].isnan().all() if lost else got["x"].isfinite().all()), numbers


@pytest.mark.parametrize("backend", BACKENDS)
def test_angles_beyond_the_largest_lose_the_sample(backend: Callable[..., None]) -> None:
    check_lost_steps(backend)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_triton_lost_samples_are_marked(triton_ring_step: Callable[..., None]) -> None:
    check_lost(triton_ring_step, 7, False, True)
    check_lost(triton_ring_step, 34, True, False)
    check_lost_steps(triton_ring_step)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_bad_step_is_kept(backend: Callable[..., None]) -> None:
    case = ring_case(3, 8)
    bad = torch.tensor([-1, 1, -1], dtype=torch.int32)
    case.f[:2] = torch.nan
    backend(case.x, case.f, case.table, case.stream, 2, bad, case.x, None, None, False, True)
    assert bad.tolist() == [2, 1, -1]


def test_empty_batch() -> None:
    assert ring_case(0, 5).run(cpu.ring_step)["x"].shape == (0, 5)


# ---- the seam ----


def arguments(shape: tuple[int, ...] = (6, 7), **changes: Any) -> dict[str, Any]:
    """Of the ops, in their order."""
    case = ring_case(shape[0], math.prod(shape[1:]))
    assert case.history is not None
    given = {
        "x": case.x.reshape(shape), "f": case.f.reshape(shape), "table": case.table, "stream": case.stream, "step": 1,
        "bad": torch.full(shape[:1], -1, dtype=torch.int32), "history": case.history.reshape(shape),
        "net_in": torch.zeros(shape), "restart": False, "noisy": True,
    }  # fmt: skip
    return {**given, **changes}


def test_opcheck() -> None:
    torch.library.opcheck(ops.ring_step_, tuple(arguments().values()))
    torch.library.opcheck(ops.ring_step, tuple(arguments(history=None, net_in=None).values()))


@pytest.mark.parametrize("changes", [{}, {"restart": True}, {"history": None, "net_in": None, "noisy": False}])
def test_in_place_equals_out_of_place(changes: dict[str, Any]) -> None:
    inside, outside = arguments((50, 7, 10), **changes), arguments((50, 7, 10), **changes)
    outside["f"] = torch.stack((outside["f"], outside["f"]), -1)[..., 0]  # any strides
    assert_same_out_of_place(ops.ring_step_, ops.ring_step, inside, outside, "x")


def test_the_named_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMSGM_BACKEND", "reference")
    got, expected = arguments(), arguments()
    ops.ring_step_(**got)
    reference.ring_step(**{**expected, "out": expected["x"]})
    assert torch.equal(got["x"], expected["x"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(6, 7).double()}, TypeError, r"x must be float32, got torch\.float64"),
        ({"x": torch.ones(6, 1)}, ValueError, r"x must have at least 2 features, .* got \(6, 1\)"),
        ({"f": torch.ones(6, 8)}, ValueError, r"network's output, must have the state's shape \(6, 7\), got \(6, 8\)"),
        ({"table": torch.ones(4, 4)}, ValueError, r"table must be float32 of shape \(T, 3\), .*got .*\(4, 4\)"),
        ({"step": 4}, ValueError, r"step must be a row of the table, 0 \.\. 3, got 4"),
        ({"history": None, "restart": True}, ValueError, r"restart starts from history, got None: give what the step"),
        ({"history": torch.ones(6, 8)}, ValueError, r"history must match x \(6, 7\) on cpu, got \(6, 8\) on cpu"),
        ({"net_in": torch.ones(5, 7)}, ValueError, r"net_in must match x \(6, 7\) on cpu, got \(5, 7\) on cpu"),
        ({"stream": torch.zeros(2)}, ValueError, r"stream must be int64 of shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("op", [ops.ring_step_, ops.ring_step])
def test_wrong_input_is_named(op: Callable[..., Any], changes: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        op(**arguments(**changes))
