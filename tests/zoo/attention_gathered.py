"""Attention whose keys are gathered for each query: windows and bands, written out in pieces."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.attention import Spelling, made

B, H, S, D, E = 2, 3, 8, 4, 5
LEFT = RIGHT = 2
INF = float("-inf")


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    return made(B, S, H * D, seed=1), made(B, S, H * D, seed=2), made(B, S, H * E, seed=3)


def apart(x: Tensor) -> Tensor:
    """``[B, S, H * width]`` to ``[B, H, S, width]``."""
    return x.view(B, S, H, -1).transpose(1, 2)


def reach() -> Tensor:
    """Which of the slots ``[S, W]`` of a window hold a key."""
    keys = torch.arange(S)[:, None] + torch.arange(-LEFT, RIGHT + 1)
    return (keys >= 0) & (keys < S)


def windows(x: Tensor, left: int = LEFT, right: int = RIGHT) -> Tensor:
    """``[B, H, S, width]`` to ``[B, H, S, W, width]``: what each query sees."""
    return F.pad(x.contiguous(), (0, 0, left, right)).unfold(2, left + right + 1, 1).transpose(-1, -2)


# --- spellings of one window ---------------------------------------------------------------------------------------


def unfolded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhsd,bhswd->bhsw", apart(q), windows(apart(k))) * 0.5
    weights = scores.masked_fill(~reach(), INF).softmax(-1)
    return torch.einsum("bhsw,bhswe->bhse", weights, windows(apart(v)))


def unfolded_as_matrices(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = apart(q * 0.5).unsqueeze(-2) @ windows(apart(k)).transpose(-1, -2)
    weights = torch.where(reach(), scores.squeeze(-2), INF).softmax(-1)
    return (weights.unsqueeze(-2) @ windows(apart(v))).squeeze(-2)


def tokens_before_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhswd,bhsd->bswh", windows(apart(k)), apart(q)) / 2
    weights = scores.masked_fill(~reach()[None, :, :, None], INF).softmax(2)
    return torch.einsum("bswh,bhswe->bshe", weights, windows(apart(v))).flatten(2)


def strided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def around(x: Tensor) -> Tensor:
        x = F.pad(apart(x).reshape(B * H, S, -1), (0, 0, LEFT, RIGHT), value=-1.0)
        batch, row, feature = x.stride()
        return x.as_strided((B * H, S, LEFT + RIGHT + 1, x.shape[-1]), (batch, row, row, feature))

    scores = torch.einsum("nsd,nswd->nsw", apart(q).reshape(B * H, S, D), around(k)) * 0.5
    weights = torch.where(reach(), scores, torch.full_like(scores, INF)).softmax(-1)
    return torch.einsum("nsw,nswe->nse", weights, around(v)).view(B, H, S, E)


def band_of_a_square(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All products, of which diagonals are read one row further each: rows of one element more than there are keys."""
    wide = F.pad(apart(q) @ apart(k).mT * 0.5, (LEFT, RIGHT + 1), value=INF)
    batch, head, row, one = wide.stride()
    scores = wide.as_strided((B, H, S, LEFT + RIGHT + 1), (batch, head, row + 1, one))
    weights = F.pad(scores.softmax(-1), (0, S)).flatten(2)[:, :, : S * (S + LEFT + RIGHT)]
    weights = weights.view(B, H, S, S + LEFT + RIGHT)[..., LEFT : LEFT + S]
    return weights @ apart(v)


def halves_written_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Earlier keys and later ones, each copied into its part of the scores."""
    q, k = apart(q), apart(k).contiguous()
    scores = q.new_zeros(B, H, S, LEFT + RIGHT + 1)
    pieces = torch.cat([windows(k, LEFT, 0)[..., :-1, :], windows(k, 0, RIGHT)], 3)
    every = torch.einsum("bhsd,bhswd->bhsw", q, pieces)
    scores[..., :LEFT] = every[..., :LEFT]
    scores[..., LEFT:] = every[..., LEFT:]
    for row in range(LEFT):
        scores[:, :, row, : LEFT - row] = INF
        scores[:, :, S - 1 - row, LEFT + 1 + row :] = INF
    return torch.einsum("bhsw,bhswe->bhse", (scores * 0.5).softmax(-1), windows(apart(v)))


WINDOWS: list[Spelling] = [
    unfolded,
    unfolded_as_matrices,
    tokens_before_heads,
    strided,
    band_of_a_square,
    halves_written_in_place,
]


# --- other sets of keys, biases ------------------------------------------------------------------------------------


def dilated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def every_other(x: Tensor) -> Tensor:
        return F.pad(apart(x).contiguous(), (0, 0, 4, 0)).unfold(2, 5, 1)[..., ::2]

    keys = torch.arange(S)[:, None] + torch.arange(-4, 1, 2)
    scores = torch.einsum("bhsd,bhsdw->bhsw", apart(q), every_other(k)).masked_fill(keys < 0, INF)
    return torch.einsum("bhsw,bhsew->bhse", scores.softmax(-1), every_other(v))


def without_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def around(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, LEFT, RIGHT)).unfold(1, LEFT + RIGHT + 1, 1)

    scores = torch.einsum("bsd,bsdw->bsw", q, around(k)).masked_fill(~reach(), INF)
    return torch.einsum("bsw,bsew->bse", scores.softmax(-1), around(v))


def masked() -> tuple[Tensor, ...]:
    return (*tokens(), made(B, S, seed=4), torch.arange(S).expand(B, S) >= S - 2)


def padded(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, gone: Tensor) -> Tensor:
    scores = torch.einsum("bhsd,bhswd->bhsw", apart(q), windows(apart(k))).masked_fill(~reach(), INF)
    scores = scores + F.pad(bias, (LEFT, RIGHT)).unfold(1, LEFT + RIGHT + 1, 1)[:, None]
    weights = scores.softmax(-1).masked_fill(gone[:, None, :, None], 0.0)
    return torch.einsum("bhsw,bhswe->bhse", weights, windows(apart(v)))


def edges_in_sight(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The zeros beside the tokens are keys like any other."""
    weights = torch.einsum("bhsd,bhswd->bhsw", apart(q), windows(apart(k))).softmax(-1)
    return torch.einsum("bhsw,bhswe->bhse", weights, windows(apart(v)))


# --- look-alikes ---------------------------------------------------------------------------------------------------


def values_turned_round(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhsd,bhswd->bhsw", apart(q), windows(apart(k))).masked_fill(~reach(), INF).softmax(-1)
    return torch.einsum("bhsw,bhswe->bhse", weights, windows(apart(v)).flip(3))


def edges_hidden_a_little(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhsd,bhswd->bhsw", apart(q), windows(apart(k))).masked_fill(~reach(), -10.0).softmax(-1)
    return torch.einsum("bhsw,bhswe->bhse", weights, windows(apart(v)))


def clamped_in_between(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhsd,bhswd->bhsw", apart(q), windows(apart(k))).clamp(max=1e4)
    return torch.einsum("bhsw,bhswe->bhse", scores.masked_fill(~reach(), INF).softmax(-1), windows(apart(v)))


def windows_of_each_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def around(x: Tensor) -> Tensor:
        one, two, three = windows(apart(x)).unbind(1)
        return torch.stack([one, two.roll(1, 1), three], 1)

    scores = torch.einsum("bhsd,bhswd->bhsw", apart(q), around(k)).masked_fill(~reach(), INF)
    return torch.einsum("bhsw,bhswe->bhse", scores.softmax(-1), around(v))


def softmax_over_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhsd,bhswd->bhsw", apart(q), windows(apart(k))).masked_fill(~reach(), INF).softmax(-2)
    return torch.einsum("bhsw,bhswe->bhse", weights, windows(apart(v)))


def rounded_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhsd,bhswd->bhsw", apart(q), windows(apart(k))).long().float().masked_fill(~reach(), INF)
    return torch.einsum("bhsw,bhswe->bhse", scores.softmax(-1), windows(apart(v)))


def weights_returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = torch.einsum("bhsd,bhswd->bhsw", apart(q), windows(apart(k))).masked_fill(~reach(), INF).softmax(-1)
    return torch.einsum("bhsw,bhswe->bhse", weights, windows(apart(v))), weights


LOOKALIKES: list[Spelling] = [
    values_turned_round,
    edges_hidden_a_little,
    clamped_in_between,
    windows_of_each_head,
    softmax_over_rows,
    rounded_scores,
    weights_returned,
]
