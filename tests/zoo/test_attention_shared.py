"""Attentions that read each other's scores are sites, each; scores that anything else reads are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import laconic
from laconic.patterns import proof
from laconic.patterns.sites import Attention, MappedAttention
from tests.patterns.graphs import attentions, normal
from tests.without_inductor import run_graphs_as_they_are
from tests.zoo.attention import Spelling, made, n, scores_of, split, square, tokens
from tests.zoo.mutants import judge


def two_sets() -> tuple[Tensor, ...]:
    return (*tokens(), *(made(*value.shape, seed=10 + seed) for seed, value in enumerate(tokens())))


def each_adds_the_other(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor) -> Any:
    one, two = scores_of(q, k), scores_of(q2, k2) / 2
    return (one + two).softmax(-1) @ split(v, n.E), (two + one).softmax(-1) @ split(v2, n.E)


def both_add_in_one_order(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor) -> Any:
    one, two = scores_of(q, k), scores_of(q2, k2) / 2
    return (one + two).softmax(-1) @ split(v, n.E), (one + two).softmax(-1) @ split(v2, n.E)


def one_sum_for_both(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor) -> Any:
    both = scores_of(q, k) + scores_of(q2, k2)
    hidden = torch.ones(n.S, n.T, dtype=torch.bool).triu(2)
    return both.softmax(-1) @ split(v, n.E), both.masked_fill(hidden, float("-inf")).softmax(-1) @ split(v2, n.E)


def scores_handed_to_the_next(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor) -> Any:
    one = scores_of(q, k)
    return one.softmax(-1) @ split(v, n.E), (scores_of(q2, k2) + one).softmax(-1) @ split(v2, n.E)


def one_query_two_values(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor) -> Any:
    scores = scores_of(q, k)
    return scores.softmax(-1) @ split(v, n.E), (scores * 3).softmax(-1) @ split(v2, n.E)


SHARED = [each_adds_the_other, both_add_in_one_order, one_sum_for_both, scores_handed_to_the_next, one_query_two_values]


@pytest.mark.parametrize("function", SHARED, ids=[function.__name__ for function in SHARED])
def test_both_are_found(function: Spelling) -> None:
    graph = normal(function, *two_sets())
    sites = attentions(graph)
    assert [site.id for site in sites] == ["attention.0", "attention.1"], [str(reason) for reason in sites.refusals]
    assert all(proof.prove(site, graph, verify="always") is None for site in sites)


@pytest.mark.parametrize("number", range(len(SHARED)), ids=[function.__name__ for function in SHARED])
def test_mutants_are_told_apart(number: int) -> None:
    with square(3):
        tally = judge(normal(SHARED[number], *two_sets()), attentions, start=number, step=4)
    assert not tally.wrong, tally.wrong
    assert tally.mutants


# --- look-alikes ---------------------------------------------------------------------------------------------------


def read_by_a_sum(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor) -> Any:
    one, two = scores_of(q, k), scores_of(q2, k2)
    return (one + two).softmax(-1) @ split(v, n.E), (two + one).softmax(-1).sum()


def falling_one_after_the_other(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor) -> Any:
    one = scores_of(q, k)
    two = scores_of(q2, k2) + one
    three = scores_of(q2, k) + two
    return one.softmax(-1) @ split(v, n.E), two.softmax(-1) @ split(v2, n.E), three.softmax(-1) @ split(v, n.E), three


def weights_read_too(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor) -> Any:
    one, two = scores_of(q, k), scores_of(q2, k2)
    weights = (two + one).softmax(-1)
    return (one + two).softmax(-1) @ split(v, n.E), weights @ split(v2, n.E), weights


LOOKALIKES = [read_by_a_sum, falling_one_after_the_other, weights_read_too]


@pytest.mark.parametrize("function", LOOKALIKES, ids=[function.__name__ for function in LOOKALIKES])
def test_scores_that_something_else_reads(function: Spelling) -> None:
    sites = attentions(normal(function, *two_sets()))
    assert not sites.of(Attention)
    reasons = [*sites.refusals, *(site.obstacle for site in sites.of(MappedAttention))]
    assert {reason.code for reason in reasons} == {"weights-escape"}


# --- what becomes of them ------------------------------------------------------------------------------------------


def test_a_rewrite_leaves_what_the_other_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(q: Tensor, k: Tensor, v: Tensor) -> Any:
        scores = q @ k.mT / 2
        return scores.softmax(-1) @ v, (scores + 1).softmax(-1) @ k

    run_graphs_as_they_are(monkeypatch)
    torch._dynamo.reset()
    q, k, v = (made(2, 3, 6, 4, seed=seed) for seed in range(3))
    fast = torch.compile(twice, backend="laconic", options={"passes": [laconic.sparse_attention("window", size=1)]})
    with torch.no_grad():
        windowed, dense = fast(q, k, v)
    scores, places = q @ k.mT / 2, torch.arange(6)
    hidden = (places[:, None] - places).abs() > 1
    torch.testing.assert_close(windowed, scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v)
    torch.testing.assert_close(dense, scores.softmax(-1) @ k)
    assert [item.code for item in laconic.report(fast).refusals] == ["overlap"]
