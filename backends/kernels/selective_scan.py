"""Triton kernel of the selective scan: decays, states and their read-out live in registers and are never written."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (the arguments of jitted functions are pointers and tiles, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...passes.ops.selective_scan import selective_scan
from ...patterns.reasons import Reason
from ..providers import provider
from .launch import Case, Device, Launch, ceil_div, device_of, no_triton_on, opaque, power_of_two
from .linear_recurrence import DTYPES, chain, last_row

MOST_STATES = 256
"""States per channel that one program can hold in registers beside its tile of time."""


@triton.jit
def selective_scan_kernel(
    delta, rate, input, expand, read, out, length, channels, states,
    delta_batch, delta_time, delta_channel, input_batch, input_time, input_channel,
    expand_batch, expand_time, expand_state, read_batch, read_time, read_state, rate_channel, rate_state,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # Tiles are [time, channel, state].
    channel_tiles = tl.cdiv(channels, BLOCK_D)
    program = tl.program_id(0)
    batch = (program // channel_tiles).to(tl.int64)
    channel = program % channel_tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    state_index = tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_T)
    inside, known = channel < channels, state_index < states
    channel64 = channel.to(tl.int64)
    rates = tl.load(
        rate + channel64[:, None] * rate_channel + state_index[None, :] * rate_state,
        inside[:, None] & known[None, :],
        other=0.0,
    ).to(WIDE)
    delta += batch * delta_batch
    input += batch * input_batch
    expand += batch * expand_batch
    read += batch * read_batch
    out += batch * length * channels
    state = tl.zeros([BLOCK_D, BLOCK_N], WIDE)
    for start in range(0, length, BLOCK_T):
        time = (start + step).to(tl.int64)[:, None]
        in_time = (start + step < length)[:, None]
        per_channel, per_state = in_time & inside[None, :], in_time & known[None, :]
        # Past the end delta and input are zero: the state stays as it is.
        d = tl.load(delta + time * delta_time + channel64[None, :] * delta_channel, per_channel, other=0.0).to(WIDE)
        u = tl.load(input + time * input_time + channel64[None, :] * input_channel, per_channel, other=0.0).to(WIDE)
        # What is expanded and read is shared by all channels of a batch: it stays in the cache.
        e = tl.load(
            expand + time * expand_time + state_index[None, :] * expand_state,
            per_state, other=0.0, eviction_policy="evict_last",
        ).to(WIDE)  # fmt: skip
        r = tl.load(
            read + time * read_time + state_index[None, :] * read_state,
            per_state, other=0.0, eviction_policy="evict_last",
        ).to(WIDE)  # fmt: skip
        decay = tl.exp(d[:, :, None] * rates[None, :, :])
        added = u[:, :, None] * e[:, None, :]
        added = tl.where(step[:, None, None] == 0, decay * state[None, :, :] + added, added)
        _, held = tl.associative_scan((decay, added), 0, chain)
        state = last_row(held, step[:, None, None], BLOCK_T)
        result = tl.sum(held * r[:, None, :], 2)
        tl.store(out + time * channels + channel64[None, :], result.to(out.dtype.element_ty), per_channel)


def plan_selective_scan(
    delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor, out: Tensor, device: Device
) -> Launch:
    """Any strides but ``out``'s, which is contiguous; no axis may be empty."""
    batch, length, channels = delta.shape
    states = rate.shape[1]
    block_n = power_of_two(states)
    # A lane holds about 16 elements of a tile; few channels take narrower tiles to fill the device.
    block_d = power_of_two(channels, 1, max(1, 256 // block_n))
    while block_d > 4 and batch * ceil_div(channels, block_d) < 2 * device.processors:
        block_d //= 2
    warps = max(1, min(4, block_d * block_n // 32))
    block_t = power_of_two(length, 2, max(2, min(32, 16 * 32 * warps // (block_d * block_n))))
    return Launch(
        selective_scan_kernel,
        batch * ceil_div(channels, block_d),
        {
            "delta": delta, "rate": rate, "input": input, "expand": expand, "read": read, "out": out,
            "length": length, "channels": channels, "states": states,
            "delta_batch": delta.stride(0), "delta_time": delta.stride(1), "delta_channel": delta.stride(2),
            "input_batch": input.stride(0), "input_time": input.stride(1), "input_channel": input.stride(2),
            "expand_batch": expand.stride(0), "expand_time": expand.stride(1), "expand_state": expand.stride(2),
            "read_batch": read.stride(0), "read_time": read.stride(1), "read_state": read.stride(2),
            "rate_channel": rate.stride(0), "rate_state": rate.stride(1),
            "BLOCK_T": block_t, "BLOCK_D": block_d, "BLOCK_N": block_n,
            "WIDE": tl.float64 if out.dtype == torch.float64 else tl.float32,
        },
        warps,
    )  # fmt: skip


def _like_delta(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    return torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)


@opaque("selective_scan", _like_delta)
def _selective_scan(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    out = torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
    if not rate.shape[1]:
        return out.zero_()
    if out.numel():
        plan_selective_scan(delta, rate, input, expand, read, out, device_of(delta)).run()
    return out


def _supports(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Reason | None:
    if delta.dtype not in DTYPES:
        return Reason("unsupported-dtype", f"the Triton selective scan has no {delta.dtype}")
    states = rate.shape[1]
    if not isinstance(states, int) or states > MOST_STATES:
        return Reason("unsupported-shape", f"{states} states per channel, not at most {MOST_STATES}")
    return no_triton_on(delta)


@provider(selective_scan, "triton", priority=100, supports=_supports)
def selective_scan_in_triton(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    """One pass over time for a tile of channels, in float32 (float64 for float64)."""
    return _selective_scan(delta, rate, input, expand, read)


def _case(batch: int, length: int, channels: int, states: int, dtype: torch.dtype) -> Case:
    def plan(device: Device) -> list[Launch]:
        def meta(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        delta, rate, expand = meta(batch, length, channels), meta(channels, states), meta(batch, length, states)
        return [plan_selective_scan(delta, rate, delta, expand, expand, torch.empty_like(delta), device)]

    name = str(dtype).removeprefix("torch.")
    return Case(f"[{batch}, {length}, {channels}] with {states} states, {name}", plan)


CASES = [
    _case(8, 4096, 2048, 16, torch.bfloat16),
    _case(1, 256, 512, 16, torch.float32),
    _case(2, 1024, 1536, 64, torch.float16),
    _case(1, 33, 5, 3, torch.float64),
]
