"""What every kernel shares: the targets it is compiled for, how it is launched, and how it becomes an opaque operator.

A kernel module describes a launch as data (:class:`Launch`) from tensors and a :class:`Device`. The same description is
run on a GPU or in Triton's interpreter, and compiled ahead of time for machines that are not here
(:mod:`.resources`), so what is checked is what is launched.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from ...patterns.reasons import Reason

NAMESPACE = "laconic_triton"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")

LAUNCHES: Counter[str] = Counter()
"""How often each kernel was launched in this process; tests read it to see that a kernel really ran."""

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether ``TRITON_INTERPRET=1`` was set when triton was imported: kernels then run on CPU, in numpy."""

OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Device:
    """What a launch is planned for: ``name`` (``sm_90``, ``gfx942``), bytes of shared memory one program may use,
    and how many multiprocessors there are to fill."""

    name: str
    shared_memory: int
    processors: int

    @property
    def is_amd(self) -> bool:
        return self.name.startswith("gfx")

    @property
    def capability(self) -> int:
        """90 for ``sm_90``; 0 where there is no such number."""
        return int(self.name[3:]) if self.name.startswith("sm_") else 0


TARGETS: dict[str, Device] = {
    "sm_80": Device("sm_80", 163 * 1024, 108),
    "sm_90": Device("sm_90", 227 * 1024, 132),
    "sm_100": Device("sm_100", 227 * 1024, 148),
    "gfx942": Device("gfx942", 64 * 1024, 304),
}
"""Every kernel is compiled for these in the tests (A100, H100, B200, MI300X)."""


@dataclass(eq=False)
class Launch:
    """One kernel launch: the jitted function, its grid and every argument by name, compile-time ones included."""

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    warps: int = 4
    stages: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def run(self) -> None:
        """Launch on the current stream of the device the tensors are on. An empty grid launches nothing."""
        if self.grid == 0:
            return
        LAUNCHES[self.name] += 1
        first = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        if first.device.type == "cuda" and first.device.index != torch.cuda.current_device():
            with torch.cuda.device(first.device):
                self._run()
        else:
            self._run()

    def _run(self) -> None:
        # One grid axis only: the other two end at 65,535.
        self.kernel[(self.grid,)](**self.arguments, num_warps=self.warps, num_stages=self.stages, **self.options)


@dataclass(frozen=True, eq=False)
class Case:
    """A representative call to compile ahead of time: ``plan(device)`` describes its launches with meta tensors.

    ``unsupported`` names the targets it is not compiled for, each with the reason.
    """

    label: str
    plan: Callable[[Device], list[Launch]]
    unsupported: dict[str, str] = field(default_factory=dict)


def device_of(tensor: Tensor) -> Device:
    """The device that launches on ``tensor`` are planned for."""
    if tensor.device.type == "cuda":
        return _cuda_device(tensor.device.index or 0)
    return Device("interpreter", 1 << 16, 2)


@functools.cache
def _cuda_device(index: int) -> Device:
    limits = triton.runtime.driver.active.utils.get_device_properties(index)
    return Device(_cuda_name(index), int(limits["max_shared_mem"]), int(limits["multiprocessor_count"]))


@functools.cache
def _cuda_name(index: int) -> str:
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(index).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def no_triton_on(tensor: Tensor) -> Reason | None:
    """Why kernels cannot run where ``tensor`` is: they need CUDA (or Triton's interpreter, in tests)."""
    kind = tensor.device.type
    if kind == "cpu" and INTERPRETED:
        return None
    if kind != "cuda":
        return Reason("unsupported-device", f"a Triton kernel, not for {kind}")
    index = tensor.device.index or 0
    name = _cuda_name(index)
    if torch.version.hip:
        if name not in TARGETS:
            return Reason("unsupported-device", f"not compiled or tested for {name}")
    elif torch.cuda.get_device_capability(index) < OLDEST_CAPABILITY:
        return Reason("unsupported-device", f"{name} is older than sm_80")
    return None


def precision(dtype: torch.dtype, device: Device) -> str:
    """How a kernel multiplies float32 tiles: as exactly as float32, unless torch was told that TF32 will do."""
    if dtype not in (torch.float32, torch.float64) or not device.capability:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def upcast(dtype: torch.dtype, device: Device) -> bool:
    """Whether tiles are widened before a product: the interpreter multiplies the bits of bfloat16, not its values."""
    return dtype == torch.float64 or (device.name == "interpreter" and dtype == torch.bfloat16)


def power_of_two(size: int, least: int = 1, most: int = 1 << 30) -> int:
    """The smallest power of two that is at least ``size``, kept between ``least`` and ``most``."""
    return max(least, min(most, 1 << max(size - 1, 0).bit_length()))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def opaque(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function on tensors the operator ``laconic_triton::<name>``, which compilers call and never look into.

    The annotations give the schema. Operands come in any layout, so none is copied for the call's sake.
    """

    def define(function: Callable[..., Any]) -> Callable[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        LIBRARY.define(name + schema, tags=(torch.Tag.flexible_layout,))
        for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
            LIBRARY.impl(name, function, key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
        return overload

    return define
