"""Linear attention in every spelling is one site; look-alikes, mutants and passes that need a softmax refuse it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

import laconic
from laconic.patterns import proof
from laconic.patterns.attention import find_attention
from laconic.patterns.describe import evaluated
from laconic.patterns.detect import detect
from laconic.patterns.graph import NormalGraph
from laconic.patterns.linear_attention import find_linear_attention
from laconic.patterns.sites import LinearAttention, Sites
from tests.patterns.graphs import normal
from tests.zoo import attention_linear as zoo
from tests.zoo.attention import n, shape, square, tokens
from tests.zoo.mutants import judge

ROWS = [(zoo.NORMALISED[0], one) for one in zoo.NORMALISED] + [(zoo.SOFTENED[0], one) for one in zoo.SOFTENED]


def found_in(function: Callable[..., Any]) -> tuple[NormalGraph, Sites]:
    graph = normal(function, *tokens())
    return graph, attentions(graph)


def attentions(graph: NormalGraph) -> Sites:
    """What the detectors of attention find, the linear one in particular."""
    found, refusals = find_attention(graph, Sites())
    more, others = find_linear_attention(graph, Sites(found, refusals))
    return Sites([*found, *more], [*refusals, *others])


def only_site(function: Callable[..., Any]) -> tuple[NormalGraph, LinearAttention]:
    graph, sites = found_in(function)
    assert len(sites.sites) == 1, [str(reason) for reason in sites.refusals]
    (site,) = sites.of(LinearAttention)
    assert proof.prove(site, graph, verify="always") is None
    with mock.patch.multiple(proof, CHEAP=0, AFFORDABLE=0):
        assert proof.prove(site, graph, verify="always") is None  # shrunk, as if it were a large one
    return graph, site


def meaning_of(site: LinearAttention) -> dict[str, Any]:
    return {
        "shapes": [shape(item) for item in (site.query, site.key, site.value)],
        "scale": pytest.approx(site.scale),
        "normalised": (site.normalised, site.epsilon),
        "groups": site.groups,
        "flops": evaluated(site.flops, site.dimensions),
    }


@pytest.mark.parametrize(("first", "spelling"), ROWS, ids=[one.__name__ for _, one in ROWS])
def test_spelling_gives_the_same_site(first: Callable[..., Any], spelling: Callable[..., Any]) -> None:
    _, site = only_site(spelling)
    assert (site.kind, site.form) == ("attention", "linear")
    assert meaning_of(site) == meaning_of(only_site(first)[1])
    assert {name: site.dimensions[name] for name in "BHSTDE"} == {name: getattr(n, name) for name in "BHSTDE"}


@pytest.mark.parametrize(("spelling", "code"), zoo.LOOKALIKES, ids=[one.__name__ for one, _ in zoo.LOOKALIKES])
def test_lookalike_is_refused(spelling: Callable[..., Any], code: str | None) -> None:
    graph, sites = found_in(spelling)
    assert not sites.sites
    assert code is None or code in [reason.code for reason in sites.refusals]
    assert not detect(graph).of(LinearAttention)


@pytest.mark.parametrize(
    "change", [{"epsilon": 0.5}, {"normalised": False}, {"scale": 2.0}], ids=["epsilon", "normalised", "scale"]
)
def test_a_changed_field_is_not_believed(change: dict[str, Any]) -> None:
    graph, site = only_site(zoo.column_of_ones)
    reason = proof.prove(dataclasses.replace(site, **change), graph, verify="always")
    assert reason is not None and reason.code == "not-proven"


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[one.__name__ for _, one in ROWS])
def test_mutants_are_told_apart(number: int) -> None:
    with square(3):
        tally = judge(normal(ROWS[number][1], *tokens()), attentions, start=number, step=3)
    assert not tally.wrong, tally.wrong
    assert tally.changed


@pytest.mark.parametrize("rewrite", [laconic.sparse_attention("window", size=2), laconic.merge_tokens("tome", r=1)])
def test_passes_that_need_a_softmax_say_so(rewrite: Any) -> None:
    (graph,) = laconic.explain(zoo.column_of_ones, *tokens(), passes=[rewrite]).to_dict()["graphs"]
    (site,) = [site for site in graph["sites"] if site["kind"] == "attention"]
    refused = [item for item in graph["refusals"] if item["site"] == site["id"] and item["pass"] == rewrite.name]
    assert [item["code"] for item in refused] == ["unsupported-softmax"] and "linear" in refused[0]["text"]
