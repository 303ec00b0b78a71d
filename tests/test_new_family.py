"""A family from outside the package: this file and one entry in ``families.FAMILIES``.

Beta noise, a toy process in plain PyTorch: x_t = x_0 U^t with U uniform on (0, 1), so that
x_t / x_0 has the distribution Beta(1/t, 1). The network predicts log x_0 from log x_t; a step of
the solver multiplies the prediction by noise of the next level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm import families, rng
from fastmsgm.gbm.solvers import Heun
from fastmsgm.model import ScoreModel
from fastmsgm.nets import MLP
from fastmsgm.solver import Plan, Solver
from fastmsgm.state import SamplerState, c_noise_by_step
from fastmsgm.tools import cli


@dataclass(frozen=True)
class Beta:
    """The process, for t in [0, T]."""

    T: float = 2.0

    def noise(self, n: int, d: int, t: Tensor, stream: Tensor, purpose: int, step: int) -> Tensor:
        uniform = rng.uniforms(n, -(-d // 4), stream, purpose, step)[:, :d]
        return (uniform**t).float()


class BetaStepFlags(NamedTuple):
    row: int


@dataclass(frozen=True, kw_only=True)
class BetaPlan(Plan):
    process: Beta

    def state(self, model: Any, size: int) -> BetaState:
        return BetaState(self, model, size)


class BetaState(SamplerState):
    fused = False

    def __init__(self, plan: BetaPlan, model: BetaModel, size: int) -> None:
        self.plan, self.size, self.mean = plan, size, model.mean
        self.flags = [BetaStepFlags(row) for row in range(plan.nfe)]
        self.c_noise = c_noise_by_step(plan.c_noise, size, model.device)
        self.condition = {}
        self.model_input = torch.empty(size, len(model.mean))
        self.log_x0: Tensor | None = None

    def _noise(self, t: float, stream: Tensor, purpose: int, step: int) -> Tensor:
        n, d = self.model_input.shape
        return self.plan.process.noise(n, d, torch.tensor(t), stream, purpose, step)

    def sample_prior(self, stream: Tensor, label: Tensor | None) -> None:
        noise = self._noise(self.plan.noise_levels[0], stream, rng.Purpose.PRIOR, 0)
        self.model_input.copy_(torch.log(self.mean * noise))

    def step(
        self,
        flags: BetaStepFlags,
        model_output: Tensor,
        stream: Tensor,
        first_nonfinite_step: Tensor,
    ) -> None:
        self.log_x0, (after,) = model_output, self.plan.table[flags.row]
        noise = self._noise(after, stream, rng.Purpose.STEP, 0)
        self.model_input.copy_(self.log_x0 + torch.log(noise))
        nonfinite = ~self.model_input.isfinite().all(1) & (first_nonfinite_step < 0)
        first_nonfinite_step[nonfinite] = flags.row

    def x(self, samples: slice) -> Tensor:
        return torch.exp(self.model_input[samples])

    def denoised(self) -> Tensor | None:
        return None if self.log_x0 is None else torch.exp(self.log_x0)


@dataclass(frozen=True)
class Renoise(Solver):
    default_steps: ClassVar[int] = 6

    def plan(self, preconditioning: Beta, steps: int) -> BetaPlan:
        if not isinstance(preconditioning, Beta):
            raise TypeError(f"Renoise is for Beta, got {type(preconditioning).__name__}")
        grid = np.linspace(preconditioning.T, 0, steps + 1)
        return BetaPlan(
            noise_levels=grid[:-1],
            table=grid[1:, None],
            c_noise=grid[:-1] / preconditioning.T,
            process=preconditioning,
        )


def regression(
    model: BetaModel, x0: Tensor, stream: Tensor, step: int, **condition: Tensor
) -> Tensor:
    """Return the (n,) squared errors of the predicted log x_0 at t = T U, U uniform on (0, 1)."""
    process = model.preconditioning
    share = rng.uniforms(len(x0), 1, stream, rng.Purpose.TRAINING_TIME, step)[:, :1]
    noise = process.noise(*x0.shape, process.T * share, stream, rng.Purpose.TRAINING_NOISE, step)
    predicted = model(torch.log(x0 * noise), share[:, 0].float(), **condition)
    return (predicted - torch.log(x0)).square().mean(1)


class BetaModel(ScoreModel):
    family = "Beta"
    solvers: ClassVar[Mapping[str, Callable[[], Solver]]] = {"renoise": Renoise}
    mean: Tensor

    def __init__(self, net: nn.Module, process: Beta, mean: Tensor) -> None:
        super().__init__(net)
        self.preconditioning = process
        self.register_buffer("mean", mean)

    @property
    def prediction(self) -> str:
        return "denoiser"

    @property
    def objective(self) -> str:
        return "regression"

    @property
    def default_solver(self) -> Solver:
        return Renoise()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    @property
    def default_loss(self) -> Callable[..., Tensor]:
        return regression

    def to_state(self, data: Tensor) -> Tensor:
        return data

    def check_states(self, states: Tensor) -> None:
        if not bool((states > 0).all()):
            raise ValueError("data must be positive")

    def config(self) -> dict[str, Any]:
        return {"process": {"name": self.family, **asdict(self.preconditioning)}}

    @classmethod
    def from_config(
        cls, net: nn.Module, config: dict[str, Any], weights: dict[str, Tensor]
    ) -> BetaModel:
        return cls(net, Beta(config["process"]["T"]), weights["mean"])


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "Beta", BetaModel)


@pytest.fixture
def model() -> BetaModel:
    torch.manual_seed(0)
    return BetaModel(MLP(3, 16, 2), Beta(), torch.tensor([1.0, 2.0, 4.0]))


def data() -> Tensor:
    z = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    return torch.tensor([1.0, 2.0, 4.0]) * torch.exp(0.3 * z)


def test_a_new_family_trains_samples_saves_and_loads(model: BetaModel, tmp_path: Path) -> None:
    loss = fastmsgm.Loss(model, seed=99)
    before = loss(data(), step=0).item()
    options: dict[str, Any] = {"batch_size": 64, "lr": 1e-2, "ema": 0.5, "warmup": 2}
    fastmsgm.fit(model, data(), steps=20, out=tmp_path, progress=False, **options)
    assert loss(data(), step=0).item() < 0.5 * before

    samples = fastmsgm.sample(model, 100, seed=3, batch_size=32, progress=False)
    assert samples.shape == (100, 3)
    assert bool((samples > 0).all())
    order = samples.median(0).values.tolist()
    assert order == sorted(order)  # of the means 1, 2, 4

    part = fastmsgm.sample(model, 20, seed=3, start=40, batch_size=32, progress=False)
    assert torch.equal(part, samples[40:60])
    again = fastmsgm.load(tmp_path)
    assert isinstance(again, BetaModel)
    named = fastmsgm.sample(
        again, 100, seed=3, solver="renoise", steps=6, batch_size=32, progress=False
    )
    assert torch.equal(named, samples)


def test_callbacks_and_non_finite_states(model: BetaModel) -> None:
    steps: list[fastmsgm.Step] = []
    fastmsgm.sample(model, 4, batch_size=4, callback=steps.append, progress=False)
    assert [step.noise_level for step in steps] == pytest.approx([*np.linspace(2, 0, 7)])
    assert steps[0].denoised is None
    assert steps[1].denoised is not None
    nn.init.constant_(model.net.out.bias, float("nan"))
    with pytest.raises(fastmsgm.NonFiniteError, match="at step 0 in 4 samples"):
        fastmsgm.sample(model, 4, batch_size=4, progress=False)


def test_its_names_are_known_everywhere(model: BetaModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="solver must be one of renoise, got 'heun' for a Beta"):
        fastmsgm.sample(model, 4, solver="heun", progress=False)
    with pytest.raises(TypeError, match="for geometric Brownian motion, got a Beta"):
        fastmsgm.sample(model, 4, solver=Heun(), progress=False)
    model.save(tmp_path / "model")
    arguments = ["sample", "--model", str(tmp_path / "model"), "--n", "5", "--no-progress"]
    out = tmp_path / "samples.npy"
    assert cli.main([*arguments, "--out", str(out), "--solver", "renoise", "--device", "cpu"]) == 0
    assert np.load(out).shape == (5, 3)
    assert "renoise" in families.solver_names()
