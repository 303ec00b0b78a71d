"""sample and sample_iter: one endless stream, outputs, failures, the cost of a step, arguments."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import fastmsgm
from fastmsgm import NonFiniteError, Step, job, sample, sample_iter
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.gbm.state import GBMPlan
from fastmsgm.nets import MLP, UNet
from fastmsgm.solvers import DaleLangevin, DPMSolverPP2M, Heun
from tests.gbm.exact import MEAN, VARIANCE, exact_model, log_normal_data


def sampled(model: Any, n: int, **options: Any) -> Tensor:
    return sample(model, n, **{"progress": False, **options})


def vectors(prediction: str = "denoiser", **options: Any) -> GBMModel:
    """A model of three features with a random network."""
    torch.manual_seed(0)
    net = MLP(3, 16, 2)
    nn.init.normal_(net.out.weight, std=0.05)
    process = GBM(5.0 if prediction == "denoiser" else 0.8)
    return GBMModel.for_data(
        net, process, log_normal_data(200), prediction=prediction, **options
    ).eval()


def images(precision: str = "fp32") -> GBMModel:
    torch.manual_seed(0)
    net = UNet(1, 16, 32, 1, 2)
    nn.init.normal_(net.out.weight, std=0.05)
    data = torch.rand(20, 1, 8, 8)
    return GBMModel.for_data(
        net, GBM(8.0), data, offset=1.0, bounds=(0.0, 1.0), precision=precision
    ).eval()


class Wrapped(nn.Module):
    """A network that calls ``watch(call, x, f)``, call = 0, 1, ..., and returns its result or f."""

    def __init__(self, net: nn.Module, watch: Callable[[int, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net: Any = net
        self.watch, self.calls = watch, 0

    def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        f = self.net(x, c, **condition)
        changed = self.watch(self.calls, x, f)
        self.calls += 1
        return f if changed is None else changed


# ---- the stream ----


@pytest.mark.parametrize("batch_size", [64, 32, 7])
@pytest.mark.parametrize("build", [vectors, lambda: exact_model("score"), images])
def test_a_part_of_the_stream_is_bit_equal_where_a_batch_size_is_given(
    build: Callable[[], GBMModel], batch_size: int
) -> None:
    model = build()
    options: dict[str, Any] = {"seed": 3, "steps": 4, "batch_size": batch_size}
    whole = sampled(model, 100, **options)
    assert torch.equal(whole[40:60], sampled(model, 20, start=40, **options))
    assert torch.equal(whole[:33], sampled(model, 33, **options))
    assert torch.equal(whole[99:], sampled(model, 1, start=99, **options))
    assert len(whole.unique(dim=0)) == 100


@pytest.mark.parametrize("build", [vectors, lambda: exact_model("score"), images])
def test_a_part_of_the_stream_is_equal_but_for_rounding_without_a_batch_size(
    build: Callable[[], GBMModel],
) -> None:
    model = build()
    options: dict[str, Any] = {"seed": 3, "steps": 4}
    whole = sampled(model, 100, **options)
    for start, n in ((0, 33), (40, 20), (99, 1)):
        part = sampled(model, n, start=start, **options)
        torch.testing.assert_close(part, whole[start : start + n], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["sde-dpm++2m", "heun", "sign-agnostic"])
def test_a_part_of_the_stream_is_bit_equal_for_other_solvers(solver: str) -> None:
    options: dict[str, Any] = {"seed": 3, "steps": 5, "batch_size": 16, "solver": solver}
    assert torch.equal(
        sampled(vectors(), 50, **options)[20:40], sampled(vectors(), 20, start=20, **options)
    )


def test_start_beyond_two_to_the_32() -> None:
    options: dict[str, Any] = {"steps": 3, "batch_size": 8}
    across = sampled(vectors(), 8, start=2**32 - 4, **options)
    assert torch.equal(across[4:], sampled(vectors(), 4, start=2**32, **options))
    assert not torch.equal(across[4:], sampled(vectors(), 4, start=0, **options))
    assert sampled(vectors(), 1, start=2**56 - 1, **options).shape == (1, 3)
    with pytest.raises(
        ValueError, match=r"start \+ n must be at most 2\^56, got start=72057594037927935 and n=2"
    ):
        sampled(vectors(), 2, start=2**56 - 1, **options)


def test_seeds_differ_and_torchs_generator_is_left_alone() -> None:
    samples = [sampled(vectors(), 4, seed=seed, steps=3) for seed in (0, 1, 2**63, 2**64 - 1)]
    assert len(torch.cat(samples).unique(dim=0)) == 16
    model, state = vectors(), torch.get_rng_state()
    sampled(model, 4, steps=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("d", "largest"), [(3, 8192), (48, 1024), (784, 64), (5000, 64)])
def test_default_chunks_are_equal_and_as_large_as_the_number_of_features_allows(
    d: int, largest: int
) -> None:
    """No sample is computed in vain, but for at most one in the last chunk."""
    seen = list[int]()
    data = torch.rand(4, d) + 1
    net = Wrapped(nn.Identity(), lambda call, x, f: seen.append(len(x)))
    net.net.forward = lambda x, c: torch.zeros_like(x)
    model = GBMModel.for_data(net, GBM(1.0), data)
    for n, sizes in (
        (1, [1]),
        (3, [3]),
        (largest, [largest]),
        (largest + 1, [largest // 2 + 1] * 2),
    ):
        seen.clear()
        sampled(model, n, steps=1)
        assert seen == sizes


def test_a_batch_size_that_is_mostly_wasted_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    sampled(vectors(), 16, steps=1, batch_size=16)
    sampled(vectors(), 4, steps=1, start=20, batch_size=16)  # a slice needs the whole chunk
    assert not caplog.records
    sampled(vectors(), 4, steps=1, batch_size=16)
    assert "batch_size=16 computes 16 samples, of which n=4 are kept: leave it out" in caplog.text


def test_class_means_are_taken_in_turn() -> None:
    x0, labels = log_normal_data(60), torch.arange(60) % 3
    model = GBMModel.for_data(
        MLP(3), GBM(1e-3), x0 * (1 + labels[:, None]), prediction="hyvarinen", labels=labels
    )
    first = []
    model.net = Wrapped(model.net, lambda call, x, f: first.append(x.clone()))
    sampled(model, 6, start=4, batch_size=8, steps=1, solver=DaleLangevin())
    # At the one noise level, 0, the prior is its mean: sample i starts from mean i mod 3.
    expected = model.prior.means[torch.arange(16) % 3]
    torch.testing.assert_close(torch.cat(first), expected, rtol=1e-6, atol=0)


# ---- distributions ----


@pytest.mark.parametrize(
    ("prediction", "mu", "options"),
    [
        ("denoiser", None, {"solver": "dpm++2m"}),
        ("denoiser", None, {"solver": "sde-dpm++2m", "steps": 30}),
        ("hyvarinen", None, {"steps": 200}),
        ("score", None, {"steps": 200, "solver": "sign-agnostic"}),
        ("hyvarinen", 0.0, {"steps": 200}),
        ("score", 0.8, {"steps": 200}),
    ],
)
def test_samples_have_the_distribution_of_the_data(
    prediction: str, mu: float | None, options: dict[str, Any]
) -> None:
    model = exact_model(prediction, sigma=8.0 if prediction == "denoiser" else 0.8, mu=mu)
    y = torch.log(sampled(model, 8192, **options)).double()
    std = VARIANCE.double().sqrt()
    # The prior has one variance for all features, which at sigma = 0.8 moves the deviations by up
    # to 3 %.
    assert float(((y.mean(0) - MEAN).abs() / std).max()) < 0.06
    assert float((y.std(0) / std - 1).abs().max()) < 0.06


@pytest.mark.parametrize("mu", [0.0, None, 0.8])
def test_the_start_has_the_moments_of_noised_data(mu: float | None) -> None:
    """Those of log x at the first noise level, as the network sees it."""
    model, first = exact_model("hyvarinen", mu=mu), []
    model.net = Wrapped(
        model.net, lambda call, x, f: first.append(x.clone()) if call == 0 else None
    )
    sampled(model, 8192, steps=10)
    t = 0.9
    y = torch.log(first[0]).double()
    std = (0.64 * t + model.variance) ** 0.5
    expected = MEAN.double() + model.process.log_drift * t
    assert float((y.mean(0) - expected).abs().max()) < 4.5 * std / 8192**0.5
    assert float((y.std(0) / std - 1).abs().max()) < 4.5 / (2 * 8192) ** 0.5


def test_samples_are_in_the_range_of_the_data() -> None:
    samples = sampled(images(), 20, steps=4)
    assert samples.shape == (20, 1, 8, 8)
    assert samples.dtype == torch.float32
    assert not samples.requires_grad
    assert float(samples.min()) >= 0
    assert float(samples.max()) <= 1
    assert float(samples.std()) > 0.05


# ---- outputs ----


def test_outputs(tmp_path: Path) -> None:
    model = vectors()
    options: dict[str, Any] = {"seed": 5, "start": 3, "steps": 4, "batch_size": 16}
    expected = sampled(model, 40, **options)
    tensor, array, strided = torch.empty(40, 3), np.empty((40, 3), np.float32), torch.empty(3, 40).T
    assert sampled(model, 40, out=tensor, **options) is tensor
    sampled(model, 40, out=array, **options)
    sampled(model, 40, out=strided, **options)
    path = tmp_path / "new" / "samples.npy"
    returned = sampled(model, 40, out=path, **options)
    sampled(model, 40, out=str(tmp_path / "text.npy"), **options)
    for got in (
        tensor,
        torch.from_numpy(array),
        strided,
        returned,
        torch.cat(list(iterate(model, 40, **options))),
    ):
        assert torch.equal(got, expected)
    for file in (path, tmp_path / "text.npy"):
        stored = np.load(file)
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, expected.numpy())
    manifest = json.loads((tmp_path / "new" / "samples.npy.json").read_text())
    expected_items = {
        "n": 40,
        "start": 3,
        "seed": 5,
        "shape": [3],
        "dtype": "float32",
        "bounds": None,
        "label": None,
        "condition": {},
        "guidance": 1.0,
        "stream": "philox-v1",
        "solver": "DPMSolverPP2M(eta=1.0)",
        "nfe": 4,
        "batch_size": 16,
        "first": 0,
        "compile": False,
        "precision": "fp32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": "cpu",
        "fastmsgm": fastmsgm.__version__,
    }
    assert manifest.items() >= expected_items.items()
    others = {"model", "plan", "backend", "chunks", "frame", "sha256"}
    assert manifest.keys() - expected_items.keys() == others
    assert manifest["backend"] in ("cpu", "reference")


def iterate(model: GBMModel, n: int, **options: Any) -> Generator[Tensor, None, None]:
    chunks = sample_iter(model, n, **{"progress": False, **options})
    return cast(Generator[Tensor, None, None], chunks)  # it can be closed


def test_sample_iter_yields_whole_chunks_of_the_stream() -> None:
    lengths = [len(chunk) for chunk in iterate(vectors(), 40, start=10, steps=2, batch_size=16)]
    assert lengths == [6, 16, 16, 2]  # 10-15, 16-31, 32-47, 48-49


def test_a_model_by_its_folder(tmp_path: Path) -> None:
    model = vectors()
    model.save(tmp_path)
    assert torch.equal(sampled(tmp_path, 5, steps=3, device="cpu"), sampled(model, 5, steps=3))


# ---- failures ----


def failing(
    model: GBMModel, nfe: int, chunk: int, step: int, indices: list[int], value: float
) -> GBMModel:
    """Return the model, whose network returns ``value`` for some samples at a step of a chunk."""

    def watch(call: int, x: Tensor, f: Tensor) -> Tensor:
        broken = f.clone()
        if call == chunk * nfe + step:
            broken[indices, 1] = value
        return broken

    model.net = Wrapped(model.net, watch)
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("output", ["tensor", "file"])
@pytest.mark.parametrize("prediction", ["denoiser", "hyvarinen"])
def test_non_finite_values_name_step_and_samples(
    value: float, output: str, prediction: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"seed": 1, "start": 5, "steps": 6, "batch_size": 16}
    expected = sampled(vectors(prediction), 60, **options)
    out = tmp_path / "samples.npy" if output == "file" else torch.full((60, 3), -7.0)
    model = failing(vectors(prediction).train(), 6, chunk=2, step=3, indices=[2, 9], value=value)
    with pytest.raises(
        NonFiniteError, match=r"state at step 3 in 2 samples \(34, 41\): the network"
    ) as caught:
        sampled(model, 60, out=out, **options)
    error = caught.value
    assert error.step == 3
    assert error.indices == [34, 41]
    if isinstance(out, Path):
        assert error.samples is None
    else:
        assert error.samples is not None
        assert torch.equal(error.samples, expected[:27])  # samples 5 .. 31
    partial = tmp_path / "samples.npy.partial"
    kept = torch.from_numpy(np.load(partial)) if isinstance(out, Path) else out
    assert torch.equal(kept[:27], expected[:27])
    assert float(kept[27:].max()) <= 0  # the chunk that failed is not written
    assert model.training


def test_non_finite_at_the_first_and_at_the_last_step() -> None:
    for step in (0, 4):
        model = failing(vectors(), 5, chunk=0, step=step, indices=[0], value=float("nan"))
        with pytest.raises(NonFiniteError, match=f"at step {step} in 1 samples") as caught:
            sampled(model, 3, steps=5, batch_size=8)
        assert caught.value.samples is not None
        assert len(caught.value.samples) == 0


class Narrow(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return x[:, :1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": -5}, ValueError, "n must be at least 1, got -5"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"start": -1}, ValueError, "start must be at least 0, got -1"),
        ({"seed": -1}, ValueError, r"seed must be in 0 \.\. 2\^64 - 1, got -1"),
        ({"seed": 2**64}, ValueError, r"seed must be in 0 \.\. 2\^64 - 1, got 1844674407370955161"),
        (
            {"solver": "rk45"},
            ValueError,
            r"solver must be one of euler, heun, dpm\+\+2m, .*, got 'rk45' for a GBM model",
        ),
        ({"solver": Heun}, TypeError, "solver must be a name or a Solver, got <class"),
        ({"model": "no-such-model"}, ValueError, "model must be one of .*, got 'no-such-model'"),
        (
            {"model": 3},
            TypeError,
            "model must be a ScoreModel, a name, a path or a function, got int",
        ),
        ({"model": MLP(3)}, TypeError, "a function with process=.*, got MLP alone"),
        (
            {"out": torch.empty(4, 2)},
            ValueError,
            r"out must be float32 of shape \(4, 3\), got torch\.float32 \(4, 2\)",
        ),
        (
            {"out": np.empty((4, 3))},
            ValueError,
            r"out must be float32 of shape \(4, 3\), got torch\.float64",
        ),
        (
            {"out": "samples.txt"},
            ValueError,
            r"out must be a path that ends in \.npy or \.npz, or a folder .*, got 'samples\.txt'",
        ),
        ({"out": [1.0]}, TypeError, "out must be a tensor, an array or a path, got list"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    options = {"model": vectors(), "n": 4, "steps": 2, **options}
    with pytest.raises(error, match=message):
        sampled(options.pop("model"), options.pop("n"), **options)


@pytest.mark.parametrize("name", ["n", "steps", "seed", "start", "label", "batch_size"])
@pytest.mark.parametrize("value", [2.0, 1.5, True, "2", [2]])
def test_counts_are_integers(name: str, value: object) -> None:
    """A bool and a float are refused, by sample_iter before its first chunk."""
    options: dict[str, Any] = {"n": 4, "steps": 2, name: value}
    message = rf"{name} must be an int, got {re.escape(repr(value))} \({type(value).__name__}\)"
    error: type[Exception] = TypeError
    if name == "label" and value == [2]:  # labels, one for each sample
        error, message = (
            ValueError,
            r"label must have shape \(4,\), one for each sample, got \(1,\)",
        )
    if name == "seed" and value == [2]:
        message = "seed must be one int, got a list"
    for call in (sample, sample_iter):
        with pytest.raises(error, match=message):
            call(class_model(), progress=False, **options)


@pytest.mark.parametrize("name", ["n", "steps", "seed", "start", "label", "batch_size"])
def test_counts_may_be_numpy_integers(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"n": 4, "steps": 2, "batch_size": 8, "progress": False}
    expected = sample(class_model(), **{**options, name: 2})
    out = tmp_path / "samples.npy"
    assert torch.equal(sample(class_model(), **{**options, name: np.int64(2)}, out=out), expected)
    manifest = json.loads(Path(f"{out}.json").read_text())
    assert manifest[{"steps": "nfe"}.get(name, name)] == 2


def class_model() -> GBMModel:
    """A class-conditional model of three features and three classes."""
    torch.manual_seed(0)
    net, labels = MLP(3, 8, 1, classes=3), torch.arange(60) % 3
    return GBMModel.for_data(net, GBM(5.0), log_normal_data(60), labels=labels, classes=3).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"start": -1},
        {"solver": "rk45"},
        {"steps": 0},
        {"batch_size": 0},
        {"label": 1},
    ],
)
def test_a_bad_argument_leaves_an_old_file_alone(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "samples.npy"
    np.save(path, np.ones(3))
    with pytest.raises(ValueError, match="must be"):
        sampled(vectors(), 4, **{"steps": 2, "out": path, **options})
    assert np.load(path).tolist() == [1, 1, 1]


def test_compiling_what_cannot_be_compiled_leaves_an_old_file_alone(tmp_path: Path) -> None:
    path, manifest = tmp_path / "samples.npy", tmp_path / "samples.npy.json"
    np.save(path, np.ones(3))
    manifest.write_text("{}")
    with pytest.raises(ValueError, match="compile must be False for this solver"):
        sampled("cauchy-vp", 4, steps=2, compile=True, out=path)
    with pytest.raises(ValueError, match="compile must be False for this solver"):
        sample_iter("cauchy-vp", 4, steps=2, compile=True)
    with pytest.raises(TypeError, match="callback must be a function of a Step or None, got int"):
        sampled("cauchy-vp", 4, steps=2, out=path, callback=3)
    assert np.load(path).tolist() == [1, 1, 1]
    assert manifest.read_text() == "{}"


def test_a_network_with_another_output_shape() -> None:
    model = vectors().train()
    model.net = Narrow()
    with pytest.raises(
        ValueError, match=r"net must return its input's shape \(8, 3\), got \(8, 1\)"
    ):
        sampled(model, 4, steps=2, batch_size=8)
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_the_training_flag_is_restored(training: bool) -> None:
    model, seen = vectors(), []
    model.net = Wrapped(model.net, lambda call, x, f: seen.append(model.training))
    model.train(training)
    sampled(model, 4, steps=2)
    assert model.training is training
    chunks = iterate(model, 40, steps=2, batch_size=8)
    next(chunks)
    chunks.close()
    assert model.training is training
    assert seen == [False] * 4


# ---- steps and their cost ----


@dataclass(frozen=True)
class Counting(DPMSolverPP2M):
    """Counts its plans."""

    plans: ClassVar[list[GBMPlan]] = []

    def plan(self, preconditioning: Any, steps: int) -> GBMPlan:
        self.plans.append(plan := super().plan(preconditioning, steps))
        return plan


@pytest.mark.parametrize("by", ["name", "object", "default"])
def test_the_solver_is_resolved_and_the_plan_made_once_per_call(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several chunks, by sample and by sample_iter."""
    model, resolved, states = vectors(), list[object](), list[object]()
    resolve, state = job.resolve, GBMPlan.state

    def remember_resolve(solver: Any, *arguments: Any, **options: Any) -> Any:
        resolved.append(solver)
        return resolve(solver, *arguments, **options)

    def remember_state(self: GBMPlan, *arguments: Any) -> Any:
        states.append(self)
        return state(self, *arguments)

    monkeypatch.setattr(job, "resolve", remember_resolve)
    monkeypatch.setattr(GBMPlan, "state", remember_state)
    monkeypatch.setattr(GBMModel, "solvers", {**GBMModel.solvers, "counting": Counting})
    monkeypatch.setattr(GBMModel, "default_solver", Counting())
    monkeypatch.setattr(Counting, "plans", [])
    solver: Any = {"name": "counting", "object": Counting(), "default": None}[by]
    options: dict[str, Any] = {"steps": 3, "batch_size": 4, "solver": solver, "progress": False}
    for k, call in enumerate((sample, lambda *a, **o: list(sample_iter(*a, **o))), 1):
        call(model, 20, **options)
        assert len(resolved) == len(Counting.plans) == len(states) == k
    assert states == Counting.plans


@pytest.mark.parametrize(
    ("solver", "steps", "nfe"),
    [
        ("dpm++2m", 5, 5),
        ("er-sde-2", 1, 1),
        ("heun", 5, 9),
        ("heun", 1, 1),
        ("dale-langevin", 5, 4),
        (None, 6, 6),
        (DaleLangevin(inner=3), 5, 12),
    ],
)
def test_network_calls(solver: Any, steps: int, nfe: int) -> None:
    """Every call is needed for the samples; a denoiser is not called at noise level 0."""
    model = vectors()
    model.net = Wrapped(model.net, lambda call, x, f: None)
    sampled(model, 20, steps=steps, solver=solver, batch_size=8)
    assert model.net.calls == 3 * nfe


@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
def test_network_calls_of_the_paper_solvers(prediction: str) -> None:
    model = exact_model(prediction)
    model.net = Wrapped(model.net, lambda call, x, f: torch.zeros_like(f))
    sampled(model, 20, steps=5, solver=DaleLangevin(inner=2, tweedie=3), batch_size=32)
    assert model.net.calls == 2 * 5 + 3


@pytest.mark.parametrize("solver", ["dpm++2m", "heun", "dale-langevin"])
def test_callback_sees_every_step_and_changes_nothing(solver: str) -> None:
    options: dict[str, Any] = {"steps": 4, "solver": solver, "batch_size": 16, "start": 8}
    model, steps = images(), list[tuple[int, int, int, float]]()

    def callback(step: Step) -> None:
        steps.append((step.first, step.index, step.nfe, step.noise_level))
        last.update(x=step.x.clone(), denoised=step.denoised)
        step.x.fill_(-1)
        if step.denoised is not None:
            last["denoised"] = step.denoised.clone()
            step.denoised.zero_()

    last: dict[str, Tensor | None] = {}
    samples = sampled(model, 20, callback=callback, **options)
    assert torch.equal(samples, sampled(model, 20, **options))
    nfe = {"dpm++2m": 4, "heun": 7, "dale-langevin": 3}[solver]
    assert [s[:3] for s in steps] == [(first, k, nfe) for first in (0, 16) for k in range(nfe + 1)]
    noise_levels = [s[3] for s in steps[: nfe + 1]]
    assert noise_levels == sorted(noise_levels, reverse=True)
    assert noise_levels[-1] == 0
    assert noise_levels[0] == pytest.approx(8.0 if solver != "dale-langevin" else 8 * 0.75**0.5)
    # In the units of the process the last state is the sample plus the offset; it is denoised.
    assert last["x"] is not None
    assert torch.equal((last["x"] - 1).clamp(0, 1)[:12], samples[8:])
    if solver == "dale-langevin":
        assert last["denoised"] is None
    else:
        assert last["denoised"] is not None
        torch.testing.assert_close(last["denoised"], last["x"])


@pytest.mark.parametrize("prediction", ["denoiser", "hyvarinen"])
def test_the_denoised_state_keeps_the_signs_of_the_data(prediction: str) -> None:
    data, steps = log_normal_data(200) * torch.tensor([-1.0, 1.0, -1.0]), list[Step]()
    torch.manual_seed(0)
    process = GBM(5.0 if prediction == "denoiser" else 0.8)
    model = GBMModel.for_data(MLP(3, 16, 2), process, data, prediction=prediction)
    sampled(model, 8, steps=4, solver="dpm++2m", batch_size=8, callback=steps.append)
    assert steps[-1].denoised is not None
    torch.testing.assert_close(steps[-1].denoised, steps[-1].x)


class Calls(TorchDispatchMode):
    """Counts operator calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] = self.calls.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.calls.values())


class Memory(TorchDispatchMode):
    """Keeps the largest number of bytes of tensors that were alive at a time.

    Args:
        outside: A tensor whose bytes do not count.
    """

    def __init__(self, outside: Tensor | None = None) -> None:
        super().__init__()
        self.alive, self.peak = WeakIdKeyDictionary(), 0
        self.outside = None if outside is None else outside.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.alive[leaf] = True
        storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in self.alive)}
        self.peak = max(
            self.peak, sum(size for where, size in storages.items() if where != self.outside)
        )
        return result


@pytest.mark.parametrize(
    ("build", "solver"),
    [
        *itertools.product(
            (vectors, images, lambda: images("bf16")),
            ("dpm++2m", "sde-dpm++2m", "heun", "dale-langevin"),
        ),
        (lambda: exact_model("score"), "dale-langevin"),
        (lambda: exact_model("score"), "sign-agnostic"),
    ],
)
def test_operator_calls_per_step_are_the_networks_and_one(
    build: Callable[[], GBMModel], solver: str
) -> None:
    model, network, counts = build(), Calls(), []
    model_input, c = torch.ones(16, *model.shape, dtype=model.input_dtype), torch.zeros(16)
    with torch.no_grad(), network:
        model(model_input, c)
    for steps in (4, 9):
        with Calls() as count:
            sampled(model, 10, steps=steps, solver=solver, batch_size=16)
        counts.append(count)
    rows = 5 * (2 if solver == "heun" else 1)
    assert network.total > 5
    assert counts[1].total - counts[0].total == rows * (network.total + 1)
    step = "fastmsgm.gbm_step_.default"
    assert counts[1].calls[step] - counts[0].calls[step] == rows
    assert counts[1].calls["fastmsgm.gbm_perturb_.default"] == 1


def test_peak_memory_does_not_grow_with_n() -> None:
    model = images()
    peaks = []
    for n in (64, 320):
        out = torch.empty(n, 1, 8, 8)
        with Memory(out) as memory:
            sampled(model, n, steps=3, batch_size=32, out=out)
        peaks.append(memory.peak)
        with Memory() as memory:
            sampled(model, n, steps=3, batch_size=32)
        assert memory.peak == peaks[-1] + out.nbytes
    assert peaks[0] == peaks[1]
    # At least the state, the network's input and prev_denoised were counted.
    assert peaks[0] > 3 * 32 * 64 * 4


# ---- around a run ----


def test_only_the_wanted_samples_must_be_finite() -> None:
    model = failing(vectors(), 2, chunk=0, step=0, indices=[3, 9], value=float("nan"))
    assert sampled(model, 5, start=4, steps=2, batch_size=16).isfinite().all()
    model = failing(vectors(), 2, chunk=0, step=0, indices=[3, 9], value=float("nan"))
    with pytest.raises(NonFiniteError, match=r"in 1 samples \(9\)"):
        sampled(model, 6, start=4, steps=2, batch_size=16)


def test_a_read_only_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "old.npy", np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match="out must be writable"):
        sampled(vectors(), 4, steps=2, out=np.load(tmp_path / "old.npy", mmap_mode="r"))


def test_a_module_that_was_frozen_stays_so() -> None:
    model = vectors().train()
    model.net.out.eval()
    sampled(model, 4, steps=2)
    assert model.net.training
    assert not model.net.out.training


def test_a_channels_last_model() -> None:
    torch.manual_seed(0)
    data = torch.rand(20, 8, 8, 3).permute(0, 3, 1, 2)
    model = GBMModel.for_data(UNet(3, 16, 32, 1, 2), GBM(8.0), data, offset=1.0).eval()
    expected = sampled(model, 4, steps=2, batch_size=8)
    torch.testing.assert_close(
        sampled(model.to(memory_format=torch.channels_last), 4, steps=2, batch_size=8), expected
    )


def test_a_nonfinite_sample_does_not_spoil_the_next_chunk() -> None:
    """Samples 0 .. 2 of the first chunk are not wanted, so that their NaN is no error."""
    model = vectors()

    def fail(call: int, x: Tensor, f: Tensor) -> None:
        if call < 2:
            f[0] = torch.nan

    model.net = Wrapped(model.net, fail)
    assert bool(sampled(model, 5, start=3, steps=2, batch_size=4).isfinite().all())
