"""CPU providers of the recurrences: C++ built once per machine, a torch loop without a compiler, doubling elsewhere."""

from __future__ import annotations

import ctypes
import functools
import shutil
from typing import Any

import torch
from torch import Tensor
from torch._inductor import config
from torch._inductor.codecache import CppCodeCache

from ..passes.ops.recurrence import linear_recurrence
from ..passes.ops.selective_scan import selective_scan
from ..patterns.reasons import Reason
from .providers import provider
from .recurrence_source import source

_LIBRARY = torch.library.Library("laconic_cpu", "DEF")
_NAMES = {torch.float32: "float", torch.float64: "double"}
_NARROW = (torch.float16, torch.bfloat16)
_SERIAL = 1 << 15
"""Elements below which starting threads costs more than it gives."""


@functools.cache
def _built(name: str, dtype: torch.dtype) -> ctypes.CDLL:
    """One compiled kernel; Inductor's cache keeps it on disk, keyed by source, flags and compiler."""
    return CppCodeCache.load(source(name, _NAMES[dtype]), extra_flags=("-ffp-contract=fast",))


def _needs_compiler(*tensors: Tensor) -> Reason | None:
    first = tensors[0]
    if first.device.type != "cpu":
        return Reason("unsupported-device", f"compiled for the CPU, not {first.device.type}")
    if first.dtype not in _NAMES and first.dtype not in _NARROW:
        return Reason("unsupported-dtype", f"no kernel for {first.dtype}")
    names = config.cpp.cxx if isinstance(config.cpp.cxx, list | tuple) else [config.cpp.cxx]
    if not any(name and shutil.which(name) for name in names):
        return Reason("no-provider", "no C++ compiler on this machine")
    return None


def _threads(elements: int) -> int:
    return torch.get_num_threads() if elements > _SERIAL else 1


def _address(value: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if value is None else value.data_ptr())


def _call(name: str, dtype: torch.dtype, tensors: tuple[Tensor | None, ...], numbers: tuple[int, ...]) -> None:
    function = getattr(_built(name, dtype), name)
    function.restype = None
    function(*(_address(item) for item in tensors), *(ctypes.c_int64(number) for number in numbers))


def _three_axes(value: Tensor, dim: int) -> Tensor:
    """``value`` as ``[before, time, after]``, a view where the strides allow one."""
    before, after = value.shape[:dim], value.shape[dim + 1 :]
    return value.reshape(before.numel(), value.shape[dim], after.numel())


def _recurrence_kernel(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    output = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    if not output.numel():
        return output
    dim %= input.dim()
    operands = [_three_axes(value, dim) for value in (decay, input, output)]
    if operands[0].shape[2] == 1:
        # Time is the innermost axis: lanes and threads run over what is before it.
        operands = [value.permute(2, 1, 0) for value in operands]
    outer, length, inner = operands[1].shape
    strides = [stride for value in operands for stride in value.stride()]
    start = None if initial is None else initial.contiguous()
    # Bound to names until the call is over: a reshaped copy must not be freed before it is read.
    a, b, c = operands
    numbers = (outer, length, inner, *strides, int(reverse), _threads(output.numel()))
    _call("linear_recurrence", output.dtype, (a, b, start, c), numbers)
    return output


def _recurrence_steps(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    output = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    length = input.shape[dim]
    state = initial
    for step in reversed(range(length)) if reverse else range(length):
        target, value = output.select(dim, step), input.select(dim, step)
        if state is None:
            target.copy_(value)
        else:
            torch.addcmul(value, decay.select(dim, step), state, out=target)
        state = target
    return output


def _selective_kernel(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    operands = tuple(value.contiguous() for value in (delta, rate, input, expand, read))
    output = torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
    batch, length, channels = delta.shape
    states = rate.shape[1]
    if not states:
        return output.zero_()
    if output.numel():
        numbers = (batch, length, channels, states, _threads(output.numel() * states))
        _call("selective_scan", output.dtype, (*operands, output), numbers)
    return output


def _like_input(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    return torch.empty(input.shape, dtype=input.dtype, device=input.device)


def _like_delta(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    return torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)


def _register(name: str, signature: str, kernel: Any, fake: Any) -> Any:
    # Any layout is taken as it is, so Inductor need not copy operands into another one.
    _LIBRARY.define(f"{name}{signature}", tags=(torch.Tag.flexible_layout,))
    _LIBRARY.impl(name, kernel, "CPU")
    torch.library.register_fake(f"laconic_cpu::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.laconic_cpu, name).default


_RECURRENCE = "(Tensor decay, Tensor input, Tensor? initial, int dim, bool reverse) -> Tensor"
_SELECTIVE = "(Tensor delta, Tensor rate, Tensor input, Tensor expand, Tensor read) -> Tensor"
_compiled = _register("linear_recurrence", _RECURRENCE, _recurrence_kernel, _like_input)
_stepped = _register("linear_recurrence_steps", _RECURRENCE, _recurrence_steps, _like_input)
_selective = _register("selective_scan", _SELECTIVE, _selective_kernel, _like_delta)


def _widened(operation: Any, tensors: tuple[Tensor | None, ...], *rest: Any) -> Tensor:
    """The operation in float32 for narrower types: the state is carried at full precision and rounded once."""
    dtype = next(item.dtype for item in tensors if item is not None)
    if dtype not in _NARROW:
        return operation(*tensors, *rest)
    return operation(*(None if item is None else item.float() for item in tensors), *rest).to(dtype)


def _compiled_supports(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Reason | None:
    return _needs_compiler(decay)


@provider(linear_recurrence, "cpp", priority=30, supports=_compiled_supports)
def recurrence_in_cpp(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """One pass over the operands: channels in vector lanes and threads, time as a loop with the state in registers."""
    return _widened(_compiled, (decay, input, initial), dim, reverse)


def _on_cpu(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Reason | None:
    if decay.device.type != "cpu":
        return Reason("unsupported-device", f"a loop on the host, not for {decay.device.type}")
    return None


@provider(linear_recurrence, "steps", priority=20, supports=_on_cpu)
def recurrence_in_steps(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """One fused multiply-add per step into the result: no compiler needed, any dtype."""
    return _stepped(decay, input, initial, dim, reverse)


def _anywhere(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Reason | None:
    if not isinstance(input.shape[dim], int):
        return Reason("unsupported-shape", "the length of the recurrence is not known when compiling")
    return None


@provider(linear_recurrence, "doubling", priority=10, supports=_anywhere)
def recurrence_by_doubling(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """Plain torch in log2(L) rounds for devices without a kernel: the graph stays small. Hillis and Steele (1986)."""
    if reverse:
        flipped = recurrence_by_doubling(decay.flip(dim), input.flip(dim), initial, dim, False)
        return flipped.flip(dim)
    length = input.shape[dim]
    if initial is not None and length:
        first = input.narrow(dim, 0, 1) + decay.narrow(dim, 0, 1) * initial.unsqueeze(dim)
        input = torch.cat((first, input.narrow(dim, 1, length - 1)), dim)
    states, shift = input, 1
    while shift < length:
        kept = length - shift
        later = decay.narrow(dim, shift, kept)
        moved = states.narrow(dim, shift, kept) + later * states.narrow(dim, 0, kept)
        states = torch.cat((states.narrow(dim, 0, shift), moved), dim)
        decay = torch.cat((decay.narrow(dim, 0, shift), later * decay.narrow(dim, 0, kept)), dim)
        shift *= 2
    return states


def _selective_supports(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Reason | None:
    return _needs_compiler(delta)


@provider(selective_scan, "cpp", priority=30, supports=_selective_supports)
def selective_scan_in_cpp(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    """One pass over time for 16 channels at a time, exponentials included; decays and states are never written."""
    return _widened(_selective, tuple(value.contiguous() for value in (delta, rate, input, expand, read)))
