"""Compile every kernel for every target, with no GPU needed, and read off what it costs there.

``python -m laconic kernels`` prints the table; ``python -m laconic.backends.kernels.resources`` writes it to
``docs/kernels.md``.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import FAMILIES
from .launch import INTERPRETED, TARGETS, Case, Launch

GPU_TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

_TYPES = {
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: registers of a thread, bytes spilled, bytes of shared memory, warps, stages."""

    kernel: str
    case: str
    target: str
    registers: int
    spills: int
    shared_memory: int
    warps: int
    stages: int


def cases() -> Iterator[tuple[str, Case]]:
    """Every representative call of every kernel module, with the module's name."""
    for family in FAMILIES:
        module = importlib.import_module(f".{family}", __package__)
        for case in module.CASES:
            yield family, case


def compiled(case: Case, target: str) -> list[Resources]:
    """Compile a case's launches for a target and say what each takes.

    Raises RuntimeError in Triton's interpreter, which has no compiler, and what the compiler raises.
    """
    if INTERPRETED:
        raise RuntimeError("kernels cannot be compiled while TRITON_INTERPRET=1")
    return [_compile(launch, case.label, target) for launch in case.plan(TARGETS[target])]


def _compile(launch: Launch, label: str, target: str) -> Resources:
    options = {"num_warps": launch.warps, "num_stages": launch.stages, **launch.options}
    signature, constants, attributes = specialised(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPU_TARGETS[target], options=options)
    registers, spills = _on_amd(binary.asm["amdgcn"]) if target.startswith("gfx") else _on_nvidia(binary.asm["ptx"])
    return Resources(
        launch.name, label, target, registers, spills, int(binary.metadata.shared), launch.warps, launch.stages
    )


def specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Signature, constants and attributes that Triton would derive from a launch's arguments when running it.

    Ones and Nones become constants; multiples of 16, and tensors that begin at one, are marked so.
    """
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        aligned = False
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _on_nvidia(ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes as ptxas reports them."""
    match = re.search(r"\.target (sm_(\d+)a?)", ptx)
    if match is None:
        raise RuntimeError("the PTX names no target")
    name = "ptxas-blackwell" if int(match[2]) >= 100 else "ptxas"
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(assembler), "-v", f"--gpu-name={match[1]}", str(source), "-o", str(Path(folder) / "kernel.o")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = done.stdout + done.stderr
    registers = re.search(r"Used (\d+) registers", report)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    if registers is None or not spilled:
        raise RuntimeError(f"ptxas reported no registers: {report}")
    return int(registers[1]), sum(int(size) for size in spilled)


def _on_amd(assembly: str) -> tuple[int, int]:
    """Vector registers of a lane and spilled registers times 4 bytes, from the code object's own notes."""
    registers = re.search(r"\.vgpr_count:\s*(\d+)", assembly)
    spilled = re.search(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    if registers is None or spilled is None:
        raise RuntimeError("the assembly reports no registers")
    return int(registers[1]), 4 * int(spilled[1])


def table() -> str:
    """All cases on all targets as a Markdown table; a target that a case does not support is named with the reason."""
    targets = list(TARGETS)
    rows = ["| kernel | case | " + " | ".join(targets) + " |", "|---|---|" + "---|" * len(targets)]
    for _, case in cases():
        columns: dict[str, list[str]] = {}
        for target in targets:
            if target in case.unsupported:
                for cells in columns.values():
                    cells.append(case.unsupported[target])
                continue
            for found in compiled(case, target):
                spilled = f", {found.spills} B spilled" if found.spills else ""
                shared = f"{found.shared_memory / 1024:.1f} KiB" if found.shared_memory else "0"
                text = f"{found.registers} r, {shared}, {found.warps}w{found.stages}s{spilled}"
                cells = columns.setdefault(found.kernel, [])
                if len(cells) > targets.index(target):
                    cells[-1] += f"; {text}"
                else:
                    cells.append(text)
        rows += [f"| `{kernel}` | {case.label} | {' | '.join(cells)} |" for kernel, cells in columns.items()]
    return "\n".join(rows)


def page() -> str:
    """The text of ``docs/kernels.md``."""
    return (
        "# What the kernels take\n\n"
        "Compiled ahead of time, without a GPU, from the launches that `choose_tile` and its like plan for each "
        "target. Each cell: registers of a thread (on gfx942 vector registers of a lane), shared memory of a program, "
        "warps and stages, and bytes spilled where there are any. Made by "
        "`python -m laconic.backends.kernels.resources`; `tests/kernels/test_compile_targets.py` holds that nothing "
        f"spills on NVIDIA and that shared memory fits. Triton {triton.__version__}.\n\n{table()}\n"
    )


if __name__ == "__main__":
    where = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
    where.write_text(page())
    print(f"wrote {where}")
