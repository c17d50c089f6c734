"""Triton kernels of the linear recurrence: time in tiles, one lane for each channel, the state in registers.

With enough channels one kernel walks all of time. With few, time is cut into spans that run side by side: each span is
first reduced to one step (its decays multiplied, its last state from zero), those steps are chained, and then every
span runs from the state it was given. Reads the operands twice and the result is the same recurrence.
Source: Blelloch, "Prefix Sums and Their Applications" (1990), section 1.4.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (the arguments of jitted functions are pointers and tiles, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...passes.ops.recurrence import linear_recurrence
from ...patterns.reasons import Reason
from ..providers import provider
from .launch import Case, Device, Launch, ceil_div, device_of, no_triton_on, opaque, power_of_two

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@triton.jit
def chain(decay, state, later_decay, later_state):
    """One step after another: the composition of two affine maps."""
    return decay * later_decay, later_decay * state + later_state


@triton.jit
def last_row(tile, step, BLOCK_T: tl.constexpr):
    """The last time step of a tile whose first axis is time."""
    return tl.sum(tl.where(step == BLOCK_T - 1, tile, 0.0), 0)


@triton.jit
def linear_recurrence_kernel(
    decay, input, initial, out, decays, outer, inner, length, span,
    decay_outer, decay_time, decay_inner, input_outer, input_time, input_inner, out_outer, out_time, out_inner,
    HAS_INITIAL: tl.constexpr, REVERSE: tl.constexpr, SUMMARY: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # SUMMARY writes each span's multiplied decays and last state to decays and out, both [spans, outer, inner].
    program = tl.program_id(0)
    lane_tiles = tl.cdiv(inner, BLOCK_C)
    lane = program % lane_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    row = (program // lane_tiles % outer).to(tl.int64)
    part = program // lane_tiles // outer
    inside = lane < inner
    lane64 = lane.to(tl.int64)
    decay_lane = decay + row * decay_outer + lane64 * decay_inner
    input_lane = input + row * input_outer + lane64 * input_inner
    out_lane = out + row * out_outer + lane64 * out_inner
    flat = (part.to(tl.int64) * outer + row) * inner + lane64

    step = tl.arange(0, BLOCK_T)[:, None]
    product = tl.full([BLOCK_C], 1.0, WIDE)
    if HAS_INITIAL:
        state = tl.load(initial + flat, inside, other=0.0).to(WIDE)
    else:
        state = tl.zeros([BLOCK_C], WIDE)
    begin = part * span
    end = tl.minimum(begin + span, length)
    for start in range(begin, end, BLOCK_T):
        position = start + step
        mask = (position < end) & inside[None, :]
        time = position.to(tl.int64)
        if REVERSE:
            time = length - 1 - time
        # Steps past the end keep the state: decay one, input zero.
        a = tl.load(decay_lane[None, :] + time * decay_time, mask, other=1.0, eviction_policy="evict_first").to(WIDE)
        b = tl.load(input_lane[None, :] + time * input_time, mask, other=0.0, eviction_policy="evict_first").to(WIDE)
        # The state enters with the first step, so no product of decays is needed to apply it (it could overflow).
        b = tl.where(step == 0, a * state[None, :] + b, b)
        products, states = tl.associative_scan((a, b), 0, chain)
        state = last_row(states, step, BLOCK_T)
        if SUMMARY:
            product *= last_row(products, step, BLOCK_T)
        else:
            tl.store(out_lane[None, :] + time * out_time, states.to(out.dtype.element_ty), mask)
    if SUMMARY:
        tl.store(decays + flat, product, inside)
        tl.store(out + flat, state, inside)


@triton.jit
def chain_spans_kernel(
    decays, states, initial, starts, channels, spans, HAS_INITIAL: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    # From each span's one step to the state each span starts from; all [spans, channels].
    channel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    if HAS_INITIAL:
        state = tl.load(initial + channel, inside, other=0.0).to(WIDE)
    else:
        state = tl.zeros([BLOCK], WIDE)
    for _ in range(spans):
        tl.store(starts + channel, state, inside)
        decay = tl.load(decays + channel, inside, other=0.0)
        # A span's product of decays may be infinite where no state was there to grow.
        state = tl.where(state == 0.0, 0.0, decay * state) + tl.load(states + channel, inside, other=0.0)
        decays += channels
        states += channels
        starts += channels


def _three_axes(value: Tensor, dim: int) -> Tensor:
    """``[before, time, after]``, a view where the layout allows; time last becomes ``[1, time, before]``."""
    flat = value.reshape(value.shape[:dim].numel(), value.shape[dim], value.shape[dim + 1 :].numel())
    return flat.permute(2, 1, 0) if flat.shape[2] == 1 else flat


def _tile(length: int, inner: int, time_is_contiguous: bool) -> tuple[int, int]:
    """Time steps and channels of a tile: 1,024 elements for one warp, long where the memory runs."""
    if time_is_contiguous:
        block_c = power_of_two(inner, 1, 16)
        return power_of_two(length, 2, 1024 // block_c // 4), block_c
    block_c = power_of_two(inner, 1, 64)
    return power_of_two(length, 2, min(64, 1024 // block_c)), block_c


def _spans(length: int, block_t: int, programs: int, device: Device) -> int:
    """Into how many spans time is cut: one if the channels fill the device, else enough to fill it."""
    wanted = 8 * device.processors
    if programs * 2 >= wanted:
        return 1
    return max(1, min(wanted // programs, length // (8 * block_t)))


def plan_linear_recurrence(
    decay: Tensor,
    input: Tensor,
    initial: Tensor | None,
    out: Tensor,
    dim: int,
    reverse: bool,
    device: Device,
    spans: int | None = None,
) -> list[Launch]:
    """One launch, or three when time is cut into spans (``spans`` fixes their number); no axis may be empty."""
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    compute = tl.float64 if wide == torch.float64 else tl.float32
    a, b, c = (_three_axes(value, dim) for value in (decay, input, out))
    outer, length, inner = c.shape
    block_t, block_c = _tile(length, inner, c.stride(1) == 1)
    programs = ceil_div(inner, block_c) * outer
    parts = _spans(length, block_t, programs, device) if spans is None else spans
    span = ceil_div(ceil_div(length, parts), block_t) * block_t
    parts = ceil_div(length, span)
    common = {
        "decay": a, "input": b, "outer": outer, "inner": inner, "length": length, "span": span,
        "decay_outer": a.stride(0), "decay_time": a.stride(1), "decay_inner": a.stride(2),
        "input_outer": b.stride(0), "input_time": b.stride(1), "input_inner": b.stride(2),
        "out_outer": c.stride(0), "out_time": c.stride(1), "out_inner": c.stride(2),
        "REVERSE": reverse, "BLOCK_T": block_t, "BLOCK_C": block_c, "WIDE": compute,
    }  # fmt: skip
    start = None if initial is None else initial.contiguous()
    launches = []
    if parts > 1:
        channels = outer * inner
        decays, states, starts = (a.new_empty(parts * channels, dtype=wide) for _ in range(3))
        summary = {**common, "initial": None, "out": states, "decays": decays, "HAS_INITIAL": False, "SUMMARY": True}
        launches.append(Launch(linear_recurrence_kernel, programs * parts, summary, warps=1))
        spans_in_order = {
            "decays": decays, "states": states, "initial": start, "starts": starts, "channels": channels,
            "spans": parts, "HAS_INITIAL": start is not None, "BLOCK": 128, "WIDE": compute,
        }  # fmt: skip
        launches.append(Launch(chain_spans_kernel, ceil_div(channels, 128), spans_in_order))
        start = starts
    main = {
        **common, "initial": start, "out": c, "decays": None, "HAS_INITIAL": start is not None, "SUMMARY": False
    }  # fmt: skip
    launches.append(Launch(linear_recurrence_kernel, programs * parts, main, warps=1))
    return launches


def _like_input(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    return torch.empty(input.shape, dtype=input.dtype, device=input.device)


@opaque("linear_recurrence", _like_input)
def _linear_recurrence(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    out = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    if out.numel():
        plan = plan_linear_recurrence(decay, input, initial, out, dim % input.dim(), reverse, device_of(input))
        for launch in plan:
            launch.run()
    return out


def _supports(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Reason | None:
    if input.dtype not in DTYPES:
        return Reason("unsupported-dtype", f"the Triton recurrence has no {input.dtype}")
    return no_triton_on(input)


@provider(linear_recurrence, "triton", priority=100, supports=_supports)
def linear_recurrence_in_triton(
    decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool
) -> Tensor:
    """One pass over the operands with the state in registers, in float32 (float64 for float64)."""
    return _linear_recurrence(decay, input, initial, dim, reverse)


def _case(shape: tuple[int, ...], dim: int, reverse: bool, dtype: torch.dtype, spans: int | None = None) -> Case:
    def plan(device: Device) -> list[Launch]:
        a, b, out = (torch.empty(shape, dtype=dtype, device="meta") for _ in range(3))
        start = torch.empty(shape[:dim] + shape[dim + 1 :], dtype=dtype, device="meta")
        return plan_linear_recurrence(a, b, start, out, dim, reverse, device, spans)

    name = str(dtype).removeprefix("torch.")
    return Case(f"{shape} along {dim}{', reversed' * reverse}{f', {spans} spans' * bool(spans)}, {name}", plan)


CASES = [
    _case((8, 4096, 2048), 1, False, torch.bfloat16, 1),
    _case((1536, 256, 16), 1, True, torch.float32, 1),
    _case((2, 4096, 256), 1, False, torch.float16, 4),
    _case((64, 8192), 1, False, torch.float32, 2),
    _case((5, 77, 13), 1, True, torch.float64, 1),
]
