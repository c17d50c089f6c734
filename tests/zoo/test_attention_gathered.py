"""Windows and bands written out in pieces are found as what they are, and look-alikes are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import laconic
from laconic.patterns import proof
from laconic.patterns.sites import Attention, GatheredAttention
from tests.patterns.graphs import attentions, normal
from tests.zoo import attention_gathered as zoo
from tests.zoo.attention import Spelling
from tests.zoo.mutants import judge

OTHERS = [
    *((one, zoo.tokens) for one in (zoo.dilated, zoo.without_heads, zoo.edges_in_sight)),
    (zoo.padded, zoo.masked),
]
ROWS = [*((one, zoo.tokens) for one in zoo.WINDOWS), *OTHERS]


def only_site(function: Spelling, *inputs: Any) -> GatheredAttention:
    graph = normal(function, *inputs, writes=False)
    sites = attentions(graph)
    found = sites.of(GatheredAttention)
    assert len(found) == 1, [str(reason) for reason in sites.refusals]
    assert proof.prove(found[0], graph, verify="always") is None
    return found[0]


def keys_of(site: GatheredAttention) -> list[list[int]]:
    return [sorted(row[row >= 0].tolist()) for row in site.keys]


@pytest.mark.parametrize("function", zoo.WINDOWS, ids=[one.__name__ for one in zoo.WINDOWS])
def test_spelling_gives_the_same_site(function: Spelling) -> None:
    site, wanted = only_site(function, *zoo.tokens()), only_site(zoo.unfolded, *zoo.tokens())
    assert site.window == (zoo.LEFT, zoo.RIGHT)
    assert keys_of(site) == keys_of(wanted)
    width = site.query.node.meta["val"].shape[-1]
    assert width == zoo.D and site.scale in (0.5, 1.0) and not site.biases and not site.hidden


def test_other_keys() -> None:
    site = only_site(zoo.dilated, *zoo.tokens())
    assert site.window is None
    assert keys_of(site) == [[key for key in (row - 4, row - 2, row) if key >= 0] for row in range(zoo.S)]
    assert only_site(zoo.without_heads, *zoo.tokens()).window == (zoo.LEFT, zoo.RIGHT)
    site = only_site(zoo.edges_in_sight, *zoo.tokens())
    assert site.keys.tolist() == [list(range(row, row + 5)) for row in range(zoo.S)]


def test_biases_and_hidden_queries() -> None:
    site = only_site(zoo.padded, *zoo.masked())
    assert len(site.biases) == len(site.hidden) == 1 and site.window == (zoo.LEFT, zoo.RIGHT)


@pytest.mark.parametrize("function", zoo.LOOKALIKES, ids=[one.__name__ for one in zoo.LOOKALIKES])
def test_lookalike_is_refused(function: Spelling) -> None:
    sites = attentions(normal(function, *zoo.tokens(), writes=False))
    assert not sites.of(Attention, GatheredAttention) and sites.refusals


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[one.__name__ for one, _ in ROWS])
def test_mutants_are_told_apart(number: int) -> None:
    function, inputs = ROWS[number]
    tally = judge(normal(function, *inputs(), writes=False), attentions, start=number, step=5)
    assert not tally.wrong, tally.wrong
    assert tally.changed


@pytest.mark.parametrize("rewrite", [laconic.sparse_attention("window", size=2), laconic.merge_tokens("tome", r=1)])
def test_passes_that_choose_keys_say_so(rewrite: Any) -> None:
    (graph,) = laconic.explain(zoo.unfolded, *zoo.tokens(), passes=[rewrite]).to_dict()["graphs"]
    (site,) = [site for site in graph["sites"] if site["kind"] == "attention"]
    refused = [item for item in graph["refusals"] if item["site"] == site["id"] and item["pass"] == rewrite.name]
    assert [item["code"] for item in refused] == ["unsupported-softmax"] and "keys" in refused[0]["text"]
    assert site["fields"]["window"] in ((2, 2), [2, 2]) and site["flops"]


def test_a_compile_computes_the_same() -> None:
    inputs = zoo.tokens()
    torch._dynamo.reset()
    with torch.no_grad():
        fast = torch.compile(zoo.halves_written_in_place, backend="laconic")
        torch.testing.assert_close(fast(*inputs), zoo.halves_written_in_place(*inputs))
    assert [site.form for site in laconic.report(fast).sites if site.kind == "attention"] == ["gathered"]
