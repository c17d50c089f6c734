"""One attention, many ways to write it: every spelling gives the same site, and look-alikes are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.patterns import proof
from laconic.patterns.describe import evaluated
from laconic.patterns.sites import Attention, Operand
from tests.patterns.graphs import attentions, normal

B, H, S, T, D, E = 2, 3, 5, 7, 4, 6
SCALE = 1 / math.sqrt(D)

Spelling = Callable[..., Tensor]


def tokens(groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value before they are split into heads: ``[B, S, H*D]``, ``[B, T, Hk*D]``, ``[B, T, Hk*E]``."""
    generator = torch.Generator().manual_seed(0)
    heads = H * 2 if groups == 2 else H
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return make(B, S, heads * D), make(B, T, heads // groups * D), make(B, T, heads // groups * E)


def split(x: Tensor, width: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], -1, width).transpose(1, 2)


def heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return split(q, D), split(k, D), split(v, E)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v))


def fused_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), scale=SCALE)


def matmul_div(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return torch.matmul(F.softmax(torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(D), dim=-1), v)


def operators_mul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ k.mT * SCALE).softmax(-1) @ v


def scale_on_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return ((q * SCALE) @ k.transpose(2, 3)).softmax(3) @ v


def scale_on_query_before_split(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q / math.sqrt(D), k, v)
    return (q @ k.transpose(2, 3)).softmax(3) @ v


def scale_on_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ (k.transpose(2, 3) / math.sqrt(D))).softmax(-1) @ v


def scale_on_both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    half = D**-0.25
    return ((q * half) @ (k * half).transpose(-1, -2)).softmax(-1) @ v


def scale_as_tensor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ k.mT / torch.sqrt(torch.tensor(float(D)))).softmax(-1) @ v


def key_stored_transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = k.view(B, T, H, D).permute(0, 2, 3, 1)
    return (split(q, D) @ k * SCALE).softmax(-1) @ split(v, E)


def bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(B * H, x.shape[2], x.shape[3]) for x in heads(q, k, v))
    weights = torch.bmm(q, k.transpose(1, 2)).mul(SCALE).softmax(-1)
    return torch.bmm(weights, v).view(B, H, S, E)


def baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(B * H, x.shape[2], x.shape[3]) for x in heads(q, k, v))
    scores = torch.baddbmm(torch.empty(B * H, S, T), q, k.transpose(1, 2), beta=0, alpha=SCALE)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (B, H))


def einsum_heads_second(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * SCALE).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def einsum_heads_third(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.view(B, S, H, D), k.view(B, T, H, D), v.view(B, T, H, E)
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE).softmax(-1)
    return torch.einsum("bhqk,bkhd->bhqd", weights, v)


def einsum_dots(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    weights = torch.einsum("...qd,...kd->...qk", q, k).mul(SCALE).softmax(-1)
    return torch.einsum("...qk,...kd->...qd", weights, v)


def softmax_in_float(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return F.softmax(q @ k.mT * SCALE, dim=-1, dtype=torch.float64).to(q.dtype) @ v


def dropout_off(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return F.dropout((q @ k.mT * SCALE).softmax(-1), 0.3, training=False) @ v


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    raised = torch.exp(q @ k.mT * SCALE)
    return (raised / raised.sum(-1, keepdim=True)) @ v


def by_hand_stable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    scores = q @ k.mT * SCALE
    raised = (scores - scores.amax(-1, keepdim=True)).exp()
    return (raised / raised.sum(dim=-1, keepdim=True)) @ v


def shifted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    scores = q @ k.mT * SCALE
    return (scores - scores.max(-1, keepdim=True).values).softmax(-1) @ v


def copied_about(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.contiguous() for x in heads(q, k, v))
    return (q @ k.transpose(-1, -2).contiguous() * SCALE).softmax(-1) @ v.clone()


def transposed_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    weights = (k @ q.mT * SCALE).softmax(-2)
    return weights.mT @ v


def value_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    weights = (q @ k.mT * SCALE).softmax(-1)
    return (v.mT @ weights.mT).mT


PLAIN: list[Spelling] = [
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
    copied_about,
    transposed_scores,
    value_first,
]


def only_site(function: Spelling, *inputs: Tensor) -> Attention:
    graph = normal(function, *inputs)
    sites = attentions(graph)
    found = sites.of(Attention)
    assert len(found) == 1, [str(reason) for reason in sites.refusals]
    (site,) = found
    for cheap in (proof.CHEAP, 0):  # at its own sizes, and shrunk as if it were a large one
        with (
            mock.patch.object(proof, "CHEAP", cheap),
            mock.patch.object(proof, "AFFORDABLE", proof.CHEAP if cheap else 0),
        ):
            assert proof.prove(site, graph, verify="always") is None
    return site


def shape(operand: Operand) -> tuple[int, ...]:
    value = operand.node.meta["val"]
    return tuple(value.permute(operand.permutation or tuple(range(value.dim()))).shape)


def meaning_of(site: Attention) -> dict[str, Any]:
    """Everything a pass may depend on, comparable across graphs."""
    output = site.output.meta["val"]
    order = site.output_permutation or tuple(range(output.dim()))
    return {
        "query": shape(site.query),
        "key": shape(site.key),
        "value": shape(site.value),
        "output": tuple(output.permute(sorted(range(output.dim()), key=order.__getitem__)).shape),
        "scale": pytest.approx(site.scale, rel=1e-12),
        "biases": [(b.kind, b.structure, b.window, b.value is None) for b in site.biases],
        "groups": site.groups,
        "dropout": site.dropout,
        "flops": evaluated(site.flops, site.dimensions),
    }


@pytest.mark.parametrize("spelling", PLAIN, ids=lambda f: f.__name__)
def test_spelling_gives_the_same_site(spelling: Spelling) -> None:
    site = only_site(spelling, *tokens())
    assert meaning_of(site) == meaning_of(only_site(fused, *tokens()))
    assert shape(site.query) == (B, H, S, D)


def test_a_scale_before_the_heads_stays_outside() -> None:
    site = only_site(scale_on_query_before_split, *tokens())
    assert site.scale == 1.0 and shape(site.query) == (B, H, S, D)


# --- masks ---------------------------------------------------------------------------------------------------------


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    return split(q, D) @ split(k, D).mT * SCALE


def fused_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), is_causal=True)


def filled_with_triangle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = torch.ones(S, T, dtype=torch.bool).triu(1)
    return scores_of(q, k).masked_fill(hidden, float("-inf")).softmax(-1) @ split(v, E)


def chosen_by_triangle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    visible = torch.tril(torch.ones(S, T)).view(1, 1, S, T)
    return scores_of(q, k).masked_fill(visible == 0, -1e9).softmax(-1) @ split(v, E)


def where_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    visible = torch.arange(T)[None, :] <= torch.arange(S)[:, None]
    scores = scores_of(q, k)
    return torch.where(visible, scores, torch.finfo(scores.dtype).min).softmax(-1) @ split(v, E)


def added_triangle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((S, T), float("-inf")).triu(1)
    return (mask + scores_of(q, k)).softmax(-1) @ split(v, E)


def causal_window_of_everything(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place, other = torch.arange(S)[:, None], torch.arange(T)[None, :]
    visible = (other <= place) & (place - other < S) & torch.ones(S, T, dtype=torch.bool)
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=visible[None, None])


@pytest.mark.parametrize(
    "spelling",
    [
        fused_causal,
        filled_with_triangle,
        chosen_by_triangle,
        where_positions,
        added_triangle,
        causal_window_of_everything,
    ],
    ids=lambda f: f.__name__,
)
def test_causal_masks_are_recognised(spelling: Spelling) -> None:
    site = only_site(spelling, *tokens())
    assert meaning_of(site) == meaning_of(only_site(fused_causal, *tokens()))
    assert site.causal


def test_a_band_is_a_window() -> None:
    def banded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        offset = torch.arange(T)[None, :] - torch.arange(S)[:, None]
        return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=(offset >= -2) & (offset <= 1))

    (bias,) = only_site(banded, *tokens()).biases
    assert (bias.kind, bias.structure, bias.window) == ("boolean", "window", (2, 1))


PADDING = torch.tensor([[True] * T, [True] * (T - 2) + [False] * 2])


def padding_fused(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=keep[:, None, None, :])


def padding_expanded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=keep[:, None, None, :].expand(B, H, S, T))


def padding_filled(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return scores_of(q, k).masked_fill(~keep[:, None, None, :], float("-inf")).softmax(-1) @ split(v, E)


def padding_filled_equal(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return scores_of(q, k).masked_fill(keep[:, None, None, :] == 0, -1e9).softmax(-1) @ split(v, E)


def padding_where(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None, None, :], scores_of(q, k), -1e30).softmax(-1) @ split(v, E)


def padding_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    mask = torch.zeros(B, 1, 1, T).masked_fill(~keep[:, None, None, :], float("-inf"))
    return (scores_of(q, k) + mask).softmax(-1) @ split(v, E)


def padding_added_first(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    mask = torch.where(keep[:, None, None, :], 0.0, torch.finfo(torch.float32).min)
    return (mask + scores_of(q, k)).softmax(-1) @ split(v, E)


@pytest.mark.parametrize(
    "spelling",
    [
        padding_expanded,
        padding_filled,
        padding_filled_equal,
        padding_where,
        padding_added,
        padding_added_first,
    ],
    ids=lambda f: f.__name__,
)
def test_padding_masks_are_boolean(spelling: Spelling) -> None:
    site = only_site(spelling, *tokens(), PADDING)
    assert meaning_of(site) == meaning_of(only_site(padding_fused, *tokens(), PADDING))
    (bias,) = site.biases
    assert (bias.kind, bias.structure) == ("boolean", "padding")


def test_causal_and_padding_come_apart() -> None:
    def both(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        visible = torch.ones(S, T, dtype=torch.bool).tril() & keep[:, None, None, :]
        return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=visible)

    site = only_site(both, *tokens(), PADDING)
    assert sorted(bias.structure for bias in site.biases) == ["causal", "padding"]


def test_relative_bias_without_scale() -> None:
    def relative(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
        q, k, v = heads(q, k, v)
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        mask = (1.0 - keep[:, None, None, :].float()) * -1e9
        return ((q @ k.mT + bias) + mask).softmax(-1) @ v

    site = only_site(relative, *tokens(), torch.randn(S, T, H), PADDING)
    assert site.scale == 1.0
    assert [bias.kind for bias in site.biases] == ["additive", "additive"]
    assert [bias.structure for bias in site.biases] == ["full", "padding"]


# --- fewer key heads than query heads ------------------------------------------------------------------------------


def grouped_expand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    k = k[:, :, None].expand(B, H, 2, T, D).reshape(B, 2 * H, T, D)
    v = v[:, :, None].expand(B, H, 2, T, E).reshape(B, 2 * H, T, E)
    return (q @ k.mT * SCALE).softmax(-1) @ v


def grouped_repeat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    return F.scaled_dot_product_attention(q, k, v)


def grouped_flag(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), enable_gqa=True)


def grouped_five_axes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    q = q.view(B, H, 2, S, D)
    weights = (q @ k.unsqueeze(2).mT * SCALE).softmax(-1)
    return (weights @ v.unsqueeze(2)).view(B, 2 * H, S, E)


@pytest.mark.parametrize("spelling", [grouped_expand, grouped_repeat, grouped_five_axes], ids=lambda f: f.__name__)
def test_grouped_heads(spelling: Spelling) -> None:
    site = only_site(spelling, *tokens(groups=2))
    assert meaning_of(site) == meaning_of(only_site(grouped_flag, *tokens(groups=2)))
    assert site.groups == 2
    assert shape(site.key) == (B, H, T, D)


def test_one_key_head_for_all() -> None:
    def shared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.view(B, T, 1, D).transpose(1, 2), v.view(B, T, 1, E).transpose(1, 2)
        return (split(q, D) @ k.mT * SCALE).softmax(-1) @ v

    q, k, v = tokens()
    site = only_site(shared, q, k[..., :D].contiguous(), v[..., :E].contiguous())
    assert site.groups == H


# --- other shapes --------------------------------------------------------------------------------------------------


def test_dropout_is_a_field() -> None:
    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = heads(q, k, v)
        return F.dropout((q @ k.mT * SCALE).softmax(-1), 0.25, training=True) @ v

    graph = normal(dropped, *tokens())
    (site,) = attentions(graph).of(Attention)
    assert site.dropout == 0.25
    assert proof.prove(site, graph) is None


def test_guard_against_hidden_rows() -> None:
    def guarded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        weights = scores_of(q, k).masked_fill(~keep, float("-inf")).softmax(-1)
        weights = torch.where(torch.isnan(weights), 0.0, weights)
        return weights @ split(v, E)

    site = only_site(guarded, *tokens(), torch.ones(S, T, dtype=torch.bool))
    assert site.hidden_rows == "zero"


def test_without_batch_and_with_one() -> None:
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v

    assert only_site(plain, torch.randn(S, D), torch.randn(T, D), torch.randn(T, E)).query.permutation is None
    single = tuple(x[:1] for x in tokens())

    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.view(1, x.shape[1], H, -1).transpose(1, 2).reshape(H, x.shape[1], -1) for x in (q, k, v))
        return torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).view(1, H, S, E).transpose(1, 2).reshape(1, S, H * E)

    assert shape(only_site(one, *single).query) == (1, H, S, D)


# --- look-alikes ---------------------------------------------------------------------------------------------------


def softmax_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ k.mT * SCALE).softmax(-2) @ v


def softmax_over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ k.mT * SCALE).softmax(1) @ v


def weights_returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    q, k, v = heads(q, k, v)
    weights = (q @ k.mT * SCALE).softmax(-1)
    return weights @ v, weights


def scores_reused(q: Tensor, k: Tensor, v: Tensor) -> Any:
    q, k, v = heads(q, k, v)
    scores = q @ k.mT * SCALE
    return scores.softmax(-1) @ v, scores.sum()


def weights_used_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    weights = (q @ k.mT * SCALE).softmax(-1)
    return weights @ v + weights @ v.flip(2)


def sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return torch.sigmoid(q @ k.mT * SCALE) @ v


def tensor_temperature(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (q @ k.mT * temperature).softmax(-1) @ v


def capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return (torch.tanh(q @ k.mT * SCALE / 5) * 5).softmax(-1) @ v


def filled_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    scores.masked_fill_(torch.ones(S, T, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1) @ split(v, E)


def written_through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    scores[..., 0] = 0.0
    return scores.softmax(-1) @ split(v, E)


def key_overwritten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    k.zero_()
    return scores.softmax(-1) @ split(v, E)


def weighted_weights(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return ((q @ k.mT * SCALE).softmax(-1) * gate) @ v


def filled_with_zero(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return scores_of(q, k).masked_fill(~keep[:, None, None, :], 0.0).softmax(-1) @ split(v, E)


def bias_then_scale(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return ((q @ k.mT + bias) * SCALE).softmax(-1) @ v


def sums_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, _ = heads(q, k, v)
    return (q @ k.mT * SCALE).softmax(-1).mT @ q


ONE = torch.tensor([[[[0.7]]]])

LOOKALIKES: list[tuple[Spelling, tuple[Tensor, ...], str]] = [
    (softmax_over_queries, (), "wrong-axis"),
    (softmax_over_heads, (), "wrong-axis"),
    (sums_over_queries, (), "wrong-axis"),
    (weights_returned, (), "weights-escape"),
    (scores_reused, (), "weights-escape"),
    (weights_used_twice, (), "weights-escape"),
    (sigmoid, (), "unsupported-op"),
    (tensor_temperature, (ONE,), "unsupported-op"),
    (capped, (), "unsupported-op"),
    (weighted_weights, (ONE,), "unsupported-op"),
    (filled_in_place, (), "mutation"),
    (written_through_a_view, (), "mutation"),
    (key_overwritten, (), "mutation"),
    (filled_with_zero, (PADDING,), "unsupported-mask"),
    (bias_then_scale, (torch.randn(S, T),), "unsupported-mask"),
]


@pytest.mark.parametrize(("function", "more", "code"), LOOKALIKES, ids=lambda item: getattr(item, "__name__", None))
def test_lookalike_is_refused(function: Spelling, more: tuple[Tensor, ...], code: str) -> None:
    graph = normal(function, *tokens(), *more)
    sites = attentions(graph)
    assert not sites.of(Attention)
    assert code in [reason.code for reason in sites.refusals]
    names = {node.name for node in graph.module.graph.nodes}
    assert all(set(reason.nodes) <= names and reason.nodes for reason in sites.refusals)
