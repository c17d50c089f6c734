"""Linear attention, many ways to write it, and what only looks like it. Inputs ``[B, N, H * width]`` as everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.attention import heads, n

EPSILON = 1e-6


def mapped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All operands with their heads apart, queries and keys positive."""
    q, k, v = heads(q, k, v)
    return F.elu(q) + 1, F.elu(k) + 1, v


def summed_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    return q @ (k.mT @ v) / ((q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True) + EPSILON)


def product_with_the_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    below = torch.matmul(q, k.sum(dim=2).unsqueeze(-1))
    return torch.matmul(q, torch.matmul(k.transpose(-1, -2), v)) / (EPSILON + below)


def three_in_one_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in mapped(q, k, v))
    inverse = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(dim=1)) + EPSILON)
    return torch.einsum("nlhd,nhdm,nlh->nlhm", q, torch.einsum("nshd,nshm->nhdm", k, v), inverse).transpose(1, 2)


def times_the_reciprocal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    inverse = torch.reciprocal(torch.einsum("bhsd,bhd->bhs", q, k.sum(2)) + EPSILON)
    return torch.einsum("bhsd,bhde->bhse", q, torch.einsum("bhtd,bhte->bhde", k, v)) * inverse[..., None]


def queries_divided_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    below = (q @ k.sum(-2)[..., None]) + EPSILON
    return (q / below) @ (k.mT @ v)


def column_of_ones(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    made = q @ (k.mT @ F.pad(v, (0, 1), value=1.0))
    return made[..., :-1] / (made[..., -1:] + EPSILON)


def column_of_ones_joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    made = q @ (k.mT @ torch.cat([v, torch.ones(n.B, n.H, n.T, 1)], -1))
    return made[..., : n.E] / (made[..., -1:] + EPSILON)


def features_before_tokens(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    q, v = q.mT.contiguous(), F.pad(v.mT, (0, 0, 0, 1), mode="constant", value=1.0)
    made = (v @ k) @ q
    return (made[:, :, :-1] / (made[:, :, -1:] + EPSILON)).mT


def in_double(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.double() for x in mapped(q, k, v))
    above = torch.bmm(k.flatten(0, 1).mT, v.flatten(0, 1))
    made = torch.bmm(q.flatten(0, 1), above).view(n.B, n.H, n.S, n.E)
    return (made / ((q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True) + EPSILON)).float()


NORMALISED: list[Callable[..., Any]] = [
    *(summed_products, product_with_the_sum, three_in_one_einsum, times_the_reciprocal, queries_divided_first),
    *(column_of_ones, column_of_ones_joined, features_before_tokens, in_double),
]


def keys_through_a_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q * n.scale) @ (k.softmax(dim=2).transpose(-1, -2) @ v)


def keys_through_a_softmax_by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    context = torch.einsum("bhtd,bhte->bhde", torch.softmax(k, -2), v)
    return torch.einsum("bhde,bhsd->bhse", context, q * n.scale)


SOFTENED: list[Callable[..., Any]] = [keys_through_a_softmax, keys_through_a_softmax_by_einsum]


# --- look-alikes ---------------------------------------------------------------------------------------------------


def never_normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    return q @ (k.mT @ v)


def divided_by_the_sum_of_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    return q @ (k.mT @ v) / (v.sum((-1, -2), keepdim=True) + EPSILON)


def divided_by_a_mean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k, v)
    return q @ (k.mT @ v) / ((q * k.mean(-2, keepdim=True)).sum(-1, keepdim=True) + EPSILON)


def keys_softened_over_their_width(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return q @ (k.softmax(-1).mT @ v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = mapped(q, k[:, : n.S], v[:, : n.S])
    states = torch.cumsum(k.unsqueeze(-1) * v.unsqueeze(-2), 2)
    return (q.unsqueeze(-2) @ states).squeeze(-2) / ((q * k.cumsum(2)).sum(-1, keepdim=True) + EPSILON)


def products_returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    q, k, v = mapped(q, k, v)
    context = k.mT @ v
    return q @ context / ((q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True) + EPSILON), context


LOOKALIKES: list[tuple[Callable[..., Any], str | None]] = [
    (never_normalised, None),
    (divided_by_the_sum_of_values, "not-proven"),
    (divided_by_a_mean, "not-proven"),
    (keys_softened_over_their_width, None),
    (causal, None),
    (products_returned, None),
]
"""With the code each is refused under; None: nothing in it is normalised over the keys, or it is not one value."""
