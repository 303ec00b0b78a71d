# pyright: reportMissingImports=false
"""Machine code of the Triton kernels, compiled without a GPU, and what is counted in it.

The launchers run as they are, on CPU tensors, under a driver that only names a target. What they
would launch is compiled and disassembled. This needs a process of its own, in which Triton was not
imported for its interpreter:

    python tests/kernels/machine_code.py > kernels/machine_code.csv

writes the table that ``bench/machine_code.csv`` is a link to. With ``--json`` it prints all that
``test_machine_code.py`` judges, which includes the same of mutants of the kernels.

Code has no branches, so instructions are those of a warp's one pass. ``bytes_per_element`` are
those of whole arrays and of the numbers that every row has. ``array_loads`` and ``array_stores``
are the accesses by which a thread reads and writes its elements of every array once, by their width
in bits; ``loads`` and ``stores`` are all that there are. Instructions by pipe are those of the
machine model: a 64-bit product is two of its 32-bit ones.
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
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
D = 784
_MUTANT_D = {
    "rotation_perturb": 64,
    "rotation_step": 64,
    "ring_step": 128,
}  # whose code for 784 takes long to compile
_WORKERS = 2
_INSTRUCTION = 16  # bytes, of NVIDIA's
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_PIPES = {
    "fp32": ("FFMA", "FMUL", "FADD", "HFMA2"),
    "imad": ("IMAD",),
    "alu": (
        "LOP3",
        "IADD3",
        "VIADD",
        "LEA",
        "SHF",
        "I2F",
        "F2FP",
        "SEL",
        "FSEL",
        "ISETP",
        "FSETP",
        "FMNMX",
        "IMNMX",
        "VIMNMX",
        "PRMT",
        "MOV",
        "CS2R",
        "PLOP3",
        "P2R",
        "SGXT",
        "IABS",
    ),
    "special": ("MUFU", "FRND", "F2I"),
    "shared": ("SHFL", "LDS", "STS"),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A kernel with one choice of its compile-time switches.

    Attributes:
        kernel: The operation.
        name: The switches, in words.
        launch: Calls the launcher with arguments.
        share: Elements of a program and quads of a thread, of a program of so many threads.
        reads: Arrays that are read, by their names.
        writes: Arrays that are written, by their names.
        row_bytes: Bytes that every row has besides.
    """

    kernel: str
    name: str
    launch: Callable[[], None]
    share: Callable[[int], tuple[int, int]]
    reads: dict[str, Tensor]
    writes: dict[str, Tensor]
    row_bytes: int = 0


def variants(
    d: int, n: int = 64, stream: Tensor | None = None, step: int = 2, shift: int = 0
) -> Iterator[Variant]:
    """Yield the variants of every kernel that differ in more than a few instructions.

    The network's dtype is bfloat16 unless the variant is called float32.

    Args:
        d: Number of features.
        n: Number of samples.
        stream: The noise stream.
        step: The step.
        shift: Where in its memory every array begins, in elements.
    """

    def array(dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(n * d + shift, dtype=dtype)[shift:].view(n, d)

    stream = rng.stream(0) if stream is None else stream
    first_nonfinite_step, table = torch.full((n,), -1, dtype=torch.int32), torch.empty(step + 1, 9)
    x, memory, f, model_input = array(), array(), array(torch.bfloat16), array(torch.bfloat16)

    def flat(threads: int) -> tuple[int, int]:
        return 4 * gbm.QUADS, gbm.QUADS // threads

    def whole_rows(module: ModuleType, threads: int) -> tuple[int, int]:
        lanes = module.launch_shape(d)[1]
        return threads // lanes * d, -(-d // (4 * lanes))

    noise = (stream, rng.Purpose.TRAINING_NOISE, step)
    launch = functools.partial(gbm.fill_normal, x, *noise)
    yield Variant("fill_normal", "", launch, flat, {}, {"out": x})
    perturb = functools.partial(gbm.gbm_perturb, x, torch.empty(n, 3), *noise)
    launch, reads = functools.partial(perturb, x, None, None), {"x0": x}
    yield Variant("gbm_perturb", "x_t", launch, flat, reads, {"x_t": x}, 12)
    launch, writes = functools.partial(perturb, None, model_input, memory), {"z": memory}
    writes = {"model_input": model_input, **writes}
    yield Variant("gbm_perturb", "model_input z", launch, flat, reads, writes, 12)

    def step_variant(
        kernel: str,
        name: str,
        step_of: Callable[..., None],
        tables: tuple[Tensor | None, ...],
        flags: tuple[bool, ...],
        share: Callable[[int], tuple[int, int]],
    ) -> Variant:
        """Return a variant of a step whose name says what it keeps and writes."""
        state = "u" if kernel == "rotation_step" else "x"
        kept_name = "step_start" if kernel == "ring_step" else "prev_denoised"
        kept = {kept_name: memory} if kept_name in name else {}
        float32, restart = "float32" in name, "restart" in name
        model_output = memory if float32 else f
        outputs = {"model_input": array() if float32 else model_input}
        if kernel == "gbm_step" and "model_input" not in name:
            outputs = {}
        launch = functools.partial(
            step_of,
            x,
            model_output,
            *tables,
            stream,
            step,
            first_nonfinite_step,
            x,
            next(iter(kept.values()), None),
            outputs.get("model_input"),
            *flags,
        )
        reads = {state: x, "model_output": model_output}
        reads |= kept if restart or kernel != "ring_step" else {}
        writes = {"out": x, **({} if restart else kept), **outputs}
        return Variant(kernel, name, launch, share, reads, writes)

    for name in (
        "",
        "float32",
        "sign_agnostic",
        "log",
        "log float32",
        "log model_input",
        "log model_input prev_denoised",
        "log sign_agnostic model_input prev_denoised",
    ):
        flags = (False, "sign_agnostic" in name, "log" in name)
        yield step_variant("gbm_step", name, gbm.gbm_step, (table,), flags, flat)

    share = functools.partial(whole_rows, rotation)
    arguments = (torch.empty(n, 4), torch.empty(2, 9, 65), stream, step)
    launch = functools.partial(rotation.rotation_perturb, x, *arguments, None, model_input, memory)
    writes = {"model_input": model_input, "target": memory}
    yield Variant("rotation_perturb", "", launch, share, {"u0": x}, writes, 16)
    for name in ("", "float32", "prev_denoised", "angles prev_denoised", "geodesic prev_denoised"):
        angles = torch.empty(step + 1, 65) if "angles" in name else None
        tables, flags = (table, angles), ("geodesic" in name,)
        yield step_variant("rotation_step", name, rotation.rotation_step, tables, flags, share)

    share, table = functools.partial(whole_rows, ring), torch.empty(step + 1, 3)
    for name in ("flow step_start", "noise", "noise restart step_start"):
        flags = ("restart" in name, "noise" in name)
        yield step_variant("ring_step", name, ring.ring_step, (table,), flags, share)

    launch = functools.partial(optim.egd_step, x.view(-1), memory.view(-1), torch.empty(1))

    def weights(threads: int) -> tuple[int, int]:
        return optim.BLOCK, optim.BLOCK // (4 * threads)

    yield Variant("egd_step", "", launch, weights, {"w": x, "g": memory}, {"w": x})


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
    """Return the one kernel that ``launch`` launches."""
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
    """Return ``registers`` of a thread, and ``stack`` and ``shared`` in bytes.

    AMD's ``spills`` are added, since its code does not show them.
    """
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
    """Return the machine code; for AMD, the assembly that Triton returns."""
    if kernel.metadata.target.backend == "hip":
        text = kernel.asm["amdgcn"]
        # Before the first label, arguments are loaded if the loader of kernels has not done so.
        # After the end there is data.
        return re.sub(
            r"\A.*?\n\ts_branch \.LBB\d+_0\n",
            "",
            text[: text.index("s_endpgm")],
            count=1,
            flags=re.DOTALL,
        )
    sections = ELFFile(io.BytesIO(kernel.asm["cubin"])).iter_sections()
    (code,) = (section.data() for section in sections if section.name.startswith(".text."))
    return code


def operations(images: Sequence[Any], target: GPUTarget) -> list[list[str]]:
    """Return the operations of every image.

    All images are disassembled at once, since the tool takes a third of a second to start.
    """
    if target.backend == "hip":
        return [re.findall(r"^\t([a-z]\w+)", text, re.MULTILINE) for text in images]
    architecture = f"SM{target.arch}{'a' if int(target.arch) >= 90 else ''}"
    text = _output(_TOOLS / "nvdisasm", "--binary", architecture, data=b"".join(images))
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([\w.]+)", text, re.MULTILINE)
    ends = list(itertools.accumulate(len(image) // _INSTRUCTION for image in images))
    assert len(code) == ends[-1]
    return [_without_end(code[start:end]) for start, end in zip((0, *ends), ends, strict=False)]


def _without_end(code: list[str]) -> list[str]:
    """Return code without what follows its end: a jump to itself, and padding."""
    while code[-1] == "NOP" or code[-1].startswith("BRA"):
        code = code[:-1]
    return code


def of_nvidia(code: list[str]) -> dict[str, Any]:
    """Count operations, and accesses of global memory by their width in bits."""
    loads, stores = (
        Counter(_bits(op) for op in code if op.startswith(name)) for name in ("LDG", "STG")
    )
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
    """Count as ``of_nvidia``, without pipes."""
    loads, stores = (
        Counter(_amd_bits(op) for op in code if re.match(f"(global|buffer|flat)_{kind}", op))
        for kind in ("load", "store")
    )
    return {
        "branches": sum(
            op.startswith(("s_cbranch", "s_branch", "s_setpc", "s_swappc")) for op in code
        ),
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
        return subprocess.run(
            [tool, *arguments, file.name], capture_output=True, text=True, check=True
        ).stdout


def accesses(kernel: CompiledKernel) -> dict[str, dict[str, bool]]:
    """Return the arguments that are accessed by "load" and "store".

    The value of each says whether it is always accessed at an offset of 64 bits.
    """
    text = kernel.asm["ttir"]
    defined = {
        name: line for name, line in re.findall(r"^\s*(%\w+)(?::\d+)? = (.*)$", text, re.MULTILINE)
    }
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


# ---- mutants ----

_Mutation = tuple[JITFunction, str, str]  # a function, text in it, and what replaces that

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
    """Return the mutations of a kernel with noise."""
    return {"randn": normals, "sine": _SINE, "mask": mask, "rows": (rows_of, *_NARROW)}


_QUADS = _noisy(
    _NORMALS,
    (gbm._tile, "mask = exists[:, None]", "mask = offsets + 1 < (n - first_row) * D"),
    gbm._tile,
)
_WHOLE_ROWS = _noisy(_NORMALS, (rows.store, "(column < D)", "(column + 1 < D)"), rows.tile)
_RINGS = _noisy(
    _FOUR_NORMALS, (ring_rows.store, "(feature < D)", "(feature + 1 < D)"), ring_rows.tile
)
_WEIGHTS = {
    "mask": (optim._egd_step_kernel, "lane < whole", "lane < count"),
    "rows": (optim._egd_step_kernel, *_NARROW),
}
# By kernel and variant; every kernel also has the mutant "unaligned", which changes the launch.
_MUTATIONS: dict[tuple[str, str], dict[str, _Mutation]] = {
    ("fill_normal", ""): _QUADS,
    ("gbm_perturb", "x_t"): _QUADS,
    ("gbm_step", ""): _QUADS,
    ("rotation_perturb", ""): _WHOLE_ROWS,
    ("rotation_step", "angles prev_denoised"): _WHOLE_ROWS,
    ("ring_step", "noise"): _RINGS,
    ("egd_step", ""): _WEIGHTS,
}


def _mutate(function: JITFunction, old: str, new: str) -> None:
    assert old in function.src, f"{old!r} is not in the text of {function.fn.__name__}"
    function._unsafe_update_src(function.src.replace(old, new))


# ---- tables ----

_Task = tuple[str, str, str, str, int]  # mutant, target, kernel, variant, d
_COLUMNS = (
    "mutant",
    "target",
    "kernel",
    "variant",
    "d",
    "instructions_per_element",
    "bytes_per_element",
    "instructions",
    "threads",
    "registers",
    "spills",
    "stack",
    "shared",
    "branches",
    "barriers",
    "loads",
    "stores",
    "array_loads",
    "array_stores",
    "written",
    "wide_offsets",
    *(f"pipe_{name}" for name in _PIPES),
)


def _row(task: _Task) -> dict[str, Any]:
    """Return a line of the table without what is counted of operations.

    The ``image``, threads and elements of a program are added. A mutant changes this process.
    """
    mutant, target, kernel, name, d = task
    if mutant not in ("", "unaligned"):
        _mutate(*_MUTATIONS[kernel, name][mutant])
    of_d = variants(d, shift=int(mutant == "unaligned"))
    variant = next(v for v in of_d if (v.kernel, v.name) == (kernel, name))
    machine_code = compiled(variant.launch, TARGETS[target])
    threads = machine_code.metadata.num_warps * TARGETS[target].warp_size
    found = accesses(machine_code)
    elements, quads = variant.share(threads)
    arrays = [*variant.reads.values(), *variant.writes.values()]
    moved = sum(array.itemsize for array in arrays) + variant.row_bytes / d
    kinds = (("load", variant.reads), ("store", variant.writes))
    return {
        "mutant": mutant,
        "target": target,
        "kernel": kernel,
        "variant": name,
        "d": d,
        "bytes_per_element": f"{moved:.3f}",
        "threads": threads,
        **usage(machine_code),
        "array_loads": _widths(_of_quads(variant.reads, quads)),
        "array_stores": _widths(_of_quads(variant.writes, quads)),
        "written": " ".join(sorted(found["store"])),
        "wide_offsets": int(
            all(found[kind].get(name, False) for kind, names in kinds for name in names)
        ),
        "elements": elements,
        "image": image(machine_code),
    }


def _lines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines with what is counted of operations."""
    lines = []
    for name in dict.fromkeys(row["target"] for row in rows):
        target, of_target = TARGETS[name], [row for row in rows if row["target"] == name]
        counted = of_amd if target.backend == "hip" else of_nvidia
        for row, code in zip(
            of_target, operations([row["image"] for row in of_target], target), strict=True
        ):
            per_element = f"{len(code) * row['threads'] / row['elements']:.2f}"
            line = {
                **row,
                **counted(code),
                "instructions": len(code),
                "instructions_per_element": per_element,
            }
            lines.append({column: line[column] for column in _COLUMNS})
    return lines


def _of_quads(arrays: dict[str, Tensor], quads: int) -> Counter[int]:
    """Count a thread's accesses to so many quads of every array, each at once."""
    widths = Counter()
    for array in arrays.values():
        widths[4 * 8 * array.itemsize] += quads
    return widths


def _widths(counts: Counter[int]) -> str:
    return " ".join(f"{count}x{bits}" for bits, count in sorted(counts.items()))


def _compilations(kernel: str) -> dict[str, Any]:
    """Count what steps, seeds and batches compile of a kernel's variant, by classes of d."""
    driver.set_active(_Driver(TARGETS["sm_90"]))  # pyright: ignore[reportArgumentType]
    functions, classes = [], set()

    def warm_up(function: JITFunction, grid: tuple[int, ...]) -> Callable[..., None]:
        functions.append(function)
        return lambda *args, **options: function.warmup(*args, grid=grid, **options)

    (key,) = (key for key in _MUTATIONS if key[0] == kernel)
    with mock.patch.object(JITFunction, "__getitem__", warm_up):
        for d, (n, seed) in itertools.product((8, 64), ((1, 0), (16, 1), (100, 2**64 - 1))):
            streams = rng.by_step(rng.stream(seed, start=seed % 7), 20)
            for step in range(20):  # Triton compiles 1 and multiples of 16 for themselves
                # The step is counted on the host, or stands in the stream.
                for arguments in ((rng.stream(seed), step), (streams[step], 0)):
                    all_variants = variants(d, n, *arguments)
                    next(v for v in all_variants if (v.kernel, v.name) == key).launch()
            # A number of weights is no compile-time constant.
            classes.add(d if kernel != "egd_step" else "any")
    (function,) = set(functions)
    (cache,) = function.device_caches.values()
    return {"kernel": kernel, "classes": len(classes), "compiled": len(cache[0])}


def _codes() -> list[_Task]:
    """Return every variant on every target."""
    every = itertools.product(TARGETS, variants(D))
    return [("", target, v.kernel, v.name, D) for target, v in every]


def _mutants() -> list[_Task]:
    """Return all mutants of one variant of every kernel on one target."""
    return [
        (mutant, "sm_90", kernel, name, _MUTANT_D.get(kernel, D))
        for (kernel, name), mutations in _MUTATIONS.items()
        for mutant in ("unaligned", *mutations)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for target in ("sm_90", "gfx942"):  # compilers set up once, not in every process
        _row(("", target, "egd_step", "", 8))
    optim._egd_step_kernel.device_caches.clear()  # which are counted
    with multiprocessing.get_context("fork").Pool(_WORKERS, maxtasksperchild=1) as pool:
        codes = pool.map_async(_row, _codes(), chunksize=1)
        if options.json:
            mutants = pool.map_async(_row, _mutants(), chunksize=1)
            compilations = pool.map_async(
                _compilations, [kernel for kernel, _ in _MUTATIONS], chunksize=1
            )
            found = {
                "codes": _lines(codes.get()),
                "mutants": _lines(mutants.get()),
                "compilations": compilations.get(),
            }
            json.dump(found, sys.stdout)
        else:
            writer = csv.DictWriter(
                sys.stdout, _COLUMNS[1:], extrasaction="ignore", lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(_lines(codes.get()))


if __name__ == "__main__":
    main()
