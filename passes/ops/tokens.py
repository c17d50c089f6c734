"""Token merging: which tokens are most alike (an operator), and merging and restoring them (plain torch)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..dialect import operator


def _shape(source: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
    rows = source.shape[:-1]
    return source.new_empty(rows, dtype=torch.float32), source.new_empty(rows, dtype=torch.int64)


@operator(version=1, fake=_shape)
def bipartite_match(source: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
    """For each source token the most similar destination token, by cosine.

    Shapes: ``source [B, A, C]``, ``destination [B, M, C]`` of one floating dtype, any strides (they are usually the
    odd and even rows of one tensor). Returns ``score [B, A]`` float32, the largest cosine similarity (norms are
    clamped to at least 1e-12), and ``index [B, A]`` int64, the destination that has it (any one of equals).
    Only the row maximum is wanted, so a kernel never needs the ``A x M`` similarities at once.
    Source: Bolya et al., Token Merging: Your ViT But Faster (2023), section 3, bipartite soft matching.
    """
    left = torch.nn.functional.normalize(source.float(), dim=-1, eps=1e-12)
    right = torch.nn.functional.normalize(destination.float(), dim=-1, eps=1e-12)
    score, index = (left @ right.transpose(-1, -2)).max(-1)
    return score, index


class Merging(NamedTuple):
    """Which of ``N`` tokens become one. ``R = N - r`` rows are left, in the order of the tokens they keep.

    ``kept [B, R]``: the token each row keeps. ``merged [B, r]``: the tokens that join another row, which is
    ``destination [B, r]``. ``row [B, N]``: the row every token went to. ``size [B, R]`` float32: how many tokens a row
    stands for. Indices are int64.
    """

    kept: Tensor
    merged: Tensor
    destination: Tensor
    row: Tensor
    size: Tensor


def match_tokens(metric: Tensor, r: int, protected: int = 0) -> Merging:
    """Choose the ``r`` tokens of ``metric [B, N, C]`` that are most like another one.

    After ``protected`` tokens, which are neither merged nor merged into, every second token is a source and the ones
    between are destinations; the ``r`` sources with the highest score join their best destination. ``r`` is at most
    ``(N - protected + 1) // 2`` with a destination left (see :func:`merge_limit`).
    """
    batch, tokens, _ = metric.shape
    score, index = bipartite_match(metric[:, protected::2], metric[:, protected + 1 :: 2])
    chosen = score.topk(r, dim=-1).indices
    merged = protected + 2 * chosen
    target = protected + 1 + 2 * index.gather(1, chosen)
    stays = torch.ones(batch, tokens, dtype=torch.int64, device=metric.device)
    stays = stays.scatter(1, merged, 0)
    row = stays.cumsum(1) - 1
    destination = row.gather(1, target)
    # Tokens that leave are written into one extra column, which is cut off: a compaction without a sort.
    rows = tokens - r
    position = torch.arange(tokens, device=metric.device).expand(batch, tokens)
    kept = torch.zeros(batch, rows + 1, dtype=torch.int64, device=metric.device)
    kept = kept.scatter(1, torch.where(stays == 1, row, rows), position)[:, :rows]
    row = row.scatter(1, merged, destination)
    size = torch.ones(batch, rows, dtype=torch.float32, device=metric.device)
    size = size.scatter_add(1, destination, torch.ones_like(destination, dtype=torch.float32))
    return Merging(kept, merged, destination, row, size)


def merge_limit(tokens: int, protected: int) -> int:
    """The largest ``r`` for ``tokens`` tokens: every source merged, with at least one destination to merge into."""
    free = max(tokens - protected, 0)
    return 0 if free < 2 else (free + 1) // 2


def merge(x: Tensor, merging: Merging) -> Tensor:
    """Means of the merged tokens: ``x [B, ..., N, C]`` to ``[B, ..., R, C]``, in ``x``'s dtype."""
    shape = x.shape
    x = x.reshape(shape[0], -1, shape[-2], shape[-1])
    rows = merging.kept.shape[1]

    def along(index: Tensor) -> Tensor:
        return index[:, None, :, None].expand(-1, x.shape[1], -1, shape[-1])

    total = x.gather(2, along(merging.kept))
    total = total.scatter_add(2, along(merging.destination), x.gather(2, along(merging.merged)))
    mean = total / merging.size.to(x.dtype)[:, None, :, None]
    return mean.reshape(*shape[:-2], rows, shape[-1])


def unmerge(y: Tensor, merging: Merging) -> Tensor:
    """Every token gets its row back: ``y [B, ..., R, C]`` to ``[B, ..., N, C]``."""
    shape = y.shape
    y = y.reshape(shape[0], -1, shape[-2], shape[-1])
    index = merging.row[:, None, :, None].expand(-1, y.shape[1], -1, shape[-1])
    return y.gather(2, index).reshape(*shape[:-2], -1, shape[-1])
