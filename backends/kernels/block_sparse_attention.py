"""Triton kernels of block-sparse attention: one pass over the visible key tiles with a running softmax.

Source: Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness" (2022), algorithm 1
and section 3.3 (block-sparse); Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (the arguments of jitted functions are pointers and tiles, which have no Python types)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...passes.ops.block_sparse import block_sparse_attention
from ...patterns.reasons import Reason
from ..providers import provider
from .block_lists import plan_block_lists
from .launch import Case, Device, Launch, ceil_div, device_of, no_triton_on, opaque, power_of_two, precision, upcast

LARGEST_HEAD = 256
MOST_SLOTS = 8192
_OPEN = 1 << 30
"""A band as wide as this has no edge: token positions are 32-bit."""


@triton.jit
def _attend(
    acc, total, largest, q, key, value, start, position, keys, left, right, scale,
    key_token, value_token, key_inside, value_inside,
    MASKED: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One key tile: ``key [D, BLOCK_N]`` and ``value [BLOCK_N, E]`` are pointers to token zero."""
    token = start + tl.arange(0, BLOCK_N)
    token64 = token.to(tl.int64)
    k_tile = key + token64[None, :] * key_token
    v_tile = value + token64[:, None] * value_token
    if MASKED:
        k = tl.load(k_tile, (token < keys)[None, :] & key_inside[:, None], other=0.0)
        v = tl.load(v_tile, (token < keys)[:, None] & value_inside[None, :], other=0.0)
    elif EVEN:
        k = tl.load(k_tile)
        v = tl.load(v_tile)
    else:
        k = tl.load(k_tile, key_inside[:, None], other=0.0)
        v = tl.load(v_tile, value_inside[None, :], other=0.0)
    if UPCAST:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    score = tl.dot(q, k, input_precision=PRECISION)
    if MASKED:
        distance = token[None, :] - position[:, None]
        visible = (distance >= -left) & (distance <= right) & (token < keys)[None, :]
        score = tl.where(visible, score, float("-inf"))
    peak = tl.maximum(largest, tl.max(score, 1) * scale)
    # A row that has seen no key yet has the peak -inf, and must not subtract it from itself.
    offset = tl.where(peak == float("-inf"), 0.0, peak) if MASKED else peak
    weight = tl.exp2(score * scale - offset[:, None])
    shrink = tl.exp2(largest - offset)
    total = total * shrink + tl.sum(weight, 1)
    acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, peak


@triton.jit
def block_sparse_attention_kernel(
    query, key, value, out, index, count, heads, group, queries, keys, left, right, scale, lists, slots,
    query_batch, query_head, query_token, query_inner, key_batch, key_head, key_token, key_inner,
    value_batch, value_head, value_token, value_inner,
    LISTED: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    # scale holds log2(e), so exponentials are powers of two. left and right are the band, wide open when huge.
    program = tl.program_id(0)
    row_tiles = tl.cdiv(queries, BLOCK_M)
    row_tile = program % row_tiles
    head = program // row_tiles % heads
    batch = (program // row_tiles // heads).to(tl.int64)
    first = row_tile * BLOCK_M
    position = first + tl.arange(0, BLOCK_M)
    inner, outer = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    key_inside, value_inside = inner < DEPTH, outer < WIDTH
    EVEN: tl.constexpr = DEPTH == BLOCK_D and WIDTH == BLOCK_E
    # Triton notices strides that 16 divides. In units of ALIGNED, heads of 72 or 40 still allow loads of 8 elements.
    query_head *= ALIGNED
    query_token *= ALIGNED
    key_head *= ALIGNED
    key_token *= ALIGNED
    value_head *= ALIGNED
    value_token *= ALIGNED
    position64, inner64, outer64 = position.to(tl.int64), inner.to(tl.int64), outer.to(tl.int64)
    query += batch * query_batch + head.to(tl.int64) * query_head
    key += batch * key_batch + (head // group).to(tl.int64) * key_head
    value += batch * value_batch + (head // group).to(tl.int64) * value_head
    q = tl.load(
        query + position64[:, None] * query_token + inner64[None, :] * query_inner,
        (position < queries)[:, None] & key_inside[None, :], other=0.0, eviction_policy="evict_first",
    )  # fmt: skip
    if UPCAST:
        q = q.to(tl.float32)
    key_tile = key + inner64[:, None] * key_inner
    value_tile = value + outer64[None, :] * value_inner
    acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)

    if LISTED:
        tiles_per_block: tl.constexpr = BLOCK // BLOCK_N
        row_block = (first // BLOCK).to(tl.int64)
        list_row = (head % lists).to(tl.int64) * tl.cdiv(queries, BLOCK) + row_block
        used = tl.load(count + list_row)
        for step in range(0, used * tiles_per_block):
            block = tl.load(index + list_row * slots + step // tiles_per_block)
            acc, total, largest = _attend(
                acc, total, largest, q, key_tile, value_tile, block * BLOCK + step % tiles_per_block * BLOCK_N,
                position, keys, left, right, scale, key_token, value_token, key_inside, value_inside,
                True, EVEN, PRECISION, UPCAST, BLOCK_N,
            )  # fmt: skip
    else:
        # Tiles from low to high can be seen by some query; from full to last, by every one. The others pay for a mask.
        final = tl.minimum(first + BLOCK_M, queries) - 1
        low = tl.maximum(first - left, 0) // BLOCK_N * BLOCK_N
        high = tl.minimum(final + right + 1, keys)
        full = tl.maximum(final - left + BLOCK_N - 1, 0) // BLOCK_N * BLOCK_N
        full = tl.maximum(tl.minimum(full, high), low)
        last = tl.maximum(tl.minimum(first + right + 1, keys), 0) // BLOCK_N * BLOCK_N
        last = tl.maximum(last, full)
        for start in range(low, full, BLOCK_N):
            acc, total, largest = _attend(
                acc, total, largest, q, key_tile, value_tile, start,
                position, keys, left, right, scale, key_token, value_token, key_inside, value_inside,
                True, EVEN, PRECISION, UPCAST, BLOCK_N,
            )  # fmt: skip
        for start in range(full, last, BLOCK_N):
            acc, total, largest = _attend(
                acc, total, largest, q, key_tile, value_tile, start,
                position, keys, left, right, scale, key_token, value_token, key_inside, value_inside,
                False, EVEN, PRECISION, UPCAST, BLOCK_N,
            )  # fmt: skip
        for start in range(last, high, BLOCK_N):
            acc, total, largest = _attend(
                acc, total, largest, q, key_tile, value_tile, start,
                position, keys, left, right, scale, key_token, value_token, key_inside, value_inside,
                True, EVEN, PRECISION, UPCAST, BLOCK_N,
            )  # fmt: skip

    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    target = out + ((batch * queries + position64[:, None]) * heads + head) * WIDTH + outer[None, :]
    inside = (position < queries)[:, None] & value_inside[None, :]
    tl.store(target, result.to(out.dtype.element_ty), inside)


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a tile, the warps that compute it and how many loads are kept in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def choose_tile(depth: int, width: int, dtype: torch.dtype, visible: int, block: int, device: Device) -> Tile:
    """``depth`` and ``width`` are padded; ``visible`` keys are seen by a query at most, ``block`` limits the tile.

    A query tile as tall as the band computes twice what it needs, so narrow bands take short tiles.
    """
    largest = max(depth, width)
    if device.is_amd:
        tile = Tile(128, 64, 4, 1) if largest <= 128 else Tile(64, 32, 4, 1)
    elif dtype == torch.float32:
        # Three TF32 products for one need registers: fewer keys, or more warps, where float32 tiles would spill.
        tile = Tile(64, 32, 8, 2) if device.capability >= 90 else Tile(64, 16, 4, 2)
    elif largest <= 128:
        tile = Tile(128, 64, 8, 3)
    else:
        tile = Tile(64, 64, 8, 2) if device.capability >= 90 else Tile(64, 32, 8, 2)
    queries, warps = tile.queries, tile.warps
    if queries > 64 and (visible <= 256 or block <= 64):
        queries, warps = 64, 4 if largest <= 64 or device.is_amd or device.capability >= 100 else 8
    element = 4 if dtype == torch.float32 else 2
    queries, keys, stages = min(queries, block), min(tile.keys, block), tile.stages
    while (queries * depth + stages * keys * (depth + width)) * element > device.shared_memory and stages > 1:
        stages -= 1
    while (queries * depth + stages * keys * (depth + width)) * element > device.shared_memory and keys > 16:
        keys //= 2
    return Tile(queries, keys, warps, stages)


def plan_block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_index: Tensor | None,
    block_count: Tensor | None,
    out: Tensor,
    block: int,
    left: int,
    right: int,
    scale: float,
    device: Device,
) -> list[Launch]:
    """The operator's arguments with a positive ``scale``, and ``out [B, S, H, E]`` contiguous; nothing empty.

    One launch for a band; with block lists, one before it that drops repeated and invisible blocks from them.
    """
    batch, heads, queries, depth = query.shape
    group, keys, width = heads // key.shape[1], key.shape[2], value.shape[3]
    left, right = (_OPEN if side < 0 else min(side, _OPEN) for side in (left, right))
    padded, padded_width = power_of_two(depth, 16), power_of_two(width, 16)
    visible = min(left + right + 1, keys)
    if block_index is not None:
        visible = min(visible, block_index.shape[2] * block)
    limit = block if block_index is not None else _OPEN
    tile = choose_tile(padded, padded_width, query.dtype, visible, limit, device)
    launches, blocks, used, lists, slots = [], None, None, 1, 1
    if block_index is not None:
        lists, slots = block_index.shape[0], block_index.shape[2]
        launch, blocks, used = plan_block_lists(block_index, block_count, queries, keys, block, left, right)
        launches.append(launch)
    aligned = _alignment(query, key, value)
    arguments: dict[str, Any] = {
        "query": query, "key": key, "value": value, "out": out, "index": blocks, "count": used,
        "heads": heads, "group": group, "queries": queries, "keys": keys,
        "left": left, "right": right, "scale": float(scale) * math.log2(math.e), "lists": lists, "slots": slots,
        "query_batch": query.stride(0), "key_batch": key.stride(0), "value_batch": value.stride(0),
        "query_head": query.stride(1) // aligned, "key_head": key.stride(1) // aligned,
        "value_head": value.stride(1) // aligned, "query_token": query.stride(2) // aligned,
        "key_token": key.stride(2) // aligned, "value_token": value.stride(2) // aligned,
        "query_inner": query.stride(3), "key_inner": key.stride(3), "value_inner": value.stride(3),
        "LISTED": block_index is not None, "BLOCK": block if block_index is not None else 0,
        "DEPTH": depth, "WIDTH": width, "ALIGNED": aligned,
        "PRECISION": precision(query.dtype, device), "UPCAST": upcast(query.dtype, device),
        "BLOCK_M": tile.queries, "BLOCK_N": tile.keys, "BLOCK_D": padded, "BLOCK_E": padded_width,
    }  # fmt: skip
    grid = ceil_div(queries, tile.queries) * heads * batch
    launches.append(Launch(block_sparse_attention_kernel, grid, arguments, tile.warps, tile.stages))
    return launches


def _alignment(*operands: Tensor) -> int:
    """The largest power of two, up to 16, that divides every stride of heads and tokens."""
    return math.gcd(16, *(stride for x in operands for stride in x.stride()[1:3]))


def _shape(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_index: Tensor | None,
    block_count: Tensor | None,
    block: int,
    left: int,
    right: int,
    scale: float,
) -> Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)


@opaque("block_sparse_attention", _shape)
def _block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_index: Tensor | None,
    block_count: Tensor | None,
    block: int,
    left: int,
    right: int,
    scale: float,
) -> Tensor:
    batch, heads, queries, _ = query.shape
    out = torch.empty(batch, queries, heads, value.shape[-1], dtype=query.dtype, device=query.device)
    if not out.numel() or not key.numel():
        return out.zero_().transpose(1, 2)
    if scale <= 0:
        # The running maximum is taken before scaling, which needs a scale above zero.
        query, scale = (-query, -scale) if scale < 0 else (torch.zeros_like(query), 1.0)
    plan = plan_block_sparse_attention(
        query, key, value, block_index, block_count, out, block, left, right, scale, device_of(query)
    )
    for launch in plan:
        launch.run()
    return out.transpose(1, 2)


def _supports(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_index: Tensor | None,
    block_count: Tensor | None,
    block: int,
    left: int,
    right: int,
    scale: float,
) -> Reason | None:
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return Reason("unsupported-dtype", f"the Triton attention has no {query.dtype}")
    sizes = (query.shape[3], value.shape[3])
    if not all(isinstance(size, int) and 0 < size <= LARGEST_HEAD for size in sizes):
        return Reason("unsupported-shape", f"head sizes {sizes} are not between 1 and {LARGEST_HEAD}")
    if block_index is not None:
        if block < 16 or block & (block - 1):
            return Reason("unsupported-shape", f"blocks of {block} tokens: not a power of two from 16 on")
        slots = block_index.shape[2]
        if not isinstance(slots, int) or not 0 < slots <= MOST_SLOTS:
            return Reason("unsupported-shape", f"{slots} blocks in a list, not 1 to {MOST_SLOTS}")
    return no_triton_on(query)


@provider(block_sparse_attention, "triton", priority=100, supports=_supports)
def block_sparse_attention_in_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_index: Tensor | None,
    block_count: Tensor | None,
    block: int,
    left: int,
    right: int,
    scale: float,
) -> Tensor:
    """Scores exist one tile at a time; tiles outside the band or the lists are neither read nor computed."""
    return _block_sparse_attention(query, key, value, block_index, block_count, block, left, right, scale)


def _case(
    shape: tuple[int, int, int, int], window: tuple[int, int], dtype: torch.dtype, slots: int = 0, block: int = 64
) -> Case:
    def plan(device: Device) -> list[Launch]:
        batch, heads, tokens, depth = shape
        # Heads are usually a transposed view of [B, S, H, D].
        x = torch.empty(batch, tokens, heads, depth, dtype=dtype, device="meta")
        index = torch.empty(1, ceil_div(tokens, block), slots, dtype=torch.int32, device="meta") if slots else None
        heads_first = x.transpose(1, 2)
        return plan_block_sparse_attention(
            heads_first, heads_first, heads_first, index, None, x, block, *window, depth**-0.5, device
        )

    lists = f", lists of {slots}" if slots else ""
    return Case(f"{shape}, band {window}{lists}, {str(dtype).removeprefix('torch.')}", plan)


CASES = [
    _case((1, 16, 8192, 64), (512, 512), torch.bfloat16),
    _case((1, 16, 8192, 128), (1024, 0), torch.float16),
    _case((1, 8, 4096, 64), (64, 64), torch.float16),
    _case((2, 8, 1024, 256), (256, 256), torch.bfloat16),
    _case((2, 12, 1000, 72), (100, 100), torch.float16),
    _case((1, 8, 2048, 64), (256, 256), torch.float32),
    _case((1, 8, 4096, 128), (-1, 0), torch.bfloat16, slots=16, block=128),
    _case((1, 8, 4096, 64), (-1, -1), torch.float16, slots=8),
    _case((1, 8, 4096, 128), (96, 96), torch.bfloat16),
]
