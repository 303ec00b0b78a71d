"""The machine code of the Triton kernels, compiled on a machine without a GPU, and what can be read off it.

The launchers run as they are, on CPU tensors, under a driver that only names a target: what they would launch is
compiled and disassembled. Triton must not have been imported for its interpreter, so this has its own process:

    python tests/machine_code.py > kernels/machine_code.csv

writes the table that ``bench/machine_code.csv`` is a link to; with ``--json`` it prints all that
``test_machine_code.py`` judges, the same of kernels that were spoilt on purpose among it.

Code is straight, so instructions are those of a warp's one pass. ``bytes_per_element`` are those of whole arrays and of
the numbers that every row has. ``array_loads`` and ``array_stores`` are the accesses by which a thread reads and writes
its elements of every array once, by their width in bits; ``loads`` and ``stores`` are all that there are. Instructions
by pipe are those of the machine model: a 64-bit product is two of its 32-bit ones.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import io
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from elftools.elf.elffile import ELFFile
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

from fastmsgm import rng
from fastmsgm.kernels import gbm, maths, optim, philox, ring, ring_rows, rotation, rows

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}  # fmt: skip
D = 784
_MUTANT_D = {"rotation_perturb": 64, "rotation_step": 64, "ring_step": 128}  # whose code for 784 takes long to compile
_WORKERS = 2
_INSTRUCTION = 16  # bytes, of NVIDIA's
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_PIPES = {
    "fp32": ("FFMA", "FMUL", "FADD", "HFMA2"),
    "imad": ("IMAD",),
    "alu": ("LOP3", "IADD3", "VIADD", "LEA", "SHF", "I2F", "F2FP", "SEL", "FSEL", "ISETP", "FSETP", "FMNMX", "IMNMX",
            "VIMNMX", "PRMT", "MOV", "CS2R", "PLOP3", "P2R", "SGXT", "IABS"),
    "special": ("MUFU", "FRND", "F2I"),
    "shared": ("SHFL", "LDS", "STS"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variant:
    """A launcher with arguments, what of a program of so many threads it takes (elements of it, quads of a thread), and
    the arrays by their names, with what bytes every row has besides."""

    kernel: str
    form: str
    launch: Callable[[], None]
    share: Callable[[int], tuple[int, int]]
    reads: dict[str, Tensor]
    writes: dict[str, Tensor]
    row_bytes: int = 0


def variants(d: int, n: int = 64, stream: Tensor | None = None, step: int = 2, shift: int = 0) -> Iterator[Variant]:
    """Of every kernel, the forms that differ in more than a few instructions; the network speaks bfloat16 but in one.

    Args:
        shift: where in its memory every array begins, in elements.
    """

    def array(dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(n * d + shift, dtype=dtype)[shift:].view(n, d)

    stream = rng.stream(0) if stream is None else stream
    bad, table = torch.full((n,), -1, dtype=torch.int32), torch.empty(step + 1, 9)
    x, past, f, net_in = array(), array(), array(torch.bfloat16), array(torch.bfloat16)

    def flat(threads: int) -> tuple[int, int]:
        return 4 * gbm.QUADS, gbm.QUADS // threads

    def whole_rows(module: ModuleType, threads: int) -> tuple[int, int]:
        lanes = module.launch_shape(d)[1]
        return threads // lanes * d, -(-d // (4 * lanes))

    noise = (stream, rng.Kind.TRAINING_NOISE, step)
    launch = functools.partial(gbm.fill_normal, x, *noise)
    yield Variant("fill_normal", "", launch, flat, {}, {"out": x})
    coefficients = torch.empty(n, 3)
    launch = functools.partial(gbm.gbm_perturb, x, coefficients, *noise, x, None, None)
    yield Variant("gbm_perturb", "x_t", launch, flat, {"x0": x}, {"x_t": x}, 12)
    launch = functools.partial(gbm.gbm_perturb, x, coefficients, *noise, None, net_in, past)
    yield Variant("gbm_perturb", "net_in z", launch, flat, {"x0": x}, {"net_in": net_in, "z": past}, 12)
    for form in (
        "",
        "float32",
        "linear",
        "log",
        "log float32",
        "log net_in",
        "log net_in history",
        "log linear net_in history",
    ):
        flags = (False, "linear" in form, "log" in form)
        g = past if "float32" in form else f
        outputs = _outputs(form, past, net_in)
        launch = functools.partial(
            gbm.gbm_step, x, g, table, stream, step, bad, x, outputs.get("history"), outputs.get("net_in"), *flags
        )
        reads = {"x": x, "f": g, **({"history": past} if "history" in form else {})}
        yield Variant("gbm_step", form, launch, flat, reads, {"out": x, **outputs})

    share = functools.partial(whole_rows, rotation)
    arguments = (torch.empty(n, 4), torch.empty(2, 9, 65), stream, step)
    launch = functools.partial(rotation.rotation_perturb, x, *arguments, None, net_in, past)
    yield Variant("rotation_perturb", "", launch, share, {"u0": x}, {"net_in": net_in, "target": past}, 16)
    for form in ("", "float32", "history", "angles history", "geodesic history"):
        angles, geodesic = torch.empty(step + 1, 65) if "angles" in form else None, "geodesic" in form
        g = past if form == "float32" else f
        outputs = _outputs(form + " net_in", past, array() if form == "float32" else net_in)
        launch = functools.partial(
            rotation.rotation_step, x, g, table, angles, stream, step, bad, x,
            outputs.get("history"), outputs["net_in"], geodesic,
        )  # fmt: skip
        reads = {"u": x, "f": g, **({"history": past} if "history" in form else {})}
        yield Variant("rotation_step", form, launch, share, reads, {"out": x, **outputs})

    share, table = functools.partial(whole_rows, ring), torch.empty(step + 1, 3)
    for form in ("flow history", "noise", "noise restart history"):
        outputs = _outputs(form + " net_in", past, net_in)
        launch = functools.partial(
            ring.ring_step, x, f, table, stream, step, bad, x, outputs.get("history"), outputs["net_in"],
            "restart" in form, "noise" in form,
        )  # fmt: skip
        restart = {"history": outputs.pop("history")} if "restart" in form else {}
        yield Variant("ring_step", form, launch, share, {"x": x, "f": f, **restart}, {"out": x, **outputs})

    launch = functools.partial(optim.egd_step, x.view(-1), past.view(-1), torch.empty(1))
    yield Variant(
        "egd_step",
        "",
        launch,
        lambda threads: (optim.BLOCK, optim.BLOCK // (4 * threads)),
        {"w": x, "g": past},
        {"w": x},
    )


def _outputs(form: str, history: Tensor, net_in: Tensor) -> dict[str, Tensor]:
    return {name: array for name, array in (("history", history), ("net_in", net_in)) if name in form.split()}


# ---- what is compiled ----


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


def usage(kernel: CompiledKernel) -> dict[str, int]:
    """``registers`` of a thread; ``stack`` and ``shared`` in bytes; ``spills``, where code does not show them."""
    if kernel.metadata.target.backend == "hip":
        found = dict(re.findall(r"^\s+\.(\w+):\s+(\d+)$", kernel.asm["amdgcn"], re.MULTILINE))
        registers, stack = int(found["vgpr_count"]), int(found["private_segment_fixed_size"])
        spills = {"spills": int(found["vgpr_spill_count"]) + int(found["sgpr_spill_count"])}
    else:
        text = _output(_TOOLS / "cuobjdump", "-res-usage", data=kernel.asm["cubin"])
        found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
        registers, stack, spills = int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"]), {}
    return {"registers": registers, **spills, "stack": stack, "shared": kernel.metadata.shared}


# ---- instructions ----


def image(kernel: CompiledKernel) -> bytes | str:
    """The machine code; for AMD, the assembly that Triton returns."""
    if kernel.metadata.target.backend == "hip":
        text = kernel.asm["amdgcn"]
        # Up to the first label, arguments are loaded if the loader of kernels has not done so; behind the end is data.
        return re.sub(r"\A.*?\n\ts_branch \.LBB\d+_0\n", "", text[: text.index("s_endpgm")], count=1, flags=re.DOTALL)
    sections = ELFFile(io.BytesIO(kernel.asm["cubin"])).iter_sections()
    (code,) = (section.data() for section in sections if section.name.startswith(".text."))
    return code


def operations(images: Sequence[Any], target: GPUTarget) -> list[list[str]]:
    """The operations of every image. All are disassembled at once: the tool takes a third of a second to start."""
    if target.backend == "hip":
        return [re.findall(r"^\t([a-z]\w+)", text, re.MULTILINE) for text in images]
    architecture = f"SM{target.arch}{'a' if int(target.arch) >= 90 else ''}"
    text = _output(_TOOLS / "nvdisasm", "--binary", architecture, data=b"".join(images))
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([\w.]+)", text, re.MULTILINE)
    ends = list(itertools.accumulate(len(image) // _INSTRUCTION for image in images))
    assert len(code) == ends[-1]
    return [_without_end(code[start:end]) for start, end in zip((0, *ends), ends, strict=False)]


def _without_end(code: list[str]) -> list[str]:
    """Code without what is behind its end: a jump to itself, and padding."""
    while code[-1] == "NOP" or code[-1].startswith("BRA"):
        code = code[:-1]
    return code


def of_nvidia(code: list[str]) -> dict[str, Any]:
    """What is counted of operations; accesses of global memory by their width in bits."""
    loads, stores = (Counter(_bits(op) for op in code if op.startswith(name)) for name in ("LDG", "STG"))
    return {
        "spills": sum(op.startswith(("LDL", "STL")) for op in code),
        "branches": sum(op.split(".")[0] in ("BRA", "BRX", "JMP", "CALL", "RET") for op in code),
        "barriers": sum(op.startswith("BAR") for op in code),
        "loads": _widths(loads),
        "stores": _widths(stores),
        **{
            f"pipe_{name}": sum((2 if ".WIDE" in op else 1) * op.startswith(ops) for op in code)
            for name, ops in _PIPES.items()
        },
    }


def _bits(op: str) -> int:
    match = re.search(r"\.[US]?(8|16|64|128)\b", op)
    return int(match[1]) if match else 32


def of_amd(code: list[str]) -> dict[str, Any]:
    """``of_nvidia``, without pipes."""
    loads, stores = (
        Counter(_amd_bits(op) for op in code if re.match(f"(global|buffer|flat)_{kind}", op))
        for kind in ("load", "store")
    )
    return {
        "branches": sum(op.startswith(("s_cbranch", "s_branch", "s_setpc", "s_swappc")) for op in code),
        "barriers": code.count("s_barrier"),
        "loads": _widths(loads),
        "stores": _widths(stores),
        **{f"pipe_{name}": 0 for name in _PIPES},
    }


def _amd_bits(op: str) -> int:
    names = {"ubyte": 8, "byte": 8, "ushort": 16, "short": 16, "dword": 32}
    width = op.split("_")[2]
    return names.get(width) or 32 * int(width.removeprefix("dwordx"))


def _output(tool: Path, *arguments: str, data: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return subprocess.run([tool, *arguments, file.name], capture_output=True, text=True, check=True).stdout


def accesses(kernel: CompiledKernel) -> dict[str, dict[str, bool]]:
    """By "load" and "store", the arguments that are accessed, and whether always at an offset of 64 bits."""
    text = kernel.asm["ttir"]
    defined = {name: line for name, line in re.findall(r"^\s*(%\w+)(?::\d+)? = (.*)$", text, re.MULTILINE)}
    found: dict[str, dict[str, bool]] = {"load": {}, "store": {}}
    for kind, name in re.findall(r"tt\.(load|store) (%\w+)", text):
        wide = False
        while name in defined:
            wide |= (
                defined[name].startswith("tt.addptr")
                and re.search(r", (tensor<[\dx]+x)?i64", defined[name]) is not None
            )
            match = re.match(r"[\w.]+ (%\w+)", defined[name])
            assert match, defined[name]
            name = match[1]
        argument = name.removeprefix("%").removesuffix("_ptr")
        found[kind][argument] = wide and found[kind].get(argument, True)
    return found


# ---- what is spoilt ----

_Mutation = tuple[JITFunction, str, str]  # a function, and what of its text becomes what

_SINE = (
    maths.sine_cosine,
    "return _polynomial(f * f, _SIN, 3) * f, _polynomial(f * f, _COS, 3)",
    "return tl.sin(f * 0.7853981633974483), tl.cos(f * 0.7853981633974483)",
)
_NORMALS = (
    philox.normals,
    "x, y = box_muller(tl.join(word0, word2), tl.join(word1, word3), scale)",
    "seed, pairs = tl.load(stream_ptr), tl.join(4 * quad, 4 * quad + 2)\n"
    "    x, y = tl.randn(seed, pairs), tl.randn(seed, pairs + 1)",
)
_FOUR_NORMALS = (
    ring._noise,
    "z2, z3 = box_muller(word2, word3, noise)",
    "seed = tl.load(stream_ptr)\n"
    "    z0, z1 = tl.randn(seed, quad), tl.randn(seed, quad + 1)\n"
    "    z2, z3 = tl.randn(seed, quad + 2), tl.randn(seed, quad + 3)",
)
_NARROW = (".to(tl.int64)", "")


def _noisy(normals: _Mutation, mask: _Mutation, rows_of: JITFunction) -> dict[str, _Mutation]:
    """What applies to a kernel with noise."""
    return {"randn": normals, "sine": _SINE, "mask": mask, "rows": (rows_of, *_NARROW)}


_QUADS = _noisy(_NORMALS, (gbm._tile, "mask = exists[:, None]", "mask = offsets + 1 < (n - first_row) * D"), gbm._tile)
_WHOLE_ROWS = _noisy(_NORMALS, (rows.store, "(column < D)", "(column + 1 < D)"), rows.tile)
_RINGS = _noisy(_FOUR_NORMALS, (ring_rows.store, "(feature < D)", "(feature + 1 < D)"), ring_rows.tile)
_WEIGHTS = {
    "mask": (optim._egd_step_kernel, "lane < whole", "lane < count"),
    "rows": (optim._egd_step_kernel, *_NARROW),
}
# Beside "unaligned", which is of every kernel and changes the launch.
_MUTATIONS: dict[tuple[str, str], dict[str, _Mutation]] = {
    ("fill_normal", ""): _QUADS,
    ("gbm_perturb", "x_t"): _QUADS,
    ("gbm_step", ""): _QUADS,
    ("rotation_perturb", ""): _WHOLE_ROWS,
    ("rotation_step", "angles history"): _WHOLE_ROWS,
    ("ring_step", "noise"): _RINGS,
    ("egd_step", ""): _WEIGHTS,
}


def _spoil(function: JITFunction, old: str, new: str) -> None:
    assert old in function.src, f"{old!r} is not in the text of {function.fn.__name__}"
    function._unsafe_update_src(function.src.replace(old, new))


# ---- tables ----

_Task = tuple[str, str, str, str, int]  # mutant, target, kernel, form, d
_COLUMNS = (
    "mutant", "target", "kernel", "form", "d", "instructions_per_element", "bytes_per_element", "instructions",
    "threads", "registers", "spills", "stack", "shared", "branches", "barriers", "loads", "stores", "array_loads",
    "array_stores", "written", "wide_offsets", *(f"pipe_{name}" for name in _PIPES),
)  # fmt: skip


def _row(task: _Task) -> dict[str, Any]:
    """A line of the table but for what is counted of operations, and the ``image``, threads and elements of a program.
    A mutant changes the process that it is made in."""
    mutant, target, kernel, form, d = task
    if mutant not in ("", "unaligned"):
        _spoil(*_MUTATIONS[kernel, form][mutant])
    of_d = variants(d, shift=int(mutant == "unaligned"))
    variant = next(v for v in of_d if (v.kernel, v.form) == (kernel, form))
    machine_code = compiled(variant.launch, TARGETS[target])
    threads = machine_code.metadata.num_warps * TARGETS[target].warp_size
    found = accesses(machine_code)
    elements, quads = variant.share(threads)
    arrays = [*variant.reads.values(), *variant.writes.values()]
    kinds = (("load", variant.reads), ("store", variant.writes))
    return {
        "mutant": mutant, "target": target, "kernel": kernel, "form": form, "d": d,
        "bytes_per_element": f"{sum(array.itemsize for array in arrays) + variant.row_bytes / d:.3f}",
        "threads": threads, **usage(machine_code),
        "array_loads": _widths(_of_quads(variant.reads, quads)),
        "array_stores": _widths(_of_quads(variant.writes, quads)),
        "written": " ".join(sorted(found["store"])),
        "wide_offsets": int(all(found[kind].get(name, False) for kind, names in kinds for name in names)),
        "elements": elements, "image": image(machine_code),
    }  # fmt: skip


def _lines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what is counted of operations."""
    lines = []
    for name in dict.fromkeys(row["target"] for row in rows):
        target, of_target = TARGETS[name], [row for row in rows if row["target"] == name]
        counted = of_amd if target.backend == "hip" else of_nvidia
        for row, code in zip(of_target, operations([row["image"] for row in of_target], target), strict=True):
            per_element = f"{len(code) * row['threads'] / row['elements']:.2f}"
            line = {**row, **counted(code), "instructions": len(code), "instructions_per_element": per_element}
            lines.append({column: line[column] for column in _COLUMNS})
    return lines


def _of_quads(arrays: dict[str, Tensor], quads: int) -> Counter[int]:
    """A thread's accesses to so many quads of every array, each at once."""
    widths = Counter()
    for array in arrays.values():
        widths[4 * 8 * array.itemsize] += quads
    return widths


def _widths(counts: Counter[int]) -> str:
    return " ".join(f"{count}x{bits}" for bits, count in sorted(counts.items()))


def _launches(kernel: str) -> dict[str, Any]:
    """How many variants steps, seeds and batches compile of a kernel's form, for so many classes of (d, dtype)."""
    driver.set_active(_Driver(TARGETS["sm_90"]))  # pyright: ignore[reportArgumentType]
    functions, classes = [], set()

    def warm_up(function: JITFunction, grid: tuple[int, ...]) -> Callable[..., None]:
        functions.append(function)
        return lambda *args, **options: function.warmup(*args, grid=grid, **options)

    (form,) = (form for name, form in _MUTATIONS if name == kernel)
    with mock.patch.object(JITFunction, "__getitem__", warm_up):
        for d, (n, seed) in itertools.product((8, 64), ((1, 0), (16, 1), (100, 2**64 - 1))):
            streams = rng.by_step(rng.stream(seed, start=seed % 7), 50)
            for step in range(50):
                # The step is counted on the host, or stands in the stream.
                for arguments in ((rng.stream(seed), step), (streams[step], 0)):
                    variant = next(v for v in variants(d, n, *arguments) if (v.kernel, v.form) == (kernel, form))
                    variant.launch()
            classes.add(d if kernel != "egd_step" else "any")  # whose rows are no constants
    (function,) = set(functions)
    (cache,) = function.device_caches.values()
    return {"kernel": kernel, "classes": len(classes), "variants": len(cache[0])}


def _codes() -> list[_Task]:
    """Every variant on every target."""
    return [("", target, v.kernel, v.form, D) for target, v in itertools.product(TARGETS, variants(D))]


def _mutants() -> list[_Task]:
    """One variant of every kernel on one target, spoilt in every way that applies."""
    return [
        (mutant, "sm_90", kernel, form, _MUTANT_D.get(kernel, D))
        for (kernel, form), mutations in _MUTATIONS.items()
        for mutant in ("unaligned", *mutations)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for target in ("sm_90", "gfx942"):  # what compilers do once, every process would do
        _row(("", target, "egd_step", "", 8))
    optim._egd_step_kernel.device_caches.clear()  # whose variants are counted
    with multiprocessing.get_context("fork").Pool(_WORKERS, maxtasksperchild=1) as pool:
        codes = pool.map_async(_row, _codes(), chunksize=1)
        if options.json:
            mutants = pool.map_async(_row, _mutants(), chunksize=1)
            launches = pool.map_async(_launches, [kernel for kernel, _ in _MUTATIONS], chunksize=1)
            found = {"codes": _lines(codes.get()), "mutants": _lines(mutants.get()), "launches": launches.get()}
            json.dump(found, sys.stdout)
        else:
            writer = csv.DictWriter(sys.stdout, _COLUMNS[1:], extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(_lines(codes.get()))


if __name__ == "__main__":
    main()
