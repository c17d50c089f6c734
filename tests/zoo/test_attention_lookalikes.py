"""Look-alikes of attention are refused by name; reproducers of others' silent mistakes are read as what they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.patterns import proof
from laconic.patterns.sites import Attention, MappedAttention
from tests.patterns.graphs import attentions, compiled, normal
from tests.zoo.attention import Spelling, made, meaning_of, n, only_site, scores_of, split, tokens
from tests.zoo.attention_lookalikes import LOOKALIKES


@pytest.mark.parametrize(("function", "inputs", "code"), LOOKALIKES, ids=[row[0].__name__ for row in LOOKALIKES])
def test_lookalike_is_refused(function: Spelling, inputs: Any, code: str) -> None:
    graph = normal(function, *inputs())
    sites = attentions(graph)
    assert not sites.of(Attention)
    assert all(proof.prove(site, graph, verify="always") is None for site in sites)
    reasons = [*sites.refusals, *(site.obstacle for site in sites.of(MappedAttention))]
    assert code in [reason.code for reason in reasons], [str(reason) for reason in reasons]
    names = {node.name for node in graph.module.graph.nodes}
    assert all(set(reason.nodes) <= names and reason.nodes for reason in reasons)


def test_there_are_many() -> None:
    assert len({row[0] for row in LOOKALIKES}) >= 30


def test_a_temperature_that_is_trained_is_refused() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
        return (scores_of(q, k) * temperature.exp()).softmax(-1) @ split(v, n.E)

    assert only_site(attend, *tokens(), made(n.H, 1, 1)).factor is not None
    graph = normal(attend, *tokens(), made(n.H, 1, 1))
    graph.placeholders[-1].meta["val"].requires_grad_()
    graph.grad_enabled = True
    (site,) = attentions(graph).of(MappedAttention)
    assert site.obstacle.code == "requires-grad"


# --- dropout and rows that see nothing are fields ------------------------------------------------------------------


def test_dropout_is_a_field() -> None:
    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout(scores_of(q, k).softmax(-1), 0.25, training=True) @ split(v, n.E)

    graph = normal(dropped, *tokens())
    (site,) = attentions(graph).of(Attention)
    assert site.dropout == 0.25
    assert proof.prove(site, graph) is None


@pytest.mark.parametrize("guard", [lambda x: torch.where(x.isnan(), 0.0, x), torch.nan_to_num], ids=["where", "number"])
def test_guard_against_rows_that_see_nothing(guard: Any) -> None:
    def guarded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        return guard(scores_of(q, k).masked_fill(~keep, float("-inf")).softmax(-1)) @ split(v, n.E)

    site = only_site(guarded, *tokens(), torch.ones(n.S, n.T, dtype=torch.bool))
    assert site.hidden_rows == "zero"


def test_a_scale_before_the_heads_stays_outside() -> None:
    def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (split(q / 2, n.D) @ split(k, n.D).mT).softmax(-1) @ split(v, n.E)

    assert only_site(scaled, *tokens()).scale == 1.0


# --- reproducers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 3, 2), (1, 0, 3, 2), (0, 3, 1, 2), (3, 1, 0, 2), (2, 3, 1, 0), (0, 1, 2, 3)])
def test_permuted_keys_are_what_they_are(order: tuple[int, ...]) -> None:
    """pytorch/pytorch#195320: any permutation of the key was taken for a transposition, and computed something else."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.permute(order) * 0.5).softmax(-1) @ v

    q, k, v = (made(4, 4, 4, 4, seed=seed) for seed in range(3))
    site = only_site(attend, q, k, v)
    assert (site.key.permutation or (0, 1, 2, 3)) == (*order[:2], order[3], order[2])


def test_mask_and_scores_in_either_order() -> None:
    """pytorch/pytorch#195782: ``mask + scores`` was missed where ``scores + mask`` was found."""

    def behind(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / 2.0 + mask).softmax(-1) @ v

    def in_front(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (mask + q @ k.transpose(-2, -1) / 2.0).softmax(-1) @ v

    inputs = (*(made(2, 3, 5, 4, seed=seed) for seed in range(3)), made(2, 1, 5, 5))
    assert meaning_of(only_site(behind, *inputs)) == meaning_of(only_site(in_front, *inputs))


def test_multiplied_or_divided() -> None:
    """pytorch/pytorch#195412: a product with the scale was missed where a quotient was found."""

    def divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).div(2.0).softmax(-1) @ v

    def multiplied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).mul(0.5).softmax(-1) @ v

    inputs = [made(2, 3, 5, 4, seed=seed) for seed in range(3)]
    assert meaning_of(only_site(divided, *inputs)) == meaning_of(only_site(multiplied, *inputs))


def test_sizes_read_between_the_operations() -> None:
    """pytorch/pytorch#111190: reading symbolic sizes between the operations of the pattern hid it."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, s, h, d = q.size()
        q, k, v = (x.transpose(1, 2).reshape(b * h, x.size(1), d) for x in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2)) / d**0.5
        weights = scores.view(b, h, s, k.size(1)).softmax(-1).view(b * h, s, k.size(1))
        return torch.bmm(weights, v).view(b, h, s, d).transpose(1, 2).reshape(b, s, h * d)

    inputs = [made(3, length, 2, 4, seed=length) for length in (5, 7, 7)]
    for x in inputs:
        torch._dynamo.mark_dynamic(x, (0, 1))
    graph = compiled(attend, *inputs)
    (site,) = attentions(graph).of(Attention)
    assert site.scale == 0.5
    assert {name: site.dimensions[name] for name in "BHSTD"} == {"B": 3, "H": 2, "S": 5, "T": 7, "D": 4}
