"""Triton kernel that prepares block lists for attention: every block once, and only those the band lets through."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (the arguments of jitted functions are pointers and tiles, which have no Python types)

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, power_of_two


@triton.jit
def list_blocks_kernel(
    index, count, blocks, used, queries, keys, slots, left, right, index_list, index_row, index_slot,
    HAS_COUNT: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    # One list: each block once, in order of appearance, without those the band hides from all of this row's queries.
    row_blocks = tl.cdiv(queries, BLOCK)
    program = tl.program_id(0)
    row = program % row_blocks
    source = index + (program // row_blocks).to(tl.int64) * index_list + row.to(tl.int64) * index_row
    slot = tl.arange(0, SLOTS)
    length = slots
    if HAS_COUNT:
        length = tl.minimum(tl.load(count + program), slots)
    block = tl.load(source + slot * index_slot, slot < length, other=-1)
    final = tl.minimum(row * BLOCK + BLOCK, queries) - 1
    keep = (slot < length) & (block >= 0) & (block < tl.cdiv(keys, BLOCK))
    keep = keep & (block * BLOCK <= final + right) & (block * BLOCK + BLOCK - 1 >= row * BLOCK - left)
    for earlier in range(0, length):
        seen = tl.load(source + earlier * index_slot)
        keep = keep & ((block != seen) | (slot <= earlier))
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(blocks + program.to(tl.int64) * slots + place, block, keep)
    tl.store(used + program, tl.sum(keep.to(tl.int32), 0))


def plan_block_lists(
    index: Tensor, count: Tensor | None, queries: int, keys: int, block: int, left: int, right: int
) -> tuple[Launch, Tensor, Tensor]:
    """The launch, and what it fills: blocks ``[L * R * M]`` and how many of each list are used ``[L * R]``, int32.

    ``index [L, R, M]`` of any strides and ``count [L, R]`` or None are the operator's block lists.
    """
    lists, rows, slots = index.shape
    blocks, used = index.new_empty(lists * rows * slots), index.new_empty(lists * rows)
    arguments: dict[str, Any] = {
        "index": index, "count": None if count is None else count.contiguous(), "blocks": blocks, "used": used,
        "queries": queries, "keys": keys, "slots": slots, "left": left, "right": right,
        "index_list": index.stride(0), "index_row": index.stride(1), "index_slot": index.stride(2),
        "HAS_COUNT": count is not None, "BLOCK": block, "SLOTS": power_of_two(slots),
    }  # fmt: skip
    return Launch(list_blocks_kernel, lists * rows, arguments, warps=1 if slots <= 256 else 4), blocks, used
