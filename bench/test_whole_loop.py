"""``fastmsgm.sample`` against the same loop in PyTorch: 18 steps of SDE-DPM-Solver++(2M).

With a network that costs nothing the loop is all there is to gain; with the shipped network nearly all of the time is
the network's, and the limit is its calls alone.
"""

from __future__ import annotations

import functools

import gates
import plain_loop
import torch
from interleaved import Compare, Contender
from plain_loop import PlainLoop
from torch import Tensor, nn

import fastmsgm
from fastmsgm import GBM, GBMModel, LogNormalPrior, ops, rng
from fastmsgm.sampling import plan_for
from fastmsgm.solvers import GBMPlan

N, D = 4096, 784
CHUNKS, BATCH = 2, 64


class Nothing(nn.Module):
    """A network whose output is always the same."""

    output: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("output", torch.randn(n, D, generator=generator))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.output[: len(x)]


class Steps:
    """The prior's draw, untimed, and then the steps alone, on arrays that are there."""

    def __init__(self, model: GBMModel, n: int) -> None:
        plan, device = plan_for(model, None, None), model.device
        assert isinstance(plan, GBMPlan)
        self.calls, self.f = plan.calls, model.net.output
        self.table = torch.from_numpy(plan.table).float().to(device)
        self.flags = (False, plan.linear, plan.log_state)
        self.x, self.history, self.net_in = (torch.empty(n, D, device=device) for _ in range(3))
        self.centres = (model.prior.centres / model.scale).expand(n, D).contiguous()
        start = (0.0, model.prior.std(float(plan.levels[0])), 1.0)
        self.start = torch.tensor(start, device=device).expand(n, 3).contiguous()
        self.bad = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.stream = rng.stream(0, 0, device)

    def draw(self) -> None:
        self.history.zero_()
        ops.gbm_perturb_(self.centres, self.start, self.stream, rng.Kind.PRIOR, 0, x_t=self.x, net_in=None, z=None)

    def __call__(self) -> Tensor:
        for k in range(self.calls):
            args = (self.table, self.stream, k, self.bad, self.history, self.net_in)
            ops.gbm_step_(self.x, self.f, *args, *self.flags)
        return self.x


def null_model(n: int, device: torch.device) -> GBMModel:
    prior = LogNormalPrior(torch.ones(1, D), variance=0.1)
    scale = torch.ones(1, D)
    model = GBMModel(Nothing(n), GBM(10.0), prior, prediction="denoiser", scale=scale, log_std=0.3)
    return model.to(device).eval()


def test_loop_without_a_network(compare: Compare) -> None:
    n, device = compare.size(N, 256), compare.device
    model = null_model(n, device)
    steps = Steps(model, n)
    a, b, out = (torch.ones(n, D, device=device) for _ in range(3))

    def ours() -> Tensor:
        return fastmsgm.sample(model, n, batch_size=n, progress=False)

    def check_ours(x: Tensor) -> None:
        few = 64
        with gates.reference_backend():
            gates.close(x[:few], fastmsgm.sample(model, few, batch_size=few, progress=False), relative=1e-4)

    def check_steps(x: Tensor) -> None:
        assert bool((steps.bad == -1).all())
        gates.close(x, ours())

    def check_theirs(x: Tensor) -> None:
        gates.same_law(x.log(), ours().log(), given=steps.f)

    def copies() -> Tensor:
        for _ in range(2 * steps.calls):
            torch.add(a, b, out=out)
        return out

    def check_copies(x: Tensor) -> None:
        assert torch.equal(x, a + b)

    limit = "torch.add, twice a step"  # 24 bytes: state and history read and written, output read, input written
    theirs = functools.partial(Contender, check=check_theirs, against="sample", limit=limit)
    contenders = [
        Contender("sample", ours, check_ours, limit=limit),
        Contender("its steps alone", steps, check_steps, steps.draw, limit=limit),
        theirs("eager", PlainLoop(model, 1, n, plain_loop.eager)),
        theirs("in place", PlainLoop(model, 1, n, plain_loop.in_place)),
        theirs("compiled", PlainLoop(model, 1, n, plain_loop.compiled(device), on_device=True), compiled=True),
        Contender(limit, copies, check_copies),
    ]
    derived = {"share of the steps in sample": lambda m: m["its steps alone"] / m["sample"]}
    setting = f"{steps.calls} steps, {n} x {D} float32"
    compare("whole loop without a network", setting, contenders, derived=derived)


def test_loop_with_the_network(compare: Compare) -> None:
    chunks, batch, device = compare.size(CHUNKS, 1), compare.size(BATCH, 4), compare.device
    n = chunks * batch
    model = fastmsgm.load("fashion-gbm", device)
    assert isinstance(model, GBMModel)
    loop = PlainLoop(model, chunks, batch, plain_loop.eager)

    def ours() -> Tensor:
        return fastmsgm.sample(model, n, batch_size=batch, progress=False)

    @torch.no_grad()
    def network() -> Tensor:
        net_in = torch.zeros(batch, *model.shape, dtype=model.input_dtype, device=device)
        return torch.cat([model(net_in, c) for _ in range(chunks) for c in loop.conditions])

    def check_ours(x: Tensor) -> None:
        with gates.reference_backend():
            wanted = fastmsgm.sample(model, batch, batch_size=batch, progress=False)
        # bfloat16 makes more of differences in the last bit.
        assert (x[:batch] - wanted).abs().mean() < 0.01

    def check_theirs(x: Tensor) -> None:
        gates.same_law(*(images.flatten(1).mean(1) for images in (x, ours())))

    def check_network(f: Tensor) -> None:
        assert f.shape == (n * len(loop.conditions), *model.shape)

    limit = "the network alone"
    contenders = [
        Contender("sample", ours, check_ours, items=n, limit=limit),
        Contender("eager", loop, check_theirs, items=n, against="sample", limit=limit),
        Contender(limit, network, check_network, items=n),
    ]
    setting = f"{len(loop.conditions)} steps, {n} samples in chunks of {batch}"
    compare("whole loop of fashion-gbm", setting, contenders, unit="samples/s")
