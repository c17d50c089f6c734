"""Attention with weights made in a way of their own: found, proven, left alone; queries that see each other: none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import laconic
from laconic.patterns import proof
from laconic.patterns.graph import NormalGraph
from laconic.patterns.sites import MappedAttention
from tests.patterns.graphs import attentions, normal
from tests.without_inductor import run_graphs_as_they_are
from tests.zoo.attention import Spelling, made, n, square
from tests.zoo.attention_mapped import MAPPED, NONE, talking
from tests.zoo.mutants import Tally, judge


def graph_of(function: Spelling, inputs: Any) -> NormalGraph:
    """The normal form; what mixes heads is a parameter."""
    graph = normal(function, *inputs())
    if inputs is talking:
        graph.placeholders[-1].meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
    return graph


@pytest.mark.parametrize(("function", "inputs", "code"), MAPPED, ids=[row[0].__name__ for row in MAPPED])
def test_found_with_what_stands_in_the_way(function: Spelling, inputs: Any, code: str) -> None:
    graph = graph_of(function, inputs)
    sites = attentions(graph)
    (site,) = sites
    assert isinstance(site, MappedAttention) and (site.kind, site.form) == ("attention", "mapped")
    assert proof.prove(site, graph, verify="always") is None
    assert (site.obstacle.code, sites.refusals) == (code, [])
    assert {name: site.dimensions[name] for name in "STDE"} == {"S": n.S, "T": n.T, "D": n.D, "E": n.E}


@pytest.mark.parametrize(("function", "inputs"), NONE, ids=[row[0].__name__ for row in NONE])
def test_queries_that_see_each_other_are_none(function: Spelling, inputs: Any) -> None:
    sites = attentions(graph_of(function, inputs))
    assert not list(sites) and sites.refusals


def test_mutants_are_told_apart() -> None:
    total = Tally()
    with square():
        for number, (function, inputs, _) in enumerate(MAPPED):
            tally = judge(graph_of(function, inputs), attentions, start=number, step=8)
            assert not tally.wrong, (function.__name__, tally.wrong)
            total += tally
    assert total.mutants >= 60 and total.changed >= 40, total


def test_nothing_rewrites_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        weights = (q @ k.mT / 2).softmax(-1)
        return weights @ v, weights

    run_graphs_as_they_are(monkeypatch)
    torch._dynamo.reset()
    inputs = [made(2, 3, 6, 4, seed=seed) for seed in range(3)]
    passes = [laconic.sparse_attention("window", size=1), laconic.merge_tokens("tome", r=2)]
    fast = torch.compile(attend, backend="laconic", options={"passes": passes})
    with torch.no_grad():
        for got, want in zip(fast(*inputs), attend(*inputs), strict=True):
            torch.testing.assert_close(got, want)
    assert {item.code for item in laconic.report(fast).refusals} == {"unsupported-softmax"}
