"""The first run on a real GPU: every kernel against the CPU's, bandwidth, no waiting, graph capture. A line each.

    python bench/gpu_first_run.py        under ten minutes; exit status 1 if a line says FAIL

Nothing here has been run before it is run on a GPU: ``gpu_first_run.md`` says what each line means and what to do
where one fails.
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
from fastmsgm import ops, rng, roofline, simulated
from fastmsgm.loop import Loop
from fastmsgm.nets import MLP
from fastmsgm.sampling import plan_for
from fastmsgm.walks import walk_of

Line = tuple[str, bool, str]
DIMENSIONS = (2, 3, 4, 63, 130, 784, 1024, 3072, 16384)
CUDA = torch.device("cuda")
OFTEN, ALWAYS, SHARE = 1e-5, 1e-3, 0.999  # differences from the CPU: of nearly all elements, and of all
BANDWIDTH = 0.85  # the share of the copy's bandwidth that a memory-bound kernel must reach
CLOSE = 1.15  # measured over modelled
MODELLED = {  # operations of the roofline: kernel and form in the table of machine code
    "fill_normal": ("fill_normal", ""), "gbm_step": ("gbm_step", "float32"), "egd_step": ("egd_step", ""),
}  # fmt: skip


# ---- every kernel against the CPU's ----


def cases(d: int) -> Iterator[tuple[str, Callable[..., object], dict[str, Any]]]:
    """Name, operation and arguments on the CPU, of n samples of d features."""
    n = max(3, 2**16 // d)
    torch.manual_seed(d)
    x, f, history = 1 + torch.rand(n, d), torch.randn(n, d), 0.1 * torch.randn(n, d)
    stream, bad = rng.stream(2**63 + 5, 2**32 - 2), torch.full((n,), -1, dtype=torch.int32)
    noise = {"stream": stream, "kind": int(rng.Kind.TRAINING_NOISE), "step": 7}
    yield "fill_normal", ops.fill_normal_, {"out": torch.empty(n, d), **noise}
    outputs = {"x_t": torch.empty(n, d), "net_in": torch.empty(n, d), "z": torch.empty(n, d)}
    coefficients = torch.tensor([0.1, 0.8, 0.5]).repeat(n, 1)
    yield "gbm_perturb", ops.gbm_perturb_, {"x0": x.clone(), "coefficients": coefficients, **noise, **outputs}
    table = torch.tensor([[0.8, 0.2, -0.1, 0.01, 0.2, 0.5, 0.1, 0.0, 1.3]])
    common = {"f": f, "table": table, "stream": stream, "step": 0}
    for stein, linear, log_state in ((0, 0, 0), (1, 1, 0), (0, 0, 1), (1, 1, 1)):
        kept = {"history": history.clone(), "net_in": torch.empty(n, d)} if log_state else {}
        flags = {"stein": bool(stein), "linear": bool(linear), "log_state": bool(log_state)}
        lost = {"x": x.clone(), "bad": bad.clone()}
        lost["x"][1, 0] = math.inf
        arguments = {**common, **lost, "history": None, "net_in": None, **kept, **flags}
        yield f"gbm_step {flags}", ops.gbm_step_, arguments
    half = {"f": f.bfloat16(), "x": x.clone(), "bad": bad.clone(), "history": None, "net_in": None}
    flags = {"stein": False, "linear": False, "log_state": False}
    yield "gbm_step of bfloat16", ops.gbm_step_, {**common, **half, **flags}
    w, g = torch.randn(n * d), torch.randn(n * d)
    yield "egd_step", ops.egd_step_, {"w": w, "g": g, "lr": torch.tensor([1e-2])}
    u = torch.nn.functional.normalize(torch.randn(n, d), dim=1)
    numbers = torch.tensor([3.5, 0.6, 1.2, math.sqrt(d)]).repeat(n, 1)
    laws = torch.linspace(0.2, 1.8, 2 * 9 * 65).view(2, 9, 65)
    outputs = {name: torch.empty(n, d) for name in ("u_t", "net_in", "target")}
    address = {"stream": stream, "step": 7}
    given = {"u0": u.clone(), "coefficients": numbers, "table": laws, **address, **outputs}
    yield "rotation_perturb", ops.rotation_perturb_, given
    law = torch.tensor([[0.6, 0.05, 0.3, 0.8, 0.2, 0.3, 0.4, 0.7, 1.1]])
    for geodesic in (False, True):
        angles = None if geodesic else torch.linspace(0.2, 1.8, 257)[None]
        kept = {"bad": bad.clone(), "history": history.clone(), "net_in": torch.empty(n, d), "geodesic": geodesic}
        arguments = {"u": u.clone(), **common, "table": law, "angles": angles, **kept}
        yield f"rotation_step {'geodesic' if geodesic else 'flow'}", ops.rotation_step_, arguments
    for noisy in (False, True):
        kept = {"bad": bad.clone(), "history": None, "net_in": torch.empty(n, d), "restart": False, "noisy": noisy}
        arguments = {"x": u.clone(), **common, "table": torch.tensor([[0.3, 0.4, 1.1]]), **kept}
        yield f"ring_step {'with' if noisy else 'without'} noise", ops.ring_step_, arguments


def correctness() -> Iterator[Line]:
    worst: dict[str, tuple[float, float, int]] = {}
    for d in DIMENSIONS:
        for name, operation, arguments in cases(d):
            there = {k: v.to(CUDA, copy=True) if isinstance(v, Tensor) else v for k, v in arguments.items()}
            operation(**arguments)
            operation(**there)
            for argument, here in arguments.items():
                if not isinstance(here, Tensor):
                    continue
                far_from = (there[argument].cpu().float() - here.float()).abs() / here.float().abs().clamp(min=1)
                lost = here.isnan() & there[argument].cpu().isnan()
                off = torch.where(lost, 0.0, far_from)
                close, far = float((off <= OFTEN).float().mean()), float(off.nan_to_num(math.inf).max())
                often, largest, at = worst.get(name, (1.0, -1.0, d))
                worst[name] = min(often, close), max(largest, far), d if far > largest else at
    for name, (often, largest, d) in worst.items():
        good = often >= SHARE and largest <= ALWAYS
        yield f"{name} is the CPU's", good, f"{often:.3%} within {OFTEN}, largest difference {largest:.1e} at d = {d}"


# ---- how fast ----


def bandwidth() -> Iterator[Line]:
    card = torch.cuda.get_device_name()
    copy, *others = roofline.measured(CUDA)
    gigabytes = copy.bytes * roofline.N * roofline.D / copy.seconds / 1e9
    yield "copy bandwidth", True, f"{gigabytes:.0f} GB/s on {card}"
    for m in others:
        share = m.limit / m.seconds
        yield f"{m.name} reaches the memory", share >= BANDWIDTH, f"{1e6 * m.seconds:.0f} us, {share:.0%} of the copy's"
        model = roofline.modelled_seconds(*MODELLED[m.name], card) if m.name in MODELLED else None
        if model is not None:
            ratio = m.seconds / (model * roofline.N * roofline.D)
            yield f"{m.name} is as modelled", ratio <= CLOSE, f"measured {ratio:.2f} times the modelled time"


# ---- the loop ----


def models() -> Iterator[tuple[str, fastmsgm.ScoreModel]]:
    torch.manual_seed(0)
    x = simulated.correlated_cauchy(1000, 16)
    yield "gbm", fastmsgm.GBMModel.for_data(MLP(16), fastmsgm.GBM(5.0), x.abs() + 0.1)
    yield "rotation", fastmsgm.RotationModel.for_data(MLP(16, conditions=2), fastmsgm.Rotation(), x)
    ring = fastmsgm.Rotation(noise="ring", beta_max=200.0)
    yield "ring", fastmsgm.RotationModel.for_data(MLP(16, conditions=2), ring, x)


def loops() -> Iterator[Line]:
    for name, model in models():
        model = model.to(CUDA).eval()
        loop = Loop(walk_of(model, plan_for(model, None, 6), 256), compiled=False)
        with torch.no_grad():
            loop.run(rng.stream(1, 0, CUDA))
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                loop.steps()
                waits = ""
            except RuntimeError as error:
                waits = str(error)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        yield f"{name}: no step waits for the device", not waits, waits or "no synchronisation in 6 steps"
        options = {"n": 1024, "steps": 6, "batch_size": 256, "seed": 3, "progress": False}
        eager = fastmsgm.sample(model, **options)
        captured = fastmsgm.sample(model, compile=True, **options)
        off = float(((captured - eager).abs() / eager.abs().clamp(min=1)).max())
        yield f"{name}: captured, four chunks are the same", off <= ALWAYS, f"largest difference {off:.1e}"


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was run")
        return 2
    began, failed = time.monotonic(), 0
    for part in (correctness, bandwidth, loops):
        for name, good, detail in part():
            failed += not good
            print(f"{'PASS' if good else 'FAIL'}  {name}: {detail}", flush=True)
    print(f"{failed} failed, {time.monotonic() - began:.0f} s")
    print(f"for races and stray accesses: compute-sanitizer --tool racecheck (or memcheck) python {sys.argv[0]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
