"""The machine code of the Triton kernels, compiled on a machine without a GPU, and what can be read off it.

The launchers run as they are, on CPU tensors, under a driver that only names a target: what they would launch is
compiled and disassembled. Triton must not have been imported for its interpreter, so this has its own process:

    python tests/machine_code.py sm_80 sm_90 sm_100 gfx942

prints a line of CSV for each variant and target. Code is straight, so instructions are those of a warp's one pass.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

from fastmsgm import rng
from fastmsgm.kernels import gbm, ring, rotation

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}  # fmt: skip
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A launcher with arguments, and the features in a program of so many threads."""

    kernel: str
    form: str
    launch: Callable[[], None]
    features: Callable[[int], int]


@dataclasses.dataclass(frozen=True)
class Code:
    """What is read off: a thread's global ``loads`` and ``stores`` by width in bits, ``stack``, ``shared`` in bytes."""

    instructions: int
    threads: int
    registers: int
    spills: int
    stack: int
    shared: int
    branches: int
    barriers: int
    loads: Counter[int]
    stores: Counter[int]


def variants(d: int) -> Iterator[Variant]:
    """Of every kernel, the forms that differ in more than a few instructions; the network speaks bfloat16."""
    n = 64
    x, f, net_in = torch.empty(n, d), torch.empty(n, d, dtype=torch.bfloat16), torch.empty(n, d, dtype=torch.bfloat16)
    past, stream, bad = torch.empty(n, d), rng.stream(0), torch.full((n,), -1, dtype=torch.int32)
    table = torch.empty(8, 9)

    def gbm_variant(kernel: str, form: str, *arguments: Any) -> Variant:
        launch = functools.partial(getattr(gbm, kernel), *arguments)
        return Variant(kernel, form, launch, lambda threads: 4 * gbm.QUADS)

    noise = (stream, rng.Kind.TRAINING_NOISE, 3)
    yield gbm_variant("fill_normal", "", x, *noise)
    yield gbm_variant("gbm_perturb", "x_t", x, torch.empty(n, 3), *noise, x, None, None)
    yield gbm_variant("gbm_perturb", "net_in z", x, torch.empty(n, 3), *noise, None, net_in, past)
    for form in ("", "stein", "linear", "log", "log net_in", "log net_in history", "log linear net_in history"):
        flags = ("stein" in form, "linear" in form, "log" in form)
        outputs = (past if "history" in form else None, net_in if "net_in" in form else None)
        yield gbm_variant("gbm_step", form, x, f, table, stream, 2, bad, x, *outputs, *flags)

    def row_variant(module: ModuleType, kernel: str, form: str, *arguments: Any) -> Variant:
        launch = functools.partial(getattr(module, kernel), *arguments)
        return Variant(kernel, form, launch, lambda threads: threads // module.launch_shape(d)[1] * d)

    coefficients, laws = torch.empty(n, 4), torch.empty(2, 9, 65)
    yield row_variant(rotation, "rotation_perturb", "", x, coefficients, laws, stream, 3, None, net_in, past)
    for form in ("", "history", "angles", "angles history", "geodesic", "geodesic history"):
        angles = torch.empty(8, 65) if "angles" in form else None
        outputs = (past if "history" in form else None, net_in, "geodesic" in form)
        yield row_variant(rotation, "rotation_step", form, x, f, table, angles, stream, 2, bad, x, *outputs)
    for form in ("lie", "strang", "strang history", "strang restart"):
        outputs = (past if form in ("strang history", "strang restart") else None, net_in)
        flags = ("restart" in form, "strang" in form)
        table = torch.empty(8, 3)
        yield row_variant(ring, "ring_step", form, x, f, table, stream, 2, bad, x, *outputs, *flags)


class _Driver:
    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)  # the key of a kernel's compiled variants

    def get_current_stream(self, device: str) -> int:
        return 0


def compiled(launch: Callable[[], None], target: GPUTarget) -> CompiledKernel:
    """The one kernel that ``launch`` launches."""
    kernels = []

    def warm_up(kernel: JITFunction, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: kernels.append(kernel.warmup(*args, grid=grid, **options))

    driver.set_active(_Driver(target))  # pyright: ignore[reportArgumentType]
    with (
        mock.patch.object(JITFunction, "__getitem__", warm_up),
        mock.patch.object(rotation, "WARP", target.warp_size),
        mock.patch.object(ring, "WARP", target.warp_size),
    ):
        launch()
    (kernel,) = kernels
    return kernel


def read(kernel: CompiledKernel) -> Code:
    """What the machine code says, by the tools in Triton's wheel, or, for AMD, by the assembly that Triton returns."""
    read_backend = _read_amd if kernel.metadata.target.backend == "hip" else _read_nvidia
    threads = kernel.metadata.num_warps * kernel.metadata.target.warp_size
    return Code(threads=threads, shared=kernel.metadata.shared, **read_backend(kernel))


def _read_nvidia(kernel: CompiledKernel) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = _output(_TOOLS / "nvdisasm", "-c", file.name)
        usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _output(_TOOLS / "cuobjdump", "-res-usage", file.name)))
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([\w.]+)", text, re.MULTILINE)
    while code[-1] == "NOP" or code[-1].startswith("BRA"):  # behind the end: a jump to itself, and padding
        code.pop()
    loads, stores = (Counter(_bits(op) for op in code if op.startswith(name)) for name in ("LDG", "STG"))
    return {
        "instructions": len(code),
        "registers": int(usage["REG"]),
        "spills": sum(op.startswith(("LDL", "STL")) for op in code),
        "stack": int(usage["STACK"]) + int(usage["LOCAL"]),
        "branches": sum(op.split(".")[0] in ("BRA", "BRX", "JMP", "CALL", "RET") for op in code),
        "barriers": sum(op.startswith("BAR") for op in code),
        "loads": loads,
        "stores": stores,
    }


def _bits(op: str) -> int:
    match = re.search(r"\.[US]?(8|16|64|128)\b", op)
    return int(match[1]) if match else 32


def _read_amd(kernel: CompiledKernel) -> dict[str, Any]:
    text = kernel.asm["amdgcn"]
    usage = {name: int(value) for name, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    body = text[: text.index("s_endpgm")]  # the last instruction; what follows is data
    code = re.findall(r"^\t([a-z]\w+)", body, re.MULTILINE)
    return {
        "instructions": len(code),
        "registers": usage["vgpr_count"],
        "spills": usage["vgpr_spill_count"] + usage["sgpr_spill_count"],
        "stack": usage["private_segment_fixed_size"],
        "branches": sum(op.startswith(("s_cbranch", "s_branch", "s_setpc", "s_swappc")) for op in code),
        "barriers": code.count("s_barrier"),
        "loads": Counter(_amd_bits(op) for op in code if re.match("(global|buffer|flat)_load", op)),
        "stores": Counter(_amd_bits(op) for op in code if re.match("(global|buffer|flat)_store", op)),
    }


def _amd_bits(op: str) -> int:
    names = {"ubyte": 8, "byte": 8, "ushort": 16, "short": 16, "dword": 32}
    width = op.split("_")[2]
    return names.get(width) or 32 * int(width.removeprefix("dwordx"))


def _output(tool: Path, *arguments: str) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _cell(value: int | Counter[int]) -> int | str:
    return value if isinstance(value, int) else " ".join(f"{count}x{bits}" for bits, count in sorted(value.items()))


def main() -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    fields = [field.name for field in dataclasses.fields(Code)]
    writer.writerow(("target", "kernel", "form", "d", "instructions_per_feature", *fields))
    for target, variant in itertools.product(sys.argv[1:], variants(784)):
        code = read(compiled(variant.launch, TARGETS[target]))
        each = code.instructions * code.threads / variant.features(code.threads)
        cells = (_cell(getattr(code, name)) for name in fields)
        writer.writerow((target, variant.kernel, variant.form, 784, f"{each:.1f}", *cells))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
