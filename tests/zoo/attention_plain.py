"""Attention without masks: products, scales, layouts and softmaxes in many spellings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.attention import Family, heads, n, scores_of, split, tokens


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v))


def fused_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), scale=n.scale)


def matmul_div(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return torch.matmul(F.softmax(torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(n.D), dim=-1), v)


def operators_mul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ k.mT * n.scale).softmax(-1) @ v


def scale_on_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return ((q * n.scale) @ k.transpose(2, 3)).softmax(3) @ v


def scale_on_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ (k.transpose(2, 3) / math.sqrt(n.D))).softmax(-1) @ v


def scale_on_both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    half = n.D**-0.25
    return ((q * half) @ (k * half).transpose(-1, -2)).softmax(-1) @ v


def scale_as_tensor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ k.mT / torch.sqrt(torch.tensor(float(n.D)))).softmax(-1) @ v


def key_stored_transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = k.view(n.B, n.T, n.H, n.D).permute(0, 2, 3, 1)
    return (split(q, n.D) @ k * n.scale).softmax(-1) @ split(v, n.E)


def bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(n.B * n.H, x.shape[2], x.shape[3]) for x in heads(q, k, v))
    weights = torch.bmm(q, k.transpose(1, 2)).mul(n.scale).softmax(-1)
    return torch.bmm(weights, v).view(n.B, n.H, n.S, n.E)


def baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(n.B * n.H, x.shape[2], x.shape[3]) for x in heads(q, k, v))
    scores = torch.baddbmm(torch.empty(n.B * n.H, n.S, n.T), q, k.transpose(1, 2), beta=0, alpha=n.scale)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (n.B, n.H))


def einsum_heads_second(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * n.scale).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def einsum_heads_third(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.view(n.B, n.S, n.H, n.D), k.view(n.B, n.T, n.H, n.D), v.view(n.B, n.T, n.H, n.E)
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * n.scale).softmax(-1)
    return torch.einsum("bhqk,bkhd->bhqd", weights, v)


def einsum_dots(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    weights = torch.einsum("...qd,...kd->...qk", q, k).mul(n.scale).softmax(-1)
    return torch.einsum("...qk,...kd->...qd", weights, v)


def softmax_in_float(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return F.softmax(q @ k.mT * n.scale, dim=-1, dtype=torch.float64).to(q.dtype) @ v


def dropout_off(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return F.dropout((q @ k.mT * n.scale).softmax(-1), 0.3, training=False) @ v


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    raised = torch.exp(q @ k.mT * n.scale)
    return (raised / raised.sum(-1, keepdim=True)) @ v


def by_hand_stable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    scores = q @ k.mT * n.scale
    raised = (scores - scores.amax(-1, keepdim=True)).exp()
    return (raised / raised.sum(dim=-1, keepdim=True)) @ v


def shifted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    scores = q @ k.mT * n.scale
    return (scores - scores.max(-1, keepdim=True).values).softmax(-1) @ v


def shifted_by_a_maximum_put_back(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    small = scores / 8
    return ((small - small.amax(-1).unsqueeze(-1)) * 8).softmax(-1) @ split(v, n.E)


def copied_about(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.contiguous() for x in heads(q, k, v))
    return (q @ k.transpose(-1, -2).contiguous() * n.scale).softmax(-1) @ v.clone()


def transposed_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    weights = (k @ q.mT * n.scale).softmax(-2)
    return weights.mT @ v


def value_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    weights = (q @ k.mT * n.scale).softmax(-1)
    return (v.mT @ weights.mT).mT


def scale_as_root(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ k.mT * torch.tensor(float(n.D)).rsqrt()).softmax(-1) @ v


def scale_as_power(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return torch.softmax(n.D**-0.5 * torch.matmul(q, k.swapaxes(-1, -2)), dim=3) @ v


def scale_in_two_places(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return ((q / 2) @ (k * 2).permute(0, 1, 3, 2) / math.sqrt(n.D)).softmax(-1) @ v


def scale_as_full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    scores = q @ k.mT
    return (scores / torch.full((), n.D**0.5, dtype=scores.dtype)).softmax(-1) @ v


def einsum_other_letters(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.view(n.B, n.S, n.H, n.D), k.view(n.B, n.T, n.H, n.D), v.view(n.B, n.T, n.H, n.E)
    weights = torch.einsum("n i h c, n j h c -> n h i j", q, k).mul(n.scale).softmax(-1)
    return torch.einsum("n h i j, n j h c -> n i h c", weights, v).permute(0, 2, 1, 3)


def einsum_keys_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.view(n.B, n.S, n.H, n.D), k.view(n.B, n.T, n.H, n.D), v.view(n.B, n.T, n.H, n.E)
    weights = (torch.einsum("bthd,bshd->bhts", k, q) * n.scale).softmax(2)
    return torch.einsum("bthe,bhts->bhse", v, weights)


def heads_by_reshape(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q.reshape(n.B, n.S, n.H, n.D).permute(0, 2, 1, 3).reshape(-1, n.S, n.D)
    k = k.unflatten(-1, (n.H, n.D)).movedim(2, 1).flatten(0, 1)
    v = v.unflatten(2, (n.H, n.E)).swapaxes(1, 2).flatten(0, 1)
    return (q @ k.transpose(1, 2) * n.scale).softmax(dim=-1).matmul(v).unflatten(0, (n.B, n.H))


def output_merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = scores_of(q, k).softmax(-1) @ split(v, n.E)
    return out.transpose(1, 2).contiguous().view(n.B, n.S, n.H * n.E)


def softmax_in_float_method(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return torch.nn.Softmax(dim=-1)((q @ k.mT * n.scale).double()).type_as(v) @ v


def scores_in_float(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return ((q.double() @ k.double().mT * n.scale).softmax(-1) @ v.double()).to(q.dtype)


def by_reciprocal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = scores_of(q, k).exp()
    return (raised * raised.sum(-1, keepdim=True).reciprocal()) @ split(v, n.E)


def by_logarithms(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.log_softmax(scores_of(q, k), dim=-1).exp() @ split(v, n.E)


def by_logarithm_of_the_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ split(v, n.E)


def divided_after(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    raised = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    return (raised @ split(v, n.E)) / raised.sum(-1, keepdim=True)


def shifted_by_a_number(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores_of(q, k) - 4.0).softmax(-1) @ split(v, n.E)


def dropout_of_nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout(scores_of(q, k).softmax(-1), 0.0, training=True) @ split(v, n.E)


PLAIN = Family(
    "plain",
    (
        fused,
        fused_scale,
        matmul_div,
        operators_mul,
        scale_on_query,
        scale_on_key,
        scale_on_both,
        scale_as_tensor,
        key_stored_transposed,
        bmm,
        baddbmm,
        einsum_heads_second,
        einsum_heads_third,
        einsum_dots,
        softmax_in_float,
        dropout_off,
        by_hand,
        by_hand_stable,
        shifted,
        shifted_by_a_maximum_put_back,
        copied_about,
        transposed_scores,
        value_first,
        scale_as_root,
        scale_as_power,
        scale_in_two_places,
        scale_as_full,
        einsum_other_letters,
        einsum_keys_first,
        heads_by_reshape,
        output_merged,
        softmax_in_float_method,
        scores_in_float,
        by_reciprocal,
        by_logarithms,
        by_logarithm_of_the_sum,
        divided_after,
        shifted_by_a_number,
        dropout_of_nothing,
    ),
    tokens,
)

FAMILIES = [PLAIN]
