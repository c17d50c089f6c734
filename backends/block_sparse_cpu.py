"""Banded attention on CPU: every query block reads one window of keys, so the work is S x (left + block + right)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..passes.ops.block_sparse import block_sparse_attention
from ..patterns.reasons import Reason
from .providers import provider

ROWS = 64
"""Queries per window. Wider windows waste less on their ends, narrower ones on masked corners; 64 won or drew for
bands of 64 to 1024 keys (``benchmarks/window.py --rows``)."""


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
    if query.device.type != "cpu":
        return Reason("unsupported-device", f"the gathered form is for CPU, not {query.device.type}")
    if block_index is not None:
        return Reason("unsupported-op", "block lists have no gathered CPU form")
    if left < 0 or right < 0:
        return Reason("unsupported-shape", "the band is open on one side, so windows have no fixed size")
    if query.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return Reason("unsupported-dtype", f"no CPU attention for {query.dtype}")
    if not (isinstance(query.shape[2], int) and isinstance(key.shape[2], int)):
        return Reason("unsupported-shape", "windows need a token count known when compiling")
    if query.shape[2] != key.shape[2]:
        return Reason("unsupported-shape", "windows need as many keys as queries")
    if query.numel() == 0 or value.numel() == 0:
        return Reason("unsupported-shape", "there is nothing to compute")
    return None


@provider(block_sparse_attention, "gather", priority=10, supports=_supports)
def gathered_band_attention(
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
    """The band as three dense attentions: the ends of the sequence, and its middle as a batch of equal windows.

    The middle's keys are overlapping views of one tensor (``unfold``), so nothing is copied and one small mask
    ``[ROWS, left + ROWS + right]`` serves every window. Shapes as for the operator.
    """
    tokens, features = query.shape[2], value.shape[-1]
    # The fused CPU kernel wants one depth for all three; zeros change neither the scores nor the first features.
    depth = max(query.shape[-1], features)
    query, key, value = (F.pad(x, (0, depth - x.shape[-1])) if x.shape[-1] < depth else x for x in (query, key, value))
    begin = min(-(-left // ROWS) * ROWS, tokens)
    windows = max((tokens - right - begin) // ROWS, 0)
    end = begin + windows * ROWS
    if windows < 2:
        # Too short for windows of equal size: one masked attention over everything.
        begin = end = tokens
    parts = []
    if begin:
        parts.append(_masked(query, key, value, 0, begin, left, right, scale))
    if end > begin:
        parts.append(_windows(query, key, value, begin, end, left, right, scale))
    if tokens > end:
        parts.append(_masked(query, key, value, end, tokens, left, right, scale))
    return torch.cat([part.transpose(1, 2)[..., :features] for part in parts], 1).transpose(1, 2)


def _band(first: int, rows: int, start: int, columns: int, left: int, right: int, device: torch.device) -> Tensor:
    """Visible keys ``start .. start + columns`` of queries ``first .. first + rows``, boolean ``[rows, columns]``."""
    row = torch.arange(first, first + rows, device=device).unsqueeze(1)
    column = torch.arange(start, start + columns, device=device)
    return (column >= row - left) & (column <= row + right)


def _masked(
    query: Tensor, key: Tensor, value: Tensor, first: int, last: int, left: int, right: int, scale: float
) -> Tensor:
    """Queries ``first .. last`` against the only keys they can see."""
    start, stop = max(first - left, 0), min(last + right, key.shape[2])
    mask = _band(first, last - first, start, stop - start, left, right, query.device)
    return F.scaled_dot_product_attention(
        query[:, :, first:last],
        key[:, :, start:stop],
        value[:, :, start:stop],
        mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _windows(
    query: Tensor, key: Tensor, value: Tensor, begin: int, end: int, left: int, right: int, scale: float
) -> Tensor:
    """Queries ``begin .. end`` (a multiple of ROWS) as one attention whose batch holds the windows."""
    batch, heads, _, depth = query.shape
    groups = heads // key.shape[1]
    width = left + ROWS + right
    mask = _band(left, ROWS, 0, width, left, right, query.device)

    def windows(x: Tensor) -> Tensor:
        """``[batch * heads, windows, width, depth]``, all of them views of ``x`` where batch and heads can be one."""
        if groups > 1:
            x = x.repeat_interleave(groups, 1)
        x = x.flatten(0, 1)[:, begin - left : end + right]
        return x.unfold(1, width, ROWS).transpose(-1, -2)

    rows = query[:, :, begin:end].flatten(0, 1).unflatten(1, (-1, ROWS))
    keys, values = windows(key), windows(value)
    if batch == 1:
        # Windows before heads: the result then lies in memory as [S, H, E] already.
        rows, keys, values = rows.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1)
        out = F.scaled_dot_product_attention(rows, keys, values, mask, scale=scale)
        return out.transpose(0, 1).flatten(1, 2).unsqueeze(0)
    out = F.scaled_dot_product_attention(rows, keys, values, mask, scale=scale)
    return out.reshape(batch, heads, end - begin, -1)
