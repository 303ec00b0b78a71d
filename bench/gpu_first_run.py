"""The first run on a real GPU: kernels against the CPU, bandwidth, synchronisation, graph capture.

    python -m bench.gpu_first_run        under ten minutes; exit status 1 if a line says FAIL

It prints one line per check; ``gpu_first_run.md`` explains the lines and what to do if one fails.
It has not run on a GPU yet.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import fastmsgm
from fastmsgm import ops, rng
from fastmsgm.data import synthetic
from fastmsgm.gbm.state import GBMStepFlags
from fastmsgm.loop import Loop
from fastmsgm.nets import MLP
from fastmsgm.sampling import plan_for
from fastmsgm.tools import roofline

Line = tuple[str, bool, str]  # name, whether it passed, details
DIMENSIONS = (2, 3, 4, 63, 130, 784, 1024, 3072, 16384)
CUDA = torch.device("cuda")
# Differences from the CPU: at least SHARE of all elements within CLOSE, all of them within LARGEST.
CLOSE, LARGEST, SHARE = 1e-5, 1e-3, 0.999
BANDWIDTH = 0.85  # share of the copy's bandwidth that a memory-bound kernel must reach
OVER_MODEL = 1.15  # largest measured time over modelled time
MODELLED = {  # operations of the roofline: kernel and variant in the table of machine code
    "fill_normal": ("fill_normal", ""),
    "gbm_step": ("gbm_step", "float32"),
    "egd_step": ("egd_step", ""),
}


# ---- every kernel against the CPU ----


def cases(d: int) -> Iterator[tuple[str, Callable[..., object], dict[str, Any]]]:
    """Yield name, operation and arguments on the CPU, for samples of d features."""
    n = max(3, 2**16 // d)
    torch.manual_seed(d)
    x, f, prev_denoised = 1 + torch.rand(n, d), torch.randn(n, d), 0.1 * torch.randn(n, d)
    stream = rng.stream(2**63 + 5, 2**32 - 2)
    first_nonfinite_step = torch.full((n,), -1, dtype=torch.int32)
    noise = {"stream": stream, "purpose": int(rng.Purpose.TRAINING_NOISE), "step": 7}
    yield "fill_normal", ops.fill_normal_, {"out": torch.empty(n, d), **noise}
    outputs = {name: torch.empty(n, d) for name in ("x_t", "model_input", "z")}
    coefficients = torch.tensor([0.1, 0.8, 0.5]).repeat(n, 1)
    arguments = {"x0": x.clone(), "coefficients": coefficients, **noise, **outputs}
    yield "gbm_perturb", ops.gbm_perturb_, arguments

    def step_arguments(**others: Any) -> dict[str, Any]:
        return {
            "model_output": f,
            "stream": stream,
            "step": 0,
            "first_nonfinite_step": first_nonfinite_step.clone(),
            "model_input": torch.empty(n, d),
            **others,
        }

    table = torch.tensor([[0.8, 0.2, -0.1, 0.01, 0.2, 0.5, 0.1, 0.0, 1.3]])
    no_log = {"prev_denoised": None, "model_input": None}
    for stein_score, sign_agnostic, log_state in (
        (False, False, False),
        (True, True, False),
        (False, False, True),
        (True, True, True),
    ):
        flags = GBMStepFlags(stein_score, sign_agnostic, log_state)._asdict()
        state = x.clone()
        state[1, 0] = math.inf
        kept = {"prev_denoised": prev_denoised.clone()} if log_state else no_log
        arguments = step_arguments(x=state, table=table, **kept, **flags)
        switches = ", ".join(name for name, on in flags.items() if on) or "no flags"
        yield f"gbm_step ({switches})", ops.gbm_step_, arguments
    flags = GBMStepFlags(stein_score=False, sign_agnostic=False, log_state=False)._asdict()
    arguments = step_arguments(x=x.clone(), table=table, **no_log, **flags)
    yield "gbm_step of bfloat16", ops.gbm_step_, {**arguments, "model_output": f.bfloat16()}
    w, g = torch.randn(n * d), torch.randn(n * d)
    yield "egd_step", ops.egd_step_, {"w": w, "g": g, "lr": torch.tensor([1e-2])}
    u = torch.nn.functional.normalize(torch.randn(n, d), dim=1)
    arguments = {
        "u0": u.clone(),
        "coefficients": torch.tensor([3.5, 0.6, 1.2, math.sqrt(d)]).repeat(n, 1),
        "table": torch.linspace(0.2, 1.8, 2 * 9 * 65).view(2, 9, 65),
        "stream": stream,
        "step": 7,
        **{name: torch.empty(n, d) for name in ("u_t", "model_input", "target")},
    }
    yield "rotation_perturb", ops.rotation_perturb_, arguments
    table = torch.tensor([[0.6, 0.05, 0.3, 0.8, 0.2, 0.3, 0.4, 0.7, 1.1]])
    for geodesic in (False, True):
        angles = None if geodesic else torch.linspace(0.2, 1.8, 257)[None]
        kept = {"prev_denoised": prev_denoised.clone(), "geodesic": geodesic}
        arguments = step_arguments(u=u.clone(), table=table, angles=angles, **kept)
        yield f"rotation_step {'geodesic' if geodesic else 'flow'}", ops.rotation_step_, arguments
    table = torch.tensor([[0.3, 0.4, 1.1]])
    for noisy in (False, True):
        kept = {"step_start": None, "restart": False, "noisy": noisy}
        arguments = step_arguments(x=u.clone(), table=table, **kept)
        yield f"ring_step {'with' if noisy else 'without'} noise", ops.ring_step_, arguments


def correctness() -> Iterator[Line]:
    """Compare every case with the CPU, over all dimensions."""
    worst: dict[str, tuple[float, float, int]] = {}  # share that is close, largest difference, d
    for d in DIMENSIONS:
        for name, operation, arguments in cases(d):
            on_cuda = {
                k: v.to(CUDA, copy=True) if isinstance(v, Tensor) else v
                for k, v in arguments.items()
            }
            operation(**arguments)
            operation(**on_cuda)
            for argument, wanted in arguments.items():
                if not isinstance(wanted, Tensor):
                    continue
                got = on_cuda[argument].cpu()
                difference = (got.float() - wanted.float()).abs()
                difference = difference / wanted.float().abs().clamp(min=1)
                difference = torch.where(wanted.isnan() & got.isnan(), 0.0, difference)
                share = float((difference <= CLOSE).float().mean())
                far = float(difference.nan_to_num(math.inf).max())
                least, largest, at = worst.get(name, (1.0, -1.0, d))
                worst[name] = min(least, share), max(largest, far), d if far > largest else at
    for name, (share, largest, d) in worst.items():
        passed = share >= SHARE and largest <= LARGEST
        details = f"{share:.3%} within {CLOSE}, largest difference {largest:.1e} at d = {d}"
        yield f"{name} matches the CPU", passed, details


# ---- speed ----


def bandwidth() -> Iterator[Line]:
    """Compare the operations of the roofline with a copy and with their modelled times."""
    card = torch.cuda.get_device_name()
    copy, *others = roofline.measured(CUDA)
    gigabytes = copy.bytes * roofline.N * roofline.D / copy.seconds / 1e9
    yield "copy bandwidth", True, f"{gigabytes:.0f} GB/s on {card}"
    for m in others:
        share = m.limit / m.seconds
        details = f"{1e6 * m.seconds:.0f} us, {share:.0%} of the copy's bandwidth"
        yield f"{m.name} is bound by memory", share >= BANDWIDTH, details
        model = roofline.modelled_seconds(*MODELLED[m.name], card) if m.name in MODELLED else None
        if model is not None:
            ratio = m.seconds / (model * roofline.N * roofline.D)
            details = f"measured {ratio:.2f} times the modelled time"
            yield f"{m.name} takes the modelled time", ratio <= OVER_MODEL, details


# ---- the loop ----


def models() -> Iterator[tuple[str, fastmsgm.ScoreModel]]:
    """Yield an untrained model of every family with fused steps."""
    torch.manual_seed(0)
    x = synthetic.correlated_cauchy(1000, 16)
    yield "gbm", fastmsgm.GBMModel.for_data(MLP(16), fastmsgm.GBM(5.0), x.abs() + 0.1)
    ring = fastmsgm.Rotation(noise="ring", beta_max=200.0)
    for name, process in (("rotation", fastmsgm.Rotation()), ("ring", ring)):
        net = MLP(16, condition={"log_norm": 1})
        yield name, fastmsgm.RotationModel.for_data(net, process, x)


def loops() -> Iterator[Line]:
    """Check that no step synchronises, and that a captured loop gives the same samples."""
    for name, model in models():
        model = model.to(CUDA).eval()
        plan = plan_for(model, None, 6)
        loop = Loop(model, plan, plan.state(model, 256), compiled=False, condition={})
        with torch.no_grad():
            loop.run(rng.stream(1, 0, CUDA), {})
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                loop.steps()
                error = ""
            except RuntimeError as caught:
                error = str(caught)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        yield f"{name}: no step synchronises", not error, error or "no synchronisation in 6 steps"
        options: dict[str, Any] = {"n": 1024, "steps": 6, "batch_size": 256, "seed": 3}
        eager = fastmsgm.sample(model, progress=False, **options)
        captured = fastmsgm.sample(model, progress=False, compile=True, **options)
        largest = float(((captured - eager).abs() / eager.abs().clamp(min=1)).max())
        details = f"largest difference {largest:.1e}"
        yield f"{name}: four captured chunks match", largest <= LARGEST, details


def main() -> int:
    """Run all checks and print a line for each; return the exit status."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was run")
        return 2
    began, failed = time.monotonic(), 0
    for part in (correctness, bandwidth, loops):
        for name, passed, details in part():
            failed += not passed
            print(f"{'PASS' if passed else 'FAIL'}  {name}: {details}", flush=True)
    print(f"{failed} failed, {time.monotonic() - began:.0f} s")
    print(
        "for races and invalid accesses: compute-sanitizer --tool racecheck (or memcheck) "
        "python -m bench.gpu_first_run"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
