"""Attention whose scores or weights are bent: soft caps, sinks, temperatures that are tensors, mixed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.attention import Family, heads, made, n, scores_of, split, tokens

CAP = 1.5


def finish(scores: Tensor, v: Tensor) -> Tensor:
    return scores.softmax(-1) @ split(v, n.E)


# --- soft caps -----------------------------------------------------------------------------------------------------


def capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return finish(torch.tanh(scores_of(q, k) / CAP) * CAP, v)


def capped_before_the_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (CAP * torch.tanh((q * (n.scale / CAP)) @ k.mT)).softmax(-1) @ v


def capped_in_float(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (scores_of(q, k).double() * (1 / CAP)).tanh().mul(CAP)
    return scores.softmax(-1).to(v.dtype) @ split(v, n.E)


def capped_upside_down(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (torch.tanh(torch.einsum("bhsd,bhtd->bhst", -q, k) * n.scale / CAP) * -CAP).softmax(-1) @ v


def capped_and_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = torch.ones(n.S, n.T, dtype=torch.bool).triu(1)
    return finish((torch.tanh(scores_of(q, k) / CAP) * CAP).masked_fill(hidden, float("-inf")), v)


def capped_and_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return finish(torch.full((n.S, n.T), float("-inf")).triu(1) + scores_of(q, k).div(CAP).tanh().mul(CAP), v)


# --- sinks ---------------------------------------------------------------------------------------------------------


def sunk() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.H, seed=7))


def sinks_behind(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    joined = torch.cat([scores_of(q, k), sinks.reshape(1, -1, 1, 1).expand(n.B, -1, n.S, -1)], dim=-1)
    return joined.softmax(-1)[..., :-1] @ split(v, n.E)


def sinks_behind_stable(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    joined = torch.cat([scores_of(q, k), sinks.view(1, n.H, 1, 1).expand(n.B, n.H, n.S, 1)], dim=3)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    return joined.softmax(dim=-1, dtype=torch.float64)[..., : n.T].to(v.dtype) @ split(v, n.E)


def sinks_in_front(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    joined = torch.cat([sinks.view(1, n.H, 1, 1).expand(n.B, n.H, n.S, 1), scores_of(q, k)], dim=-1)
    return joined.softmax(-1)[..., 1:] @ split(v, n.E)


def sinks_by_hand(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    joined = torch.cat([scores_of(q, k), sinks.view(1, n.H, 1, 1).repeat(n.B, 1, n.S, 1)], dim=-1)
    raised = (joined - joined.amax(-1, keepdim=True)).exp()
    return (raised / raised.sum(-1, keepdim=True))[..., :-1] @ split(v, n.E)


# --- temperatures --------------------------------------------------------------------------------------------------


def heated() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.H, 1, 1, seed=8))


def temperature_behind(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ k.mT * temperature).softmax(-1) @ v


def temperature_in_front(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (temperature[None] * torch.einsum("bhsd,bhtd->bhst", q, k)).softmax(-1) @ v


def temperature_expanded(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (torch.matmul(q, k.transpose(2, 3)) * temperature.expand(n.B, n.H, n.S, n.T)).softmax(-1) @ v


# --- mixed weights -------------------------------------------------------------------------------------------------


def gated() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.H, seed=8), made(n.H, n.S, n.T, seed=9))


def mixed(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, places: Tensor) -> Tensor:
    share = gate.view(1, -1, 1, 1).sigmoid()
    weights = (1.0 - share) * scores_of(q, k).softmax(-1) + share * places.softmax(-1)
    weights = weights / weights.sum(dim=-1).unsqueeze(-1)
    return weights @ split(v, n.E)


def mixed_with_the_sum_kept(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, places: Tensor) -> Tensor:
    share = gate.view(-1, 1, 1).sigmoid()
    weights = share * places.softmax(-1)[None] + scores_of(q, k).softmax(-1) * (1 - share)
    return torch.einsum("bhst,bhte->bhse", weights / weights.sum(3, keepdim=True), split(v, n.E))


def mixed_by_hand(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, places: Tensor) -> Tensor:
    raised = scores_of(q, k).exp()
    share = gate.sigmoid()[:, None, None].expand(n.H, n.S, n.T)
    weights = (raised / raised.sum(-1, keepdim=True)) * (1 - share) + share * places.softmax(-1)
    return (weights / torch.unsqueeze(weights.sum([-1]), 3)) @ split(v, n.E)


FAMILIES = [
    Family("capped", (capped, capped_before_the_product, capped_in_float, capped_upside_down), tokens),
    Family("capped and causal", (capped_and_causal, capped_and_added), tokens),
    Family("sinks", (sinks_behind, sinks_behind_stable, sinks_in_front, sinks_by_hand), sunk),
    Family("mixed", (mixed, mixed_with_the_sum_kept, mixed_by_hand), gated),
    Family("temperature", (temperature_behind, temperature_in_front, temperature_expanded), heated),
]
