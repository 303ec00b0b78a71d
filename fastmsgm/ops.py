"""The seam: every operation as a torch.library op, and the only place that chooses a backend.

``FASTMSGM_BACKEND=reference|cpu|triton`` names a backend, which then works or raises; without it a CUDA tensor goes to
the Triton kernels, a CPU tensor to the numba kernels, anything else (or where they
fail to import) to ``reference``.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
from types import ModuleType

import torch
from torch import Tensor

from fastmsgm import reference

_log = logging.getLogger("fastmsgm")
_PACKAGES = {"reference": "fastmsgm.reference", "cpu": "fastmsgm.kernels.cpu", "triton": "fastmsgm.kernels"}
OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of a network


def backend(device_type: str) -> str:
    """The name of the backend that runs on a device type ("cpu", "cuda", ...)."""
    named = os.environ.get("FASTMSGM_BACKEND")
    if named:
        if named not in _PACKAGES:
            raise ValueError(f"FASTMSGM_BACKEND must be one of {', '.join(_PACKAGES)}, got {named!r}")
        return named
    automatic = {"cpu": "cpu", "cuda": "triton"}.get(device_type, "reference")
    return automatic if _import_error(automatic) is None else "reference"


@functools.cache
def _import_error(name: str) -> Exception | None:
    try:
        _module(name, "gbm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: numba finds no folder that it may cache in
        _log.warning("the %s kernels cannot be used (%s): the plain reference runs instead, slower", name, error)
        return error
    return None


def _kernels(tensor: Tensor, family: str = "gbm") -> ModuleType:
    return _module(backend(tensor.device.type), family)


def _module(name: str, family: str) -> ModuleType:
    return importlib.import_module(f"{_PACKAGES[name]}.{family}")


# ---- the ops: no argument has a default, since torch 2.11 loses trailing ones that are written to ----


@torch.library.custom_op("fastmsgm::fill_normal_", mutates_args=("out",))
def fill_normal_(out: Tensor, stream: Tensor, kind: int, step: int) -> None:
    """Fill ``out`` (n, ...) float32 with the normals of ``kind`` at ``step``; row 0 is sample ``stream[1]``."""
    _check_state("out", out)
    _check_stream(stream, out)
    _kernels(out).fill_normal(_rows(out), stream, kind, step)


@torch.library.custom_op("fastmsgm::gbm_perturb_", mutates_args=("x_t", "net_in", "z"))
def gbm_perturb_(
    x0: Tensor, coefficients: Tensor, stream: Tensor, kind: int, step: int,
    x_t: Tensor | None, net_in: Tensor | None, z: Tensor | None,
) -> None:  # fmt: skip
    """Noise x0 once: x_t = x0 exp(shift + s z), the network's input c_in log|x_t|, and z, each where given.

    Args:
        x0: (n, ...) float32.
        coefficients: (n, 3) float32: shift, s, c_in of each sample.
        stream, kind, step: the noise's address (``fastmsgm.rng``).
        x_t, z: like x0.    net_in: like x0, in the network's dtype.
    """
    _check_state("x0", x0)
    if coefficients.shape != (x0.shape[0], 3):
        raise ValueError(f"coefficients must have shape ({x0.shape[0]}, 3), got {tuple(coefficients.shape)}")
    _check_dtype("coefficients", coefficients)
    _check_stream(stream, x0)
    for name, tensor in (("x_t", x_t), ("z", z)):
        _check_like(name, tensor, "x0", x0)
    _check_like("net_in", net_in, "x0", x0, OUTPUT_DTYPES)
    outputs = (None if t is None else _rows(t) for t in (x_t, net_in, z))
    _kernels(x0).gbm_perturb(_rows(x0), coefficients.contiguous(), stream, kind, step, *outputs)


@torch.library.custom_op("fastmsgm::gbm_step_", mutates_args=("x", "bad", "history", "net_in"))
def gbm_step_(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, stein: bool, linear: bool, log_state: bool,
) -> None:  # fmt: skip
    """One reverse step of geometric Brownian motion, in place; the arguments are those of ``reference.gbm_step``."""
    _check_gbm_step(x, f, table, stream, step, bad, history, net_in, log_state)
    rows = _rows(x)
    _step(rows, f, table, stream, step, bad, rows, history, net_in, stein, linear, log_state)


@torch.library.custom_op("fastmsgm::gbm_step", mutates_args=("bad", "history", "net_in"))
def gbm_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, stein: bool, linear: bool, log_state: bool,
) -> Tensor:  # fmt: skip
    """``gbm_step_`` out of place: x stays as it is and the new state is returned."""
    _check_gbm_step(x, f, table, stream, step, bad, history, net_in, log_state)
    out = torch.empty_like(x)
    _step(_rows(x), f, table, stream, step, bad, _rows(out), history, net_in, stein, linear, log_state)
    return out


def _step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, stein: bool, linear: bool, log_state: bool,
) -> None:  # fmt: skip
    history, net_in = (None if t is None else _rows(t) for t in (history, net_in))
    f = f.reshape(x.shape).contiguous()  # a view, unless the output is strided (channels-last colour images): one copy
    _kernels(x).gbm_step(x, f, table, stream, step, bad, out, history, net_in, stein, linear, log_state)


@torch.library.custom_op("fastmsgm::rotation_perturb_", mutates_args=("u_t", "net_in", "target"))
def rotation_perturb_(
    u0: Tensor, coefficients: Tensor, table: Tensor, stream: Tensor, step: int,
    u_t: Tensor | None, net_in: Tensor | None, target: Tensor | None,
) -> None:  # fmt: skip
    """Noise directions once by the heat kernel of the sphere: u_t, the network's input c_in u_t, and the target of
    denoising score matching, each where given (``reference.rotation_perturb``).

    Args:
        u0: (n, ...) float32, at least two features; divided by its norm.
        coefficients: (n, 4) float32: fractional row of the table, spread, target's scale, c_in of each sample.
        table: (2, NB, NZ) float32: V and g.
        stream, step: the noise's address (``fastmsgm.rng``).
        u_t, target: like u0.    net_in: like u0, in the network's dtype.
    """
    _check_directions("u0", u0)
    if coefficients.shape != (u0.shape[0], 4):
        raise ValueError(f"coefficients must have shape ({u0.shape[0]}, 4), got {tuple(coefficients.shape)}")
    _check_dtype("coefficients", coefficients)
    _check_angles("table", table, (2, "NB", "NZ"), u0)
    _check_stream(stream, u0)
    for name, tensor in (("u_t", u_t), ("target", target)):
        _check_like(name, tensor, "u0", u0)
    _check_like("net_in", net_in, "u0", u0, OUTPUT_DTYPES)
    outputs = (None if t is None else _rows(t) for t in (u_t, net_in, target))
    _kernels(u0, "rotation").rotation_perturb(
        _rows(u0), coefficients.contiguous(), table, stream, step, *outputs
    )  # fmt: skip


@torch.library.custom_op("fastmsgm::rotation_step_", mutates_args=("u", "bad", "history", "net_in"))
def rotation_step_(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    """One reverse step of a rotation, in place; the arguments are those of ``reference.rotation_step``."""
    _check_rotation_step(u, f, table, angles, stream, step, bad, history, net_in, geodesic)
    rows = _rows(u)
    _rotation_step(rows, f, table, angles, stream, step, bad, rows, history, net_in, geodesic)


@torch.library.custom_op("fastmsgm::rotation_step", mutates_args=("bad", "history", "net_in"))
def rotation_step(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> Tensor:  # fmt: skip
    """``rotation_step_`` out of place: u stays as it is and the new directions are returned."""
    _check_rotation_step(u, f, table, angles, stream, step, bad, history, net_in, geodesic)
    out = torch.empty_like(u)
    _rotation_step(_rows(u), f, table, angles, stream, step, bad, _rows(out), history, net_in, geodesic)
    return out


def _rotation_step(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    history, net_in = (None if t is None else _rows(t) for t in (history, net_in))
    f = f.reshape(u.shape).contiguous()  # a copy only where the network's output is strided
    _kernels(u, "rotation").rotation_step(
        u, f, table, angles, stream, step, bad, out, history, net_in, geodesic
    )  # fmt: skip


@torch.library.custom_op("fastmsgm::ring_step_", mutates_args=("x", "bad", "history", "net_in"))
def ring_step_(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, strang: bool,
) -> None:  # fmt: skip
    """One reverse step of rotations around a ring, in place; the arguments are those of ``reference.ring_step``."""
    _check_ring_step(x, f, table, stream, step, bad, history, net_in, restart)
    rows = _rows(x)
    _ring_step(rows, f, table, stream, step, bad, rows, history, net_in, restart, strang)


@torch.library.custom_op("fastmsgm::ring_step", mutates_args=("bad", "history", "net_in"))
def ring_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, strang: bool,
) -> Tensor:  # fmt: skip
    """``ring_step_`` out of place: x stays as it is and the new states are returned."""
    _check_ring_step(x, f, table, stream, step, bad, history, net_in, restart)
    out = torch.empty_like(x)
    _ring_step(_rows(x), f, table, stream, step, bad, _rows(out), history, net_in, restart, strang)
    return out


def _ring_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, strang: bool,
) -> None:  # fmt: skip
    history, net_in = (None if t is None else _rows(t) for t in (history, net_in))
    f = f.reshape(x.shape).contiguous()  # a copy only where the network's output is strided
    _kernels(x, "ring").ring_step(x, f, table, stream, step, bad, out, history, net_in, restart, strang)


for _op in (fill_normal_, gbm_perturb_, gbm_step_, rotation_perturb_, rotation_step_, ring_step_):
    _op.register_fake(lambda *_, **__: None)
gbm_step.register_fake(lambda x, *_, **__: torch.empty_like(x))
rotation_step.register_fake(lambda u, *_, **__: torch.empty_like(u))
ring_step.register_fake(lambda x, *_, **__: torch.empty_like(x))


# ---- what may enter ----


def _rows(x: Tensor) -> Tensor:
    return x.view(x.shape[0], math.prod(x.shape[1:]))


def _check_dtype(name: str, x: Tensor, allowed: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
    if x.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{name} must be {names}, got {x.dtype}: convert it with .float()")


def _check_state(name: str, x: Tensor) -> None:
    _check_dtype(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name} must have shape (n, ...) with at least one feature axis, got {tuple(x.shape)}")
    if not x.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got strides {x.stride()} for {tuple(x.shape)}: call .contiguous()"
        )


def _check_like(
    name: str, tensor: Tensor | None, other_name: str, other: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)
) -> None:
    if tensor is None:
        return
    _check_dtype(name, tensor, dtypes)
    if tensor.shape != other.shape or tensor.device != other.device:
        raise ValueError(
            f"{name} must match {other_name} {tuple(other.shape)} on {other.device}, "
            f"got {tuple(tensor.shape)} on {tensor.device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}: call .contiguous()")


def _check_stream(stream: Tensor, x: Tensor) -> None:
    if stream.shape != (2,) or stream.dtype != torch.int64 or stream.device != x.device:
        raise ValueError(
            f"stream must be int64 of shape (2,) on {x.device}, got {stream.dtype} {tuple(stream.shape)} on "
            f"{stream.device}: make it with rng.stream"
        )


def _check_gbm_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, history: Tensor | None,
    net_in: Tensor | None, log_state: bool,
) -> None:  # fmt: skip
    _check_state("x", x)
    _check_step("x", x, f, table, reference.COLUMNS, stream, step, bad, history, net_in)
    if not log_state and not (history is None and net_in is None):
        raise ValueError("history and net_in need the logarithm of the state: give log_state=True")


def _check_rotation_step(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    _check_directions("u", u)
    _check_step("u", u, f, table, reference.ROTATION_COLUMNS, stream, step, bad, history, net_in)
    if angles is not None:
        _check_angles("angles", angles, (table.shape[0], "NZ"), u)
        if geodesic:
            raise ValueError("angles are for heat-kernel noise, which a geodesic step has none of: give angles=None")


def _check_ring_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, history: Tensor | None,
    net_in: Tensor | None, restart: bool,
) -> None:  # fmt: skip
    _check_directions("x", x)
    _check_step("x", x, f, table, reference.RING_COLUMNS, stream, step, bad, history, net_in)
    if restart and history is None:
        raise ValueError("restart starts from history, got None: give what the step without restart wrote to")


def _check_directions(name: str, u: Tensor) -> None:
    _check_state(name, u)
    if math.prod(u.shape[1:]) < 2:
        raise ValueError(f"{name} must have at least 2 features, since one has no directions; got {tuple(u.shape)}")


def _check_angles(name: str, table: Tensor, shape: tuple[int | str, ...], u: Tensor) -> None:
    """A table over the angle's normal, its sizes given or named; a named one is at least 2."""
    fits = len(table.shape) == len(shape) and all(
        size >= 2 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(table.shape, shape, strict=True)
    )
    if not fits or table.dtype != torch.float32 or not table.is_contiguous() or table.device != u.device:
        sizes = ", ".join(map(str, shape))
        raise ValueError(
            f"{name} must be float32 of shape ({sizes}), contiguous on {u.device}, with at least 2 nodes an axis, got "
            f"{table.dtype} {tuple(table.shape)} with strides {table.stride()} on {table.device}"
        )


def _check_step(
    name: str, x: Tensor, f: Tensor, table: Tensor, columns: tuple[str, ...], stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None,
) -> None:  # fmt: skip
    _check_stream(stream, x)
    if f.shape != x.shape:
        raise ValueError(f"f, the network's output, must have the state's shape {tuple(x.shape)}, got {tuple(f.shape)}")
    if f.device != x.device:
        raise ValueError(f"f, the network's output, must be on the state's device {x.device}, got {f.device}")
    if f.dtype not in OUTPUT_DTYPES:
        raise TypeError(f"f, the network's output, must be float32, bfloat16 or float16, got {f.dtype}")
    if table.shape[1:] != (len(columns),) or table.dtype != torch.float32 or not table.is_contiguous():
        raise ValueError(
            f"table must be float32 of shape (T, {len(columns)}), contiguous, "
            f"got {table.dtype} {tuple(table.shape)} with strides {table.stride()}"
        )
    if not 0 <= step < table.shape[0]:
        raise ValueError(f"step must be a row of the table, 0 .. {table.shape[0] - 1}, got {step}")
    if bad.shape != x.shape[:1] or bad.dtype != torch.int32:
        raise ValueError(f"bad must be int32 of shape ({x.shape[0]},), got {bad.dtype} {tuple(bad.shape)}")
    if not bad.is_contiguous():
        raise ValueError(f"bad must be contiguous, got strides {bad.stride()}: call .contiguous()")
    _check_like("history", history, name, x)
    _check_like("net_in", net_in, name, x, OUTPUT_DTYPES)
