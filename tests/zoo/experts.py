"""The mixture-of-experts zoo: ways to route, ways to bring tokens to experts, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.feedforward import P, Spelling, make

N, K, H, E, TOP = 10, 8, 11, 4, 2


def weights() -> P:
    held = {
        "router": make(E, K, seed=1),
        "router_bias": make(E, seed=2),
        "both": make(E, 2 * H, K, seed=3),
        "up": make(E, H, K, seed=4),
        "gate": make(E, H, K, seed=5),
        "down": make(E, K, H, seed=6),
        "up_bias": make(E, H, seed=7),
        "down_bias": make(E, K, seed=8),
        "both_t": make(E, K, 2 * H, seed=9),
        "down_t": make(E, H, K, seed=10),
        "shared_up": make(H + 2, K, seed=11),
        "shared_down": make(K, H + 2, seed=12),
        "shared_gate": make(1, K, seed=13),
        "balance": make(E, seed=14) * 0.1,
    }
    for expert in range(E):
        for name, shape in (("up", (H, K)), ("gate", (H, K)), ("down", (K, H))):
            held[f"{name}_{expert}"] = make(*shape, seed=20 + expert)
    return held


def tokens() -> Tensor:
    return make(N, K, seed=40)


# --- routing -------------------------------------------------------------------------------------------------------


def softmax_then_choose(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = F.linear(x, p["router"]).softmax(-1).topk(TOP, dim=-1)
    return values / values.sum(-1, keepdim=True), indices


def choose_then_softmax(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x @ p["router"].t(), TOP, dim=-1)
    return torch.softmax(values, dim=-1), indices


def normalised_in_place(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = F.softmax(F.linear(x, p["router"]).float(), dim=1).topk(TOP)
    values /= values.sum(-1, keepdim=True)
    return values, indices


def unnormalised(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = F.linear(x, p["router"]).softmax(-1).topk(TOP, dim=-1)
    return values, indices


def sigmoid_scaled(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    scores = F.linear(x, p["router"]).sigmoid()
    indices = (scores + p["balance"]).topk(TOP, -1, sorted=False).indices
    values = scores.gather(-1, indices)
    return values / values.sum(-1, keepdim=True) * 1.5, indices


def chosen_by_outputs(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    outputs = F.linear(x, p["router"])
    indices = (outputs + p["balance"]).topk(TOP, -1).indices
    values = outputs.gather(-1, indices).sigmoid()
    return values / values.sum(-1, keepdim=True), indices


def one_expert(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    scores = F.linear(x, p["router"]).softmax(-1)
    return scores.max(dim=-1, keepdim=True).values, scores.argmax(-1, keepdim=True)


def one_after_the_other(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    scores = F.linear(x, p["router"]).softmax(-1)
    first, best = scores.max(-1, keepdim=True)
    second, other = scores.scatter(-1, best, 0.0).max(-1, keepdim=True)
    values = torch.cat([first, second], -1)
    return values / values.sum(-1, keepdim=True), torch.cat([best, other], -1)


def contested(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    scores = F.linear(x, p["router"])
    left, values, indices = scores, [], []
    for _ in range(TOP):
        best, chosen = left.max(-1, keepdim=True)
        behind = (best - scores) / scores.abs().clamp(min=best) > 0.5
        values.append(left.masked_fill(behind, float("-inf")).softmax(-1).gather(-1, chosen))
        indices.append(chosen)
        left = left.scatter(-1, chosen, float("-inf"))
    return torch.cat(values, -1), torch.cat(indices, -1)


ROUTERS: list[Callable[..., tuple[Tensor, Tensor]]] = [
    *(softmax_then_choose, choose_then_softmax, normalised_in_place, one_after_the_other),
]


# --- dispatch, for experts down(silu(gate(x)) * up(x)) with gate and up in one stack ---------------------------------


def expert(p: P, x: Tensor, index: int) -> Tensor:
    gate, up = F.linear(x, p["both"][index]).chunk(2, -1)
    return F.linear(F.silu(gate) * up, p["down"][index])


def loop_of_masks(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for index in range(E):
        weight = (values * (indices == index)).sum(-1, keepdim=True)
        total = total + weight * expert(p, x, index)
    return total


def loop_adding_in_place(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    total = torch.zeros(N, K)
    for index in range(E):
        total += torch.where(indices == index, values, 0.0).sum(1)[:, None] * expert(p, x, index)
    return total


def loop_of_index_add(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    total, every = torch.zeros_like(x), torch.arange(N)
    for index in range(E):
        weight = ((indices == index) * values).sum(-1)
        total.index_add_(0, every, expert(p, x, index) * weight[:, None])
    return total


def loop_over_choices(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for place in range(TOP):
        both, down = p["both"][indices[:, place]], p["down"][indices[:, place]]
        gate, up = torch.einsum("nk,nhk->nh", x, both).chunk(2, -1)
        total = total + values[:, place, None] * torch.einsum("nh,nkh->nk", F.silu(gate) * up, down)
    return total


def one_hot_dispatch(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    chosen = F.one_hot(indices, E).to(x.dtype)
    sent = torch.einsum("nte,nk->enk", chosen, x)
    gate, up = torch.einsum("enk,ehk->enh", sent, p["both"]).chunk(2, -1)
    made = torch.einsum("enh,ekh->enk", F.silu(gate) * up, p["down"])
    return torch.einsum("enk,nte,nt->nk", made, chosen, values)


def dense_bmm(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    gate, up = torch.bmm(x.expand(E, N, K), p["both"].transpose(1, 2)).chunk(2, -1)
    made = torch.bmm(F.silu(gate) * up, p["down"].transpose(1, 2))
    weight = torch.zeros(N, E).scatter(1, indices, values)
    return (made * weight.t().unsqueeze(-1)).sum(0)


def dense_einsum(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    gate, up = torch.einsum("nk,ehk->neh", x, p["both"]).split(H, -1)
    made = torch.einsum("neh,ekh->nek", F.silu(gate) * up, p["down"])
    return torch.einsum("nek,ne->nk", made, torch.zeros(N, E).scatter_(1, indices, values))


def picked_from_dense(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    gate, up = torch.einsum("nk,ehk->neh", x, p["both"]).chunk(2, -1)
    made = torch.einsum("neh,ekh->nek", F.silu(gate) * up, p["down"])
    picked = made.gather(1, indices[..., None].expand(-1, -1, K))
    return (picked * values[..., None]).sum(1)


def gathered_bmm(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    flat = indices.reshape(-1)
    gate, up = torch.bmm(p["both"][flat], x.repeat_interleave(TOP, 0).unsqueeze(-1)).squeeze(-1).chunk(2, -1)
    made = torch.bmm(p["down"][flat], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
    return (made * values.reshape(-1, 1)).view(N, TOP, K).sum(1)


def sorted_by_expert(p: P, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    order, places = torch.sort(indices.reshape(-1), stable=True)
    gate, up = torch.einsum("nk,nhk->nh", x[places // TOP], p["both"][order]).chunk(2, -1)
    made = torch.einsum("nh,nkh->nk", F.silu(gate) * up, p["down"][order]) * values.reshape(-1)[places, None]
    return torch.zeros_like(x).index_add(0, places // TOP, made)


DISPATCHES: list[Callable[..., Tensor]] = [
    loop_of_masks,
    loop_adding_in_place,
    loop_of_index_add,
    loop_over_choices,
    one_hot_dispatch,
    dense_bmm,
    dense_einsum,
    picked_from_dense,
    gathered_bmm,
    sorted_by_expert,
]


def layer(route: Callable[..., Any], dispatch: Callable[..., Tensor]) -> Spelling:
    def run(p: P, x: Tensor) -> Tensor:
        return x + dispatch(p, x, *route(p, x))

    run.__name__ = f"{route.__name__}-{dispatch.__name__}"
    return run


# --- other experts -------------------------------------------------------------------------------------------------


def lists_of_experts(p: P, x: Tensor) -> Tensor:
    values, indices = softmax_then_choose(p, x)
    total = torch.zeros_like(x)
    for index in range(E):
        hidden = F.silu(F.linear(x, p[f"gate_{index}"])) * F.linear(x, p[f"up_{index}"])
        total = total + F.linear(hidden, p[f"down_{index}"]) * (values * (indices == index)).sum(-1, keepdim=True)
    return x + total


def plain_with_biases(p: P, x: Tensor) -> Tensor:
    values, indices = softmax_then_choose(p, x)
    hidden = F.gelu(torch.einsum("nk,ehk->neh", x, p["up"]) + p["up_bias"])
    made = torch.einsum("neh,ekh->nek", hidden, p["down"]) + p["down_bias"]
    return x + torch.einsum("nek,ne->nk", made, torch.zeros(N, E).scatter(1, indices, values))


def three_stacks(p: P, x: Tensor) -> Tensor:
    values, indices = softmax_then_choose(p, x)
    hidden = F.silu(torch.einsum("nk,ehk->neh", x, p["gate"])) * torch.einsum("nk,ehk->neh", x, p["up"])
    made = torch.einsum("neh,ekh->nek", hidden, p["down"])
    return x + torch.einsum("nek,ne->nk", made, torch.zeros(N, E).scatter(1, indices, values))


def stored_transposed(p: P, x: Tensor) -> Tensor:
    values, indices = softmax_then_choose(p, x)
    up, gate = (x @ p["both_t"]).chunk(2, -1)
    made = (F.silu(gate) * up) @ p["down_t"]
    return x + (made * torch.zeros(N, E).scatter(1, indices, values).t()[..., None]).sum(0)


def clamped(p: P, x: Tensor, gate_limit: float = 12.0) -> Tensor:
    values, indices = softmax_then_choose(p, x)
    gate, up = torch.einsum("nk,ehk->neh", x, p["both"]).chunk(2, -1)
    hidden = F.silu(gate.clamp(max=gate_limit)) * up.clamp(-12.0, 12.0)
    made = torch.einsum("neh,ekh->nek", hidden, p["down"])
    return x + torch.einsum("nek,ne->nk", made, torch.zeros(N, E).scatter(1, indices, values))


def scaled_inputs(p: P, x: Tensor) -> Tensor:
    values, indices = F.linear(x, p["router"]).topk(TOP, dim=-1)
    weights = torch.full((N, E), float("-inf")).scatter(1, indices, values).sigmoid()
    given = (x.repeat(E, 1) * weights.t().reshape(-1, 1)).view(E, N, K)
    gate, up = torch.bmm(given, p["both_t"]).chunk(2, -1)
    return x + torch.bmm(F.silu(gate) * up, p["down_t"]).sum(0)


def shared(p: P, x: Tensor) -> Tensor:
    beside = F.linear(F.relu(F.linear(x, p["shared_up"])), p["shared_down"])
    return x + (gathered_bmm(p, x, *softmax_then_choose(p, x)) + beside)


def shared_reading_a_view(p: P, x: Tensor) -> Tensor:
    turned, again = x.view(1, N, K).view(-1, K), x.view(1, N, K)
    routed = gathered_bmm(p, again.view(-1, K), *softmax_then_choose(p, turned))
    beside = F.linear(F.relu(F.linear(again.view(-1, K), p["shared_up"])), p["shared_down"])
    return x + (routed + beside)


def shared_gated(p: P, x: Tensor) -> Tensor:
    beside = F.linear(F.relu(F.linear(x, p["shared_up"])), p["shared_down"])
    routed = gathered_bmm(p, x, *softmax_then_choose(p, x))
    return x + (routed + torch.sigmoid(F.linear(x, p["shared_gate"])) * beside)


# --- look-alikes ---------------------------------------------------------------------------------------------------


def softmax_over_tokens(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = F.linear(x, p["router"]).softmax(0).topk(TOP, dim=-1)
    return values, indices


def squared_weights(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = F.linear(x, p["router"]).softmax(-1).topk(TOP, dim=-1)
    return values.square(), indices


def smallest(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = F.linear(x, p["router"]).softmax(-1).topk(TOP, dim=-1, largest=False)
    return values, indices


def shifted_choice(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = softmax_then_choose(p, x)
    return values, (indices + 1) % E


def weights_exchanged(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = softmax_then_choose(p, x)
    return values.flip(-1), indices


LIMIT = 3


def limited_capacity(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = unnormalised(p, x)
    chosen = F.one_hot(indices, E).sum(1)
    late = (chosen.cumsum(0) > LIMIT) & (chosen > 0)
    return values.masked_fill(late.gather(1, indices), 0.0), indices


def random_choice(p: P, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = (F.linear(x, p["router"]) + torch.rand(N, E)).softmax(-1).topk(TOP, dim=-1)
    return values, indices


def router_returned(p: P, x: Tensor) -> Any:
    scores = F.linear(x, p["router"])
    values, indices = scores.softmax(-1).topk(TOP, dim=-1)
    return x + gathered_bmm(p, x, values, indices), scores


def other_tokens(p: P, x: Tensor, other: Tensor) -> Tensor:
    return x + dense_bmm(p, other, *softmax_then_choose(p, x))


def norm_inside(p: P, x: Tensor) -> Tensor:
    values, indices = softmax_then_choose(p, x)
    hidden = F.layer_norm(F.gelu(torch.einsum("nk,ehk->neh", x, p["up"])), (H,))
    made = torch.einsum("neh,ekh->nek", hidden, p["down"])
    return x + torch.einsum("nek,ne->nk", made, torch.zeros(N, E).scatter(1, indices, values))


def clamped_at_two_limits(p: P, x: Tensor) -> Tensor:
    return clamped(p, x, 13.0)


def experts_of_two_kinds(p: P, x: Tensor) -> Tensor:
    values, indices = softmax_then_choose(p, x)
    total = torch.zeros_like(x)
    for index in range(E):
        bend = F.relu if index else F.gelu
        made = F.linear(bend(F.linear(x, p["up"][index])), p["down"][index])
        total = total + made * (values * (indices == index)).sum(-1, keepdim=True)
    return x + total


def tokens_chosen_by_experts(p: P, x: Tensor) -> Tensor:
    values, indices = F.linear(x, p["router"]).softmax(-1).t().topk(4, dim=-1)
    hidden = F.gelu(torch.einsum("enk,ehk->enh", x[indices], p["up"]))
    made = torch.einsum("enh,ekh->enk", hidden, p["down"]) * values[..., None]
    return x + torch.zeros_like(x).index_add(0, indices.reshape(-1), made.reshape(-1, K))


def all_experts(p: P, x: Tensor) -> Tensor:
    hidden = F.gelu(torch.einsum("nk,ehk->neh", x, p["up"]))
    made = torch.einsum("neh,ekh->nek", hidden, p["down"])
    return x + torch.einsum("nek,ne->nk", made, F.linear(x, p["router"]).softmax(-1))


ROUTING_LOOKALIKES = [
    softmax_over_tokens,
    squared_weights,
    smallest,
    shifted_choice,
    weights_exchanged,
    limited_capacity,
    random_choice,
]
LOOKALIKES: list[tuple[Spelling, str | None]] = [
    *((layer(route, gathered_bmm), "not-proven") for route in ROUTING_LOOKALIKES),
    (router_returned, None),
    (norm_inside, "not-proven"),
    (experts_of_two_kinds, "not-proven"),
    (clamped_at_two_limits, "not-proven"),
    (tokens_chosen_by_experts, None),
    (all_experts, None),
]
"""With the code each is refused under; None: nothing in it is a router whose choice ends in a sum over experts."""
