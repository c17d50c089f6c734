"""Block-sparse attention: a query block reads a list of key blocks, and inside them a band of keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dialect import operator


def visible_keys(
    queries: int,
    keys: int,
    block_index: Tensor | None,
    block_count: Tensor | None,
    block: int,
    left: int,
    right: int,
    device: torch.device,
) -> Tensor:
    """Boolean mask of :func:`block_sparse_attention`, ``[S, T]`` or (with block lists) ``[L, S, T]``; True is visible.

    ``S`` is ``queries`` and ``T`` is ``keys``; the other arguments are the operator's.
    """
    row = torch.arange(queries, device=device).unsqueeze(1)
    column = torch.arange(keys, device=device).unsqueeze(0)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if left >= 0:
        mask = mask & (column >= row - left)
    if right >= 0:
        mask = mask & (column <= row + right)
    if block_index is None:
        return mask
    lists, rows, slots = block_index.shape
    columns = (keys + block - 1) // block
    index = block_index.to(torch.int64)
    if block_count is not None:
        used = torch.arange(slots, device=device) < block_count.unsqueeze(-1)
        index = torch.where(used, index, columns)  # unused slots point at a column that is cut off below
    listed = torch.zeros(lists, rows, columns + 1, dtype=torch.bool, device=device)
    listed = listed.scatter(2, index, torch.ones_like(index, dtype=torch.bool))[..., :columns]
    listed = listed.repeat_interleave(block, 1)[:, :queries].repeat_interleave(block, 2)[..., :keys]
    return listed & mask


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


@operator(version=1, fake=_shape)
def block_sparse_attention(
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
    """``softmax(scale * query key^T)`` over the visible keys, times ``value``; a query that sees no key gives zeros.

    Shapes: ``query [B, H, S, D]``, ``key [B, G, T, D]``, ``value [B, G, T, E]`` with ``G`` dividing ``H`` (query head
    ``h`` reads key head ``h // (H // G)``); any strides. Returns ``[B, H, S, E]`` of ``query``'s floating dtype,
    accumulated in at least float32 and laid out in memory as ``[B, S, H, E]``, as the projection after it reads it.

    Key ``j`` is visible to query ``i`` when both hold:

    - the band, in tokens: ``i - left <= j <= i + right``; a negative ``left`` or ``right`` leaves that side open;
    - the block lists, if given: key block ``j // block`` is one of
      ``block_index[l, i // block, : block_count[l, i // block]]``, where ``block_index [L, ceil(S / block), M]`` and
      ``block_count [L, ceil(S / block)]`` are int32 and ``L`` is 1 or ``H`` (a list per query head). ``block_count``
      None: all ``M`` are used. Listing a key block twice counts it once.

    Without block lists ``block`` only suggests a tile size; the result does not depend on it.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, 1)
        value = value.repeat_interleave(groups, 1)
    accumulate = torch.promote_types(query.dtype, torch.float32)
    mask = visible_keys(query.shape[2], key.shape[2], block_index, block_count, block, left, right, query.device)
    scores = (query.to(accumulate) * scale) @ key.to(accumulate).transpose(-1, -2)
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.where(mask.any(-1, keepdim=True), scores, 0.0).softmax(-1)
    weights = weights.masked_fill(~mask, 0.0)
    out = (weights @ value.to(accumulate)).to(query.dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2)
