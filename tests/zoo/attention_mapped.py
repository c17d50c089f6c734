"""Attention that makes weights of its scores in a way of its own, as research code does; and what is none."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.attention import Spelling, made, n, scores_of, split, tokens

KEPT = 3


def finish(weights: Tensor, v: Tensor) -> Tensor:
    return weights @ split(v, n.E)


# --- heads that talk to each other ---------------------------------------------------------------------------------


def talking() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.H, n.H, seed=4))


def heads_mixed_in_front(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """Talking heads, Shazeer et al. 2020."""
    return finish(torch.einsum("bhst,hg->bgst", scores_of(q, k), mix).softmax(-1), v)


def heads_mixed_on_both_sides(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    scores = F.linear(scores_of(q, k).permute(0, 2, 3, 1), mix).permute(0, 3, 1, 2)
    weights = F.linear(scores.softmax(-1).permute(0, 2, 3, 1), mix.T).permute(0, 3, 1, 2)
    return finish(weights, v)


def heads_mixed_by_a_convolution(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    return finish(F.conv2d(scores_of(q, k), mix[..., None, None]).softmax(-1), v)


def attended_again(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """Re-attention, Zhou et al. 2021, DeepViT: mixed heads, normalised over the heads."""
    weights = torch.einsum("bhst,hg->bgst", scores_of(q, k).softmax(-1), mix)
    return finish(F.layer_norm(weights.permute(0, 2, 3, 1), (n.H,)).permute(0, 3, 1, 2), v)


# --- keys chosen, joined and weighed -------------------------------------------------------------------------------


def largest_scores_only(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Zhao et al. 2019, explicit sparse transformer."""
    scores = scores_of(q, k)
    lowest = scores.topk(KEPT, dim=-1).values[..., -1:]
    return finish(scores.masked_fill(scores < lowest, float("-inf")).softmax(-1), v)


def largest_weights_only(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores_of(q, k).softmax(-1)
    values, places = weights.topk(KEPT, dim=-1)
    return finish(torch.zeros_like(weights).scatter(-1, places, values), v)


def signs_apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Cog attention, Lv et al. 2024: weights may be negative."""
    scores = scores_of(q, k)
    return finish(scores.abs().softmax(-1) * scores.sign(), v)


def positions_counted(q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
    """Contextual positions, Golovneva et al. 2024: scores say how far each key is."""
    scores = scores_of(q, k)
    far = scores.sigmoid().flip(-1).cumsum(-1).flip(-1).clamp(max=2.0)
    low = far.floor().long()
    table = (split(q, n.D) @ places).gather(-1, low)
    return finish((scores + table * (far - low)).softmax(-1), v)


def placed() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.D, 4, seed=5))


def weights_gated(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    return finish(scores_of(q, k).softmax(-1) * gate.sigmoid(), v)


def gated() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.H, n.S, n.T, seed=6))


def positions_on_a_part(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The first token has no place: nothing is added to its row and column."""
    scores = scores_of(q, k)
    inner = scores[..., 1:, 1:] + bias[..., 1:, 1:]
    scores = torch.cat([scores[..., :1, :], torch.cat([scores[..., 1:, :1], inner], -1)], -2)
    return finish(scores.softmax(-1), v)


def positions_written_into_a_part(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    scores = scores_of(q, k)
    inner = scores[..., 1:] + bias[..., 1:]
    return finish(torch.slice_scatter(scores, inner, -1, 1).softmax(-1), v)


def two_sets_of_keys(q: Tensor, k: Tensor, v: Tensor, k2: Tensor, v2: Tensor) -> Tensor:
    """One softmax over local and global keys."""
    joined = torch.cat([scores_of(q, k), scores_of(q, k2)], -1).softmax(-1)
    return joined @ torch.cat([split(v, n.E), split(v2, n.E)], -2)


def two_sets() -> tuple[Tensor, ...]:
    more = made(n.B, n.T, n.H * n.D, seed=7), made(n.B, n.T, n.H * n.E, seed=8)
    return (*tokens(), *more)


# --- scores and weights that are read elsewhere --------------------------------------------------------------------


def weights_returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = scores_of(q, k).softmax(-1)
    return finish(weights, v), weights


def weights_averaged_too(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = scores_of(q, k).softmax(-1)
    return finish(weights, v), weights.mean(1)


def multiplied_by_a_sink(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    scores = scores_of(q, k)
    share = torch.sigmoid(scores.logsumexp(-1, keepdim=True) - sink.view(-1, 1, 1))
    return finish(scores.softmax(-1), v) * share


def sunk() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.H, seed=9))


MAPPED: list[tuple[Spelling, Any, str]] = [
    (heads_mixed_in_front, talking, "unsupported-shape"),
    (heads_mixed_on_both_sides, talking, "unsupported-op"),
    (heads_mixed_by_a_convolution, talking, "unsupported-op"),
    (attended_again, talking, "wrong-axis"),
    (largest_scores_only, tokens, "weights-escape"),
    (largest_weights_only, tokens, "weights-escape"),
    (signs_apart, tokens, "unsupported-op"),
    (positions_counted, placed, "weights-escape"),
    (weights_gated, gated, "unsupported-op"),
    (positions_on_a_part, gated, "unsupported-op"),
    (positions_written_into_a_part, gated, "unsupported-op"),
    (two_sets_of_keys, two_sets, "unsupported-op"),
    (weights_returned, tokens, "weights-escape"),
    (weights_averaged_too, tokens, "weights-escape"),
    (multiplied_by_a_sink, sunk, "weights-escape"),
]


# --- none at all: queries see each other's scores, or the softmax is over something else ---------------------------


def largest_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    lowest = scores.topk(KEPT, dim=-2).values[..., -1:, :]
    return finish(scores.masked_fill(scores < lowest, -1e9).softmax(-1), v)


def taken_off_by_earlier_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Selective attention, Leviathan et al. 2024: what earlier queries masked stays masked."""
    scores = scores_of(q, k)
    return finish((scores - scores[:, :1].relu().cumsum(-2)).softmax(-1), v)


def normalised_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores_of(q, k).softmax(-1)
    return finish(weights / (weights.sum(-2, keepdim=True) + 1e-6), v)


def softmax_over_queries_mixed(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    return finish(torch.einsum("bhst,hg->bgst", scores_of(q, k), mix).softmax(-2), v)


def softmax_over_heads_mixed(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    return finish(torch.einsum("bhst,hg->bgst", scores_of(q, k), mix).softmax(1), v)


def moved_to_the_next_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return finish(scores_of(q, k).softmax(-1).roll(1, -2), v)


def smoothed_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kernel = torch.ones(n.H, n.H, 3, 1)
    return finish(F.conv2d(scores_of(q, k), kernel, padding=(1, 0)).softmax(-1), v)


def queries_summed(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    weights = scores_of(q, k).softmax(-1) * gate
    return weights.mT @ split(q, n.D)


NONE: list[tuple[Spelling, Any]] = [
    (largest_over_queries, tokens),
    (taken_off_by_earlier_queries, tokens),
    (normalised_over_queries, tokens),
    (softmax_over_queries_mixed, talking),
    (softmax_over_heads_mixed, talking),
    (moved_to_the_next_query, tokens),
    (smoothed_over_queries, tokens),
    (queries_summed, gated),
]
