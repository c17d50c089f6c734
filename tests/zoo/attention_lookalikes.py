"""What looks like attention and is something else: each one with the code it must be refused with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.attention import Spelling, heads, made, n, scores_of, split, tokens

# --- weights that are not a softmax over the keys ------------------------------------------------------------------


def softmax_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).softmax(-2) @ split(v, n.E)


def softmax_over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).softmax(1) @ split(v, n.E)


def softmax_over_heads_and_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k).transpose(1, 2).reshape(n.B, n.S, n.H * n.T).softmax(-1)
    return scores.view(n.B, n.S, n.H, n.T).transpose(1, 2) @ split(v, n.E)


def sums_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).softmax(-1).mT @ split(q, n.D)


def divided_by_sums_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = scores_of(q, k).exp()
    return (raised / raised.sum(-2, keepdim=True)) @ split(v, n.E)


def sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(scores_of(q, k)) @ split(v, n.E)


def squared_relu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.relu(scores_of(q, k)).square() @ split(v, n.E)


def relu_over_its_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = F.relu(scores_of(q, k))
    return (weights / (weights.sum(-1, keepdim=True) + 1e-6)) @ split(v, n.E)


def logarithms_of_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.log_softmax(scores_of(q, k), dim=-1) @ split(v, n.E)


def exponentials_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).exp() @ split(v, n.E)


def one_more_in_the_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = scores_of(q, k).exp()
    return (raised / (1 + raised.sum(-1, keepdim=True))) @ split(v, n.E)


def softmax_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).softmax(-1).softmax(-1) @ split(v, n.E)


# --- weights and scores that somebody else reads, or changes -------------------------------------------------------


def weights_returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = scores_of(q, k).softmax(-1)
    return weights @ split(v, n.E), weights


def mean_of_weights_returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = scores_of(q, k).softmax(-1)
    return weights @ split(v, n.E), weights.mean(1)


def scores_reused(q: Tensor, k: Tensor, v: Tensor) -> Any:
    scores = scores_of(q, k)
    return scores.softmax(-1) @ split(v, n.E), scores.sum()


def weights_used_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights, v = scores_of(q, k).softmax(-1), split(v, n.E)
    return weights @ v + weights @ v.flip(2)


def sum_of_exponentials_reused(q: Tensor, k: Tensor, v: Tensor) -> Any:
    raised = scores_of(q, k).exp()
    total = raised.sum(-1, keepdim=True)
    return (raised / total) @ split(v, n.E), total.log()


def weighted_weights(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    return (scores_of(q, k).softmax(-1) * gate) @ split(v, n.E)


def biased_weights(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return (scores_of(q, k).softmax(-1) + bias) @ split(v, n.E)


def mixed_weights(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return (scores_of(q, k).softmax(-1) * 0.25 + 0.75 * bias.softmax(-1)) @ split(v, n.E)


def mixed_over_queries(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    weights = scores_of(q, k).softmax(-1) + bias.softmax(-1)
    return (weights / weights.sum(-2, keepdim=True)) @ split(v, n.E)


def mixed_over_the_other_sum(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    weights = scores_of(q, k).softmax(-1) + bias.softmax(-1)
    return (weights / bias.sum(-1, keepdim=True)) @ split(v, n.E)


def sum_of_mixed_weights_reused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Any:
    weights = scores_of(q, k).softmax(-1) + bias.softmax(-1)
    total = weights.sum(-1, keepdim=True)
    return (weights / total) @ split(v, n.E), total


def weights_of_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = split(q, n.D), split(k, n.D)[:, :, : n.S]
    weights = (q @ k.mT).softmax(-1)
    return weights @ weights


def masked_after_the_softmax(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return scores_of(q, k).softmax(-1).masked_fill(~keep[:, None, None, :], 0.0) @ split(v, n.E)


def heads_mixed_behind(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    weights = torch.einsum("bhst,hg->bgst", scores_of(q, k).softmax(-1), mix)
    return weights @ split(v, n.E)


def heads_mixed_in_front(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    return torch.einsum("bhst,hg->bgst", scores_of(q, k), mix).softmax(-1) @ split(v, n.E)


# --- products with something more ----------------------------------------------------------------------------------


def added_to_the_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in heads(q, k, v))
    return torch.baddbmm(torch.ones(1, 1, n.E), (q @ k.mT).softmax(-1), v)


def value_scaled_in_the_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in heads(q, k, v))
    return torch.baddbmm(torch.zeros(1, 1, n.E), (q @ k.mT).softmax(-1), v, beta=0, alpha=2.0)


# --- scores with something else in them ----------------------------------------------------------------------------


def bias_then_cap(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return ((scores_of(q, k) + bias).tanh() * 3).softmax(-1) @ split(v, n.E)


def bias_turned_over(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return ((q @ k.mT + bias) * -n.scale).softmax(-1) @ v


def clamped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).clamp(min=-1.0).softmax(-1) @ split(v, n.E)


def clamped_on_both_sides(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).clamp(-1e9, 1e9).softmax(-1) @ split(v, n.E)


def shifted_then_capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((scores_of(q, k) + 1.0).tanh() * 3).softmax(-1) @ split(v, n.E)


def capped_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).tanh().tanh().softmax(-1) @ split(v, n.E)


def filled_with_zero(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return scores_of(q, k).masked_fill(~keep[:, None, None, :], 0.0).softmax(-1) @ split(v, n.E)


def filled_with_much(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return scores_of(q, k).masked_fill(~keep[:, None, None, :], 1e9).softmax(-1) @ split(v, n.E)


def chosen_from_two_products(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = scores_of(q, k)
    return torch.where(keep[:, None, None, :], scores, scores_of(q.flip(1), k)).softmax(-1) @ split(v, n.E)


def dropped_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout(scores_of(q, k), 0.5, training=True).softmax(-1) @ split(v, n.E)


def divided_by_a_tensor(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    return (scores_of(q, k) / gate).softmax(-1) @ split(v, n.E)


def temperature_behind_a_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return ((scores_of(q, k) + bias) * bias.exp()).softmax(-1) @ split(v, n.E)


def squared_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    return (scores * scores).softmax(-1) @ split(v, n.E)


def bias_of_another_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores_of(q, k) + torch.zeros(2, 1, 1, n.S, n.T)).softmax(-1) @ split(v, n.E)


def sinks_that_stay(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    v = F.pad(split(v, n.E), (0, 0, 0, 1), value=1.0)
    return torch.cat([scores_of(q, k), sinks.expand(n.B, n.H, n.S, 1)], -1).softmax(-1) @ v


def keys_dropped_for_sinks(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    joined = torch.cat([sinks.expand(n.B, n.H, n.S, 1), scores_of(q, k)], -1)
    return joined.softmax(-1)[..., :-1] @ split(v, n.E)


def two_sets_of_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    joined = torch.cat([scores_of(q, k), scores_of(q, k.flip(1))], -1).softmax(-1)
    return joined[..., : n.T] @ split(v, n.E)


# --- writes in place -----------------------------------------------------------------------------------------------


def filled_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    scores.masked_fill_(torch.ones(n.S, n.T, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1) @ split(v, n.E)


def scaled_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores_of(q, k).div_(3.0).softmax(-1) @ split(v, n.E)


def added_in_place(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    scores = scores_of(q, k)
    scores += bias
    return scores.softmax(-1) @ split(v, n.E)


def weights_changed_in_place(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    return scores_of(q, k).softmax(-1).mul_(gate) @ split(v, n.E)


def written_through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    scores[..., 0] = 0.0
    return scores.softmax(-1) @ split(v, n.E)


def key_overwritten_behind_its_copy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    key = split(k, n.D).mT.contiguous()
    k.zero_()
    return (split(q, n.D) @ key * n.scale).softmax(-1) @ split(v, n.E)


def key_overwritten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    k.zero_()
    return scores.softmax(-1) @ split(v, n.E)


def padded() -> tuple[Tensor, ...]:
    return (*tokens(), torch.arange(n.T).expand(n.B, n.T) < n.T - 2)


def gated() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.S, n.T, seed=4))


def sunk() -> tuple[Tensor, ...]:
    return (*tokens(), made(1, n.H, 1, 1, seed=4))


def mixed() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.H, n.H, seed=4))


LOOKALIKES: list[tuple[Spelling, Any, str]] = [
    (softmax_over_queries, tokens, "wrong-axis"),
    (softmax_over_heads, tokens, "wrong-axis"),
    (softmax_over_heads_and_keys, tokens, "wrong-axis"),
    (sums_over_queries, tokens, "wrong-axis"),
    (divided_by_sums_over_queries, tokens, "wrong-axis"),
    (sigmoid, tokens, "unsupported-op"),
    (squared_relu, tokens, "unsupported-op"),
    (relu_over_its_sum, tokens, "unsupported-op"),
    (logarithms_of_weights, tokens, "unsupported-op"),
    (exponentials_alone, tokens, "unsupported-op"),
    (one_more_in_the_sum, tokens, "unsupported-op"),
    (softmax_twice, tokens, "unsupported-op"),
    (weights_returned, tokens, "weights-escape"),
    (mean_of_weights_returned, tokens, "weights-escape"),
    (scores_reused, tokens, "weights-escape"),
    (weights_used_twice, tokens, "weights-escape"),
    (sum_of_exponentials_reused, tokens, "weights-escape"),
    (weighted_weights, gated, "unsupported-op"),
    (biased_weights, gated, "unsupported-op"),
    (mixed_weights, gated, "unsupported-op"),
    (mixed_over_queries, gated, "unsupported-op"),
    (mixed_over_the_other_sum, gated, "unsupported-op"),
    (sum_of_mixed_weights_reused, gated, "unsupported-op"),
    (weights_of_weights, tokens, "unsupported-op"),
    (masked_after_the_softmax, padded, "unsupported-op"),
    (heads_mixed_behind, mixed, "wrong-axis"),
    (heads_mixed_in_front, mixed, "unsupported-shape"),
    (added_to_the_output, tokens, "unsupported-op"),
    (value_scaled_in_the_product, tokens, "unsupported-op"),
    (bias_turned_over, gated, "unsupported-mask"),
    (clamped, tokens, "unsupported-op"),
    (clamped_on_both_sides, tokens, "unsupported-op"),
    (bias_then_cap, gated, "unsupported-mask"),
    (shifted_then_capped, tokens, "unsupported-op"),
    (capped_twice, tokens, "unsupported-op"),
    (filled_with_zero, padded, "unsupported-mask"),
    (filled_with_much, padded, "unsupported-mask"),
    (chosen_from_two_products, padded, "unsupported-mask"),
    (dropped_scores, tokens, "unsupported-op"),
    (divided_by_a_tensor, gated, "unsupported-op"),
    (temperature_behind_a_bias, gated, "unsupported-mask"),
    (squared_scores, tokens, "unsupported-op"),
    (bias_of_another_batch, tokens, "unsupported-shape"),
    (sinks_that_stay, sunk, "unsupported-shape"),
    (keys_dropped_for_sinks, sunk, "unsupported-op"),
    (two_sets_of_keys, tokens, "unsupported-op"),
    (filled_in_place, tokens, "mutation"),
    (scaled_in_place, tokens, "mutation"),
    (added_in_place, gated, "mutation"),
    (weights_changed_in_place, gated, "mutation"),
    (written_through_a_view, tokens, "mutation"),
    (key_overwritten, tokens, "mutation"),
    (key_overwritten_behind_its_copy, tokens, "mutation"),
]
