"""``fastmsgm.sample`` against the same loop in PyTorch: 18 steps of SDE-DPM-Solver++(2M).

Without a network only the loop takes time, so the difference is largest. With the shipped network
nearly all of the time is the network's, and the limit is its calls alone.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import fastmsgm
from bench.harness import checks, plain_loop
from bench.harness.interleaved import Compare, Provider
from bench.harness.plain_loop import PlainLoop
from fastmsgm import GBM, GBMModel, LogNormalPrior, ops, rng
from fastmsgm.sampling import plan_for
from fastmsgm.solvers import GBMPlan

N, D = 4096, 784
CHUNKS, BATCH = 2, 64


class ConstantNet(nn.Module):
    """A network whose output is always the same."""

    output: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("output", torch.randn(n, D, generator=generator))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.output[: len(x)]


class Steps:
    """The steps alone, on arrays that are already allocated."""

    def __init__(self, model: GBMModel, n: int) -> None:
        plan, device = plan_for(model, None, None), model.device
        assert isinstance(plan, GBMPlan)
        self.nfe, self.flags, self.f = plan.nfe, plan.flags, model.net.output
        self.table = torch.from_numpy(plan.table).float().to(device)
        self.x, self.prev_denoised, self.model_input = (
            torch.empty(n, D, device=device) for _ in range(3)
        )
        self.means = (model.prior.means / model.scale).expand(n, D).contiguous()
        start = (0.0, model.prior.std(float(plan.noise_levels[0])), 1.0)
        self.start = torch.tensor(start, device=device).expand(n, 3).contiguous()
        self.first_nonfinite_step = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.stream = rng.stream(0, 0, device)

    def sample_prior(self) -> None:
        self.prev_denoised.zero_()
        ops.gbm_perturb_(
            self.means,
            self.start,
            self.stream,
            rng.Purpose.PRIOR,
            0,
            x_t=self.x,
            model_input=None,
            z=None,
        )

    def __call__(self) -> Tensor:
        for k in range(self.nfe):
            ops.gbm_step_(
                self.x,
                self.f,
                self.table,
                self.stream,
                k,
                self.first_nonfinite_step,
                self.prev_denoised,
                self.model_input,
                *self.flags,
            )
        return self.x


def constant_model(n: int, device: torch.device) -> GBMModel:
    """Return a model whose network costs nothing."""
    prior = LogNormalPrior(torch.ones(1, D), variance=0.1)
    scale = torch.ones(1, D)
    model = GBMModel(
        ConstantNet(n), GBM(10.0), prior, prediction="denoiser", scale=scale, log_std=0.3
    )
    return model.to(device).eval()


def test_loop_without_a_network(compare: Compare) -> None:
    n, device = compare.size(N, 256), compare.device
    model = constant_model(n, device)
    steps = Steps(model, n)
    a, b, out = (torch.ones(n, D, device=device) for _ in range(3))

    def ours() -> Tensor:
        return fastmsgm.sample(model, n, batch_size=n, progress=False)

    def check_ours(x: Tensor) -> None:
        few = 64
        with checks.reference_backend():
            wanted = fastmsgm.sample(model, few, batch_size=few, progress=False)
        checks.assert_close(x[:few], wanted, relative=1e-4)

    def check_steps(x: Tensor) -> None:
        assert bool((steps.first_nonfinite_step == -1).all())
        checks.assert_close(x, ours())

    def check_theirs(x: Tensor) -> None:
        checks.assert_same_distribution(x.log(), ours().log(), given=steps.f)

    def copies() -> Tensor:
        for _ in range(2 * steps.nfe):
            torch.add(a, b, out=out)
        return out

    def check_copies(x: Tensor) -> None:
        assert torch.equal(x, a + b)

    # 24 bytes: the state and prev_denoised are read and written, the network's output is read and
    # its input written.
    limit = "torch.add, twice a step"
    theirs = functools.partial(Provider, check=check_theirs, against="sample", limit=limit)
    compiled = PlainLoop(model, 1, n, plain_loop.compiled(device), on_device=True)
    providers = [
        Provider("sample", ours, check_ours, limit=limit),
        Provider("its steps alone", steps, check_steps, steps.sample_prior, limit=limit),
        theirs("eager", PlainLoop(model, 1, n, plain_loop.eager)),
        theirs("in place", PlainLoop(model, 1, n, plain_loop.in_place)),
        theirs("compiled", compiled, compiled=True),
        Provider(limit, copies, check_copies),
    ]
    derived = {"share of the steps in sample": lambda m: m["its steps alone"] / m["sample"]}
    setting = f"{steps.nfe} steps, {n} x {D} float32"
    compare("whole loop without a network", setting, providers, derived=derived)


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
        model_input = torch.zeros(batch, *model.shape, dtype=model.input_dtype, device=device)
        return torch.cat(
            [model(model_input, c, **loop.condition) for _ in range(chunks) for c in loop.c_noise]
        )

    def check_ours(x: Tensor) -> None:
        with checks.reference_backend():
            wanted = fastmsgm.sample(model, batch, batch_size=batch, progress=False)
        # bfloat16 amplifies differences in the last bit.
        assert (x[:batch] - wanted).abs().mean() < 0.01

    def check_theirs(x: Tensor) -> None:
        checks.assert_same_distribution(*(images.flatten(1).mean(1) for images in (x, ours())))

    def check_network(model_output: Tensor) -> None:
        assert model_output.shape == (n * len(loop.c_noise), *model.shape)

    limit = "the network alone"
    providers = [
        Provider("sample", ours, check_ours, items=n, limit=limit),
        Provider("eager", loop, check_theirs, items=n, against="sample", limit=limit),
        Provider(limit, network, check_network, items=n),
    ]
    setting = f"{len(loop.c_noise)} steps, {n} samples in chunks of {batch}"
    compare("whole loop of fashion-gbm", setting, providers, unit="samples/s")
